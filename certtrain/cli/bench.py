"""certtrain bench: decide the instances of a benchmark, each in a process of its own."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certtrain.cli.decide import PgdSteps, PropertyMethod
from certtrain.cli.exit_codes import ExitCode
from certtrain.cli.options import AsJson, AttackSeed, Force, PgdRestarts, memory_size, seconds
from certtrain.cli.stopping import Stopper

if TYPE_CHECKING:
    from certtrain.competition.instances import Instance
    from certtrain.competition.results import ResultsFile
    from certtrain.competition.running import Options
    from certtrain.competition.summary import Tally

InstanceLists = Annotated[
    list[Path],
    typer.Argument(
        metavar="INSTANCES",
        help="Lists of the competition: onnx,vnnlib,timeout in each line, and perhaps the expected verdict. Paths are "
        "relative to the list's folder, whose name is the category; files may be gzipped.",
    ),
]
OutFile = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="The results, as CSV. A file that is not complete is continued.")
]


@dataclass(frozen=True)
class BenchOptions:
    """What is decided, and how."""

    out: OutFile = Path("results.csv")
    method: PropertyMethod = "complete"
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=seconds, metavar="TIME", help="Time limit for each instance, like 30s; a list may set a shorter one."
        ),
    ] = None
    memory: Annotated[
        int | None,
        typer.Option(
            parser=memory_size,
            metavar="SIZE",
            help="Memory limit of each instance, like 2GiB, as of `certtrain decide`.",
        ),
    ] = None
    pgd_steps: PgdSteps = 20
    pgd_restarts: PgdRestarts = 1
    seed: AttackSeed = 0
    jobs: Annotated[int, typer.Option(min=1, help="Number of instances at a time.")] = 1
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of each process; 1 if there are several jobs, else all cores."),
    ] = None

    def settings(self) -> "Options":
        """What each process is given."""
        from certtrain.competition.running import Options

        threads = 1 if self.threads is None and self.jobs > 1 else self.threads
        return Options(self.method, self.timeout, self.memory, self.pgd_steps, self.pgd_restarts, self.seed, threads)


@dataclass(frozen=True)
class BenchOutput:
    """What else is written and compared."""

    counterexamples: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write counterexamples into this folder, in the competition's format."),
    ] = None
    expected: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Results of another verifier in the competition's format, to compare with."),
    ] = None
    force: Force = False
    as_json: AsJson = False


def bench_command(lists: InstanceLists, options: BenchOptions, comparison: BenchOutput) -> None:
    """Decide the instances of a benchmark in the format of the verification competition (VNN-COMP).

    Each instance has a process of its own. If that crashes or overruns its time, the result is error or timeout.

    The results are written as the competition writes them. The same command continues a run that was stopped.
    """
    from certtrain import render
    from certtrain.competition.results import results_file
    from certtrain.competition.summary import contradictions, tallies

    instances = _instances(lists, options.timeout, comparison.expected)
    settings = options.settings()
    with results_file(options.out, asdict(settings), force=comparison.force) as results:
        end = _run(instances, settings, results, options.jobs, comparison)
    differing = contradictions(instances, results.results)
    _show(tallies(instances, results.results), differing, results, comparison.as_json)
    if end is ExitCode.INTERRUPTED:
        render.note(f"stopped; continue with: {shlex.join(['certtrain', *_again()])}")
    if end is ExitCode.DONE and differing:
        end = ExitCode.DOES_NOT_HOLD
    raise typer.Exit(end)


def _show(counts: "Sequence[Tally]", differing: "Sequence[Instance]", results: "ResultsFile", as_json: bool) -> None:
    from certtrain import render

    if as_json:
        found = {tally.category: tally.to_dict() for tally in counts}
        wrong = [
            {**each.key._asdict(), "result": results.results[each.key].word, "expected": each.expected}
            for each in differing
        ]
        render.show_json({"out": str(results.path), "categories": found, "contradictions": wrong})
    else:
        render.show_tallies(counts)
        render.show_contradictions(differing, results.results)
        render.say(f"wrote {results.path}")


def _again() -> list[str]:
    return [word for word in sys.argv[1:] if word != "--force"]


def _instances(lists: Sequence[Path], most: float | None, expected: Path | None) -> "list[Instance]":
    """The instances of all lists. Prints which files are absent. Raises BenchmarkError if all are."""
    from certtrain import render
    from certtrain.competition.instances import limited, read_expected, read_instances, with_expected
    from certtrain.errors import BenchmarkError

    found = limited([instance for path in lists for instance in read_instances(path)], most)
    absent = [each for each in found if each.network is None or each.property is None]
    if absent:
        first = absent[0]
        name = first.key.network if first.network is None else first.key.property
        about = f"{len(absent):,} of {len(found):,} instances lack a file, first {first.folder / name}"
        if len(absent) == len(found):
            raise BenchmarkError(about)
        render.note(f"{about}; they are left out")
    return found if expected is None else with_expected(found, read_expected(expected))


def _run(
    instances: "Sequence[Instance]",
    settings: "Options",
    results: "ResultsFile",
    jobs: int,
    comparison: BenchOutput,
) -> ExitCode:
    """Run the instances without a result, and write and show each; FAULT if certtrain contradicted itself in one."""
    from certtrain import render
    from certtrain.competition.running import run_instances

    stop, fault = Stopper(None), False
    there = [each for each in instances if each.network is not None and each.property is not None]
    left = [each for each in there if each.key not in results.results]
    if len(left) < len(there):
        render.note(f"{len(there) - len(left):,} of {len(there):,} instances have a result already")
    files = comparison.counterexamples
    run = run_instances(left, settings, jobs=jobs, counterexamples=files, stopped=lambda: stop.interrupted)
    with closing(run):  # so that no process goes on if a result cannot be written
        for number, done in enumerate(run, len(there) - len(left) + 1):
            results.add(done.instance.key, done.result, done.details)
            fault |= done.details.get("exit_code") == ExitCode.FAULT
            if not comparison.as_json:
                render.show_done(done, number, len(there))
    if stop.interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.FAULT if fault else ExitCode.DONE
