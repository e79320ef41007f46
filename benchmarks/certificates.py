"""How many examples each bound method certifies, how long it takes, and the cost of the deployed network's rounding.

Every example is classified and attacked once, in float32. Examples that are neither misclassified nor falsified are
then bounded by each method, which takes the largest of its own margins and those of all faster methods, as
`certtrain verify --method` does. The arithmetics alternate, batch by batch. "no rounding" leaves out every rounding
term, the verifier's own too: it proves nothing, and is the baseline for the rounding terms. The last row is the
cascade, `verify --method auto`, in float32, in which each method gets only the examples that faster ones left open.

python benchmarks/certificates.py model.safetensors --data-dir data --limit 200
python benchmarks/certificates.py a.safetensors b.safetensors --eps 0.3 0.02 --data-dir data --limit 200
python benchmarks/certificates.py untrained.safetensors --data-dir data --limit 4 --methods crown-ibp --every-point
"""

import argparse
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from certtrain.attack import PGD
from certtrain.bounds.methods import METHODS
from certtrain.bounds.rounding import ARITHMETICS
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.data import ImageSet, to_unit
from certtrain.network.assembly import load_split
from certtrain.network.modelfile import Classifier, read_model
from certtrain.runtime.allocator import keep_freed_memory
from certtrain.runtime.precision import tensor_cores
from certtrain.spec.epsilon import parse_eps
from certtrain.verification.cascade import Cascade
from certtrain.verification.methods import examples_at_once, names_of, rounds_of
from certtrain.verification.results import ExampleResult, StepSummary, count, step_summaries
from certtrain.verification.steps import ATTACK, AttackStep, BoundStep, ExampleBatch, InferenceStep, Round

NO_ROUNDING, DEPLOYED = "no rounding", "float32"
COARSE = ("tf32", "bf16")  # only for the methods in `FAST`
FAST = ("ibp", "crown-ibp")


@dataclass(frozen=True)
class Subject:
    """A network with the images on which it is verified."""

    network: Classifier
    images: ImageSet
    eps: float
    batch_size: int

    def cascade(self, rounds: Sequence[Round], known: Sequence[ExampleResult] = ()) -> list[ExampleResult]:
        """The results of all examples after these rounds."""
        return Cascade(self.network, self.images, self.eps, rounds, known=known).run()

    def batch(self, numbers: list[int]) -> ExampleBatch:
        """The examples with these numbers."""
        return ExampleBatch(numbers, to_unit(self.images.images[numbers]), self.images.labels[numbers], self.eps)


@dataclass
class Column:
    """The results of one method in one arithmetic.

    certified, misclassified: numbers of examples. times: for each batch, seconds for each example, and its size.
    processor: processor seconds in all, which depend less on other work on the machine. margins: lower bounds (B,) of
    the smallest margins, for each batch.
    """

    certified: int = 0
    misclassified: int = 0
    times: list[tuple[float, int]] = field(default_factory=list)
    processor: float = 0.0
    margins: list[Tensor] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        return sum(seconds * size for seconds, size in self.times)

    @property
    def median(self) -> float:
        """Seconds of the median example; the examples of a batch share its time equally."""
        return statistics.median([seconds for seconds, size in self.times for _ in range(size)] or [0.0])


def bounding(subject: Subject, method: str, arithmetic: str, first: ExampleBatch) -> BoundStep:
    """The step of the method in that arithmetic, which has run on one batch with ε = 0, so that it is warmed up."""
    step = BoundStep(subject.network, method, "real" if arithmetic == NO_ROUNDING else arithmetic, skip_faster=False)
    step(first._replace(eps=0.0))
    if arithmetic == NO_ROUNDING:
        assert step.certifier is not None
        step.certifier.settings = replace(step.certifier.settings, rounding=None)
    return step


def measure(subject: Subject, method: str, arithmetics: Sequence[str], numbers: list[int]) -> dict[str, Column]:
    """The results of the method on the examples with these numbers, in each arithmetic in turn."""
    size = examples_at_once(method, subject.batch_size)
    before = subject.batch(numbers[:size])
    columns = {arithmetic: Column() for arithmetic in arithmetics}
    steps = {arithmetic: bounding(subject, method, arithmetic, before) for arithmetic in arithmetics}
    for first in range(0, len(numbers), size):
        batch = subject.batch(numbers[first : first + size])
        for arithmetic, column in columns.items():
            start, used = time.perf_counter(), time.process_time()
            found = steps[arithmetic](batch)
            column.processor += time.process_time() - used
            column.times.append(((time.perf_counter() - start) / len(batch.numbers), len(batch.numbers)))
            assert found.margins is not None  # since a bound method always gives margins
            column.margins.append(found.margins)
            column.certified += found.verdicts.count("certified")
            column.misclassified += found.verdicts.count("misclassified")
    return columns


def arithmetics_of(method: str, wanted: Sequence[str]) -> list[str]:
    """The arithmetics for a method: the coarse ones only if the method is fast."""
    return [NO_ROUNDING, *(name for name in wanted if method in FAST or name not in COARSE)]


def show_methods(found: dict[str, dict[str, Column]], results: Sequence[ExampleResult], numbers: list[int]) -> None:
    """The table of the methods in float32; `results` are those of the attack, empty if there was none."""
    counts, attacked = count(results), bool(results)
    print("| method | certified | falsified | open | misclassified | s/example, median | s in all | times ibp |")
    print("|---|---|---|---|---|---|---|---|")
    fastest = found["ibp"][DEPLOYED].seconds if "ibp" in found else None
    for method, columns in found.items():
        mine = columns[DEPLOYED]
        ratio = f"{mine.seconds / fastest:,.1f}" if fastest else "–"
        falsified = str(counts["falsified"]) if attacked else "–"
        misclassified = counts["misclassified"] + mine.misclassified
        left = len(numbers) - mine.certified - mine.misclassified
        others = f"{falsified} | {left} | {misclassified}"
        print(f"| {method} | {mine.certified} | {others} | {mine.median:.4f} | {mine.seconds:.1f} | {ratio} |")


def show_cascade(results: Sequence[ExampleResult], fastest: float | None) -> None:
    """The cascade as a row of the table of the methods, and its steps."""
    counts, steps = count(results), step_summaries(results, names_of("auto", PGD()))
    bounds = [sum(s for name, s in result.tried.items() if name in METHODS) for result in results]
    spent = [seconds for seconds in bounds if seconds > 0] or [0.0]
    ratio = f"{sum(spent) / fastest:,.1f}" if fastest else "–"
    verdicts = " | ".join(str(counts[name]) for name in ("certified", "falsified", "open", "misclassified"))
    print(f"| auto | {verdicts} | {statistics.median(spent):.4f} | {sum(spent):.1f} | {ratio} |")
    print("\nauto, step by step: " + "; ".join(_step(step) for step in steps))


def _step(step: StepSummary) -> str:
    return f"{step.name} decided {step.decided} of {step.examples} in {step.seconds:.1f} s"


def show_arithmetics(found: dict[str, dict[str, Column]], numbers: list[int]) -> None:
    """The table of the arithmetics: examples certified, and processor time as a multiple of that without rounding."""
    print(
        f"\nOf {len(numbers):,} examples bounded, certified by arithmetic (times the processor time of no rounding):\n"
    )
    names = list(dict.fromkeys(name for columns in found.values() for name in columns))
    print(f"| method | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for method, columns in found.items():
        base = columns[NO_ROUNDING].processor
        cells = [_cell(columns[name], base) if name in columns else "–" for name in names]
        print(f"| {method} | {' | '.join(cells)} |")


def _cell(column: Column, base: float) -> str:
    return f"{column.certified} ({column.processor / base:.2f})" if base else str(column.certified)


def show_losses(found: dict[str, dict[str, Column]]) -> None:
    """The median loss of the smallest margin in each arithmetic."""
    print("\nloss of the smallest margin, median:")
    for method, columns in found.items():
        ideal = torch.cat(columns[NO_ROUNDING].margins)
        lost = {name: ideal - torch.cat(c.margins) for name, c in columns.items() if name != NO_ROUNDING}
        each = ", ".join(f"{name} {values.median().item():.2g}" for name, values in lost.items())
        print(f"- {method}, of {ideal.abs().median().item():.3g}: {each}")


@tensor_cores(False)
def run(subject: Subject, methods: Sequence[str], arithmetics: Sequence[str], every_point: bool, steps: int) -> None:
    """Print all tables of one network."""
    network, attack = subject.network, PGD(steps=steps)
    seen = Round((InferenceStep(network, DEPLOYED), AttackStep(network, attack, DEPLOYED)), subject.batch_size)
    known = [] if every_point else subject.cascade([seen])
    numbers = [p.index for p in known if p.verdict == "open"] if known else list(range(len(subject.images)))
    if not numbers:
        print("\nno example is left to bound: all are misclassified or falsified")
        return
    found = {name: measure(subject, name, arithmetics_of(name, arithmetics), numbers) for name in methods}
    if known:
        (attacked,) = step_summaries(known, [ATTACK])
        print(f"attack: {attacked.seconds_per_example:.4f} s/example")
    print()
    show_methods(found, known, numbers)
    if known:
        rounds = rounds_of(network, "auto", attack, subject.batch_size, DEPLOYED, VERDICT_SETTINGS)
        show_cascade(subject.cascade(rounds, known), found["ibp"][DEPLOYED].seconds if "ibp" in found else None)
    show_arithmetics(found, numbers)
    show_losses(found)


def main(given: list[str] | None = None) -> None:
    """Parse the arguments and print the tables of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model files")
    parser.add_argument("--eps", nargs="+", default=[], help="ε for each model; by default that of its training")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--limit", type=int, default=200, help="number of test examples, from the first on")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--arithmetics", nargs="*", default=list(ARITHMETICS), choices=list(ARITHMETICS))
    parser.add_argument(
        "--batch-size", type=int, default=200, help="examples at a time; a tenth of it for methods other than ibp"
    )
    parser.add_argument("--pgd-steps", type=int, default=20)
    parser.add_argument("--every-point", action="store_true", help="bound all examples, without attack and cascade")
    arguments = parser.parse_args(given)
    if arguments.eps and len(arguments.eps) != len(arguments.models):
        parser.error("--eps takes one value for each model")
    keep_freed_memory()
    wanted = list(dict.fromkeys([*arguments.arithmetics, DEPLOYED]))
    for number, file in enumerate(arguments.models):
        network = read_model(file)
        images = load_split(network.metadata, "test", arguments.data_dir).take(arguments.limit)
        eps = parse_eps(arguments.eps[number]) if arguments.eps else network.metadata.eps
        print(f"\n{file}: the first {len(images):,} test examples, ε = {eps:.4f}, ", end="")
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
        subject = Subject(network, images, eps, arguments.batch_size)
        run(subject, arguments.methods, wanted, arguments.every_point, arguments.pgd_steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"\npeak memory of the process: {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
