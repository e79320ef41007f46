"""Instances of the verification competition, decided by certtrain and compared with the published verdicts.

Every instance of instances.csv whose files lie in --files is decided in a process of its own, as by `certtrain bench`.
ONNX Runtime runs each network at the counterexamples: at the nearest input of the network's own precision that lies in
the box, without any tolerance. README.md says where the files come from. The results file is that of `certtrain bench`,
and the same command continues it. The exit code is 1 if a result contradicts a published verdict, or if ONNX Runtime
does not confirm a counterexample.

python benchmarks/foreign/run.py --files ~/vnncomp --timeout 30s --out foreign.csv
"""

import argparse
import csv
import gzip
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from certtrain.cli.options import memory_size, seconds
from certtrain.competition.instances import EXPECTED_WORDS, Instance, Key
from certtrain.competition.results import InstanceResult, results_file
from certtrain.competition.running import Options, counterexample_files, run_instances
from certtrain.competition.summary import contradicts
from certtrain.interchange.packed import is_packed
from certtrain.interchange.vnnlib import read_property
from certtrain.properties.cases import Case

LIST = Path(__file__).with_name("instances.csv")
DECIDED = ("sat", "unsat")
DTYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}

DISPUTED = "disputed"  # the note of an instance without a verdict to expect


class Published(NamedTuple):
    """An instance, and what α,β-CROWN answered each time that the instance was run: a word and its seconds."""

    instance: Instance
    others: tuple[tuple[str, float], ...]

    def other_decided(self, time_limit: float) -> bool:
        """Whether α,β-CROWN decided it within that time, and did not contradict the published verdict."""
        allowed = DECIDED if self.instance.expected is None else (self.instance.expected,)
        return any(word in allowed and taken <= time_limit for word, taken in self.others)


def main(words: Sequence[str] | None = None) -> None:
    arguments = _arguments(words)
    published = read_list(LIST, arguments.files, arguments.timeout, arguments.sets)
    there = [each for each in published if each.instance.network and each.instance.property]
    print(f"{len(there)} of {len(published)} instances have both files in {arguments.files}", flush=True)
    threads = 1 if arguments.jobs > 1 else None
    options = Options(method=arguments.method, timeout=arguments.timeout, memory=arguments.memory, threads=threads)
    instances, folder = [each.instance for each in there], arguments.out.with_suffix(".counterexamples")
    with results_file(arguments.out, asdict(options)) as results:
        left = [each for each in instances if each.key not in results.results]
        with closing(run_instances(left, options, jobs=arguments.jobs, counterexamples=folder)) as run:
            for done in run:
                results.add(done.instance.key, done.result, done.details)
                key, result = done.instance.key, done.result
                print(f"{result.word:<8}{result.seconds:8.2f} s  {key.network}  {key.property}", flush=True)
                if "message" in done.details:
                    print(f"  {done.details['message']}", flush=True)
        print(table(published, results.results, arguments.timeout))
        wrong = contradictions(instances, results.results) + unconfirmed(instances, results.results, folder)
    print("\n".join([*wrong, f"{len(wrong)} results are contradicted or not confirmed"]))
    sys.exit(1 if wrong else 0)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True, metavar="FOLDER", help="a folder SET for each set")
    parser.add_argument("--timeout", type=seconds, default=30.0, metavar="TIME", help="for each instance; 30s")
    parser.add_argument("--out", type=Path, default=Path("foreign.csv"), metavar="FILE", help="the results")
    parser.add_argument("--method", default="complete", choices=("crown-ibp", "complete", "milp"))
    parser.add_argument("--memory", type=memory_size, metavar="SIZE", help="as of `certtrain decide`")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="instances at a time")
    parser.add_argument("--sets", nargs="+", metavar="SET", help="only these sets")
    return parser.parse_args(words)


def read_list(path: Path, files: Path, time_limit: float, sets: Sequence[str] | None = None) -> list[Published]:
    """The instances of the list, those of some sets alone if `sets` names them."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if sets is None or row["set"] in sets]
    if not rows:
        sys.exit(f"{path} has no instance of the sets {', '.join(sets or ())}")
    return [_published(row, files, time_limit) for row in rows]


def _published(row: Mapping[str, str], files: Path, time_limit: float) -> Published:
    name = row["set"]
    key = Key(name, f"{name}/{row['network']}", f"{name}/{row['property']}")
    runs = [run.split(":") for run in row["alpha_beta_crown"].split(";") if run]
    others = tuple((word, float(taken)) for _, word, taken in runs)
    expected = None if row["note"] == DISPUTED else EXPECTED_WORDS.get(row["published"])
    return Published(Instance(key, files.resolve(), time_limit, expected), others)


def table(published: Sequence[Published], results: Mapping[Key, InstanceResult], time_limit: float) -> str:
    """A line for each set and one for all: how many were tried and decided, by α,β-CROWN too, and contradictions.

    α,β-CROWN's numbers are about the instances that were tried.
    """
    tried = [each for each in published if each.instance.key in results]
    sets = list(dict.fromkeys(each.instance.key.category for each in published))
    lines = [f"{'set':<24}{'listed':>7}{'tried':>7}{'certtrain':>11}{'α,β-CROWN':>11}{'contradictions':>16}"]
    for name in [*sets, "all"]:
        own = [each for each in tried if name in (each.instance.key.category, "all")]
        words = [results[each.instance.key] for each in own]
        counts = (
            sum(name in (each.instance.key.category, "all") for each in published),
            len(own),
            sum(found.word in DECIDED for found in words),
            sum(each.other_decided(time_limit) for each in own),
            sum(contradicts(each.instance, found) for each, found in zip(own, words, strict=True)),
        )
        lines.append(f"{name:<24}" + "".join(f"{n:>{w}}" for n, w in zip(counts, (7, 7, 11, 11, 16), strict=True)))
    return "\n".join([*lines, f"certtrain, α,β-CROWN: instances decided within {time_limit:g} s, each on its machine"])


def contradictions(instances: Sequence[Instance], results: Mapping[Key, InstanceResult]) -> list[str]:
    """A line for each result that contradicts the published verdict."""
    found = [(each, results[each.key]) for each in instances if each.key in results]
    return [
        f"{each.key.network}, {each.key.property}: {result.word}, but {each.expected} is published"
        for each, result in found
        if contradicts(each, result)
    ]


def unconfirmed(instances: Sequence[Instance], results: Mapping[Key, InstanceResult], folder: Path) -> list[str]:
    """A line for each counterexample that ONNX Runtime does not confirm."""
    found, sat = [], 0
    for instance, file in zip(instances, counterexample_files(instances, folder), strict=True):
        if instance.key in results and results[instance.key].word == "sat":
            sat += 1
            assert file is not None
            if problem := _problem(instance, read_inputs(file)):
                found.append(f"{instance.key.network}, {instance.key.property}: {problem}")
    print(f"ONNX Runtime confirms {sat - len(found)} of {sat} counterexamples")
    return found


def read_inputs(path: Path) -> Tensor:
    """The input (N,) of a counterexample file, float64."""
    values = re.findall(r"\(X_\d+ ([^)]+)\)", path.read_text(encoding="utf-8"))
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _problem(instance: Instance, point: Tensor) -> str | None:
    """Why an input (N,) is no counterexample for ONNX Runtime; None if it is one."""
    assert instance.network is not None
    assert instance.property is not None
    session = _session(instance.network)
    (given,) = session.get_inputs()
    problem = "the counterexample lies in no box of the property"
    for case in read_property(instance.property).cases:
        if bool(((point >= case.lower) & (point <= case.upper)).all()):
            own = inside(point, case, DTYPES[given.type])
            if own is None:
                problem = "its box contains no input of the network's precision"
                continue
            shape = [size if isinstance(size, int) and size > 0 else 1 for size in given.shape]
            (outputs, *_) = session.run(None, {given.name: own.view(shape).numpy()})
            if bool(case.violated_by(torch.from_numpy(outputs).view(1, -1)).all()):
                return None
            problem = "ONNX Runtime does not confirm the counterexample"
    return problem


def inside(point: Tensor, case: Case, dtype: torch.dtype) -> Tensor | None:
    """The input of that precision nearest to `point` (N,) in the case's box; None if the box contains none."""
    lower, upper = case.lower.to(dtype), case.upper.to(dtype)
    lower = torch.where(lower.double() < case.lower, lower.nextafter(torch.full_like(lower, torch.inf)), lower)
    upper = torch.where(upper.double() > case.upper, upper.nextafter(torch.full_like(upper, -torch.inf)), upper)
    return torch.clamp(point.to(dtype), lower, upper) if bool((lower <= upper).all()) else None


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3  # errors alone
    source = gzip.decompress(path.read_bytes()) if is_packed(path) else str(path)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
