"""What each bound method certifies, what it costs, and what the deployed network's rounding costs.

Every example is classified and attacked once, in float32. Those that are neither misclassified nor falsified are
then bounded by each method, which takes the largest of its own margins and those of all cheaper methods, as
`certtrain verify --method` does. The arithmetics are interleaved, batch by batch. "no rounding" leaves out every
rounding term, the verifier's own too: it proves nothing, and is what the terms are compared with. Last comes the
cascade, `verify --method auto`, in float32, which gives each method only what the cheaper ones left open.

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
from certtrain.bounds.settings import VERDICTS_ALONE
from certtrain.data import ImageSet, to_unit
from certtrain.network.assembly import load_split
from certtrain.network.modelfile import Classifier, load_model
from certtrain.runtime.allocator import keep_freed_memory
from certtrain.runtime.precision import tensor_cores
from certtrain.spec.epsilon import parse_eps
from certtrain.verification.cascade import Cascade
from certtrain.verification.methods import examples_at_once, names_of, rounds_of
from certtrain.verification.results import ExampleResult, StepSummary, count, step_summaries
from certtrain.verification.steps import ATTACK, AttackStep, BoundStep, ExampleBatch, InferenceStep, Round

NO_ROUNDING, DEPLOYED = "no rounding", "float32"
COARSE = ("tf32", "bf16")  # asked of the methods in `CHEAP` alone
CHEAP = ("ibp", "crown-ibp")


@dataclass(frozen=True)
class Subject:
    """A network with the images that it is asked about."""

    network: Classifier
    images: ImageSet
    eps: float
    batch_size: int

    def cascade(self, rounds: Sequence[Round], known: Sequence[ExampleResult] = ()) -> list[ExampleResult]:
        """All points after these rounds."""
        return Cascade(self.network, self.images, self.eps, rounds, known=known).run()

    def batch(self, numbers: list[int]) -> ExampleBatch:
        """The points of these numbers."""
        return ExampleBatch(numbers, to_unit(self.images.images[numbers]), self.images.labels[numbers], self.eps)


@dataclass
class Column:
    """What one method has done in one arithmetic: points certified, and seconds a point of each batch with its size.

    processor: seconds of this process in all, which other work on the machine lengthens less.
    margins: lower bounds (B,) of the smallest margins, for each batch.
    """

    certified: int = 0
    misclassified: int = 0
    times: list[tuple[float, int]] = field(default_factory=list)
    processor: float = 0.0
    margins: list[Tensor] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """In all."""
        return sum(seconds * size for seconds, size in self.times)

    @property
    def median(self) -> float:
        """Seconds of the median point; a batch's points share its time alike."""
        return statistics.median([seconds for seconds, size in self.times for _ in range(size)] or [0.0])


def bounding(subject: Subject, method: str, arithmetic: str, first: ExampleBatch) -> BoundStep:
    """The method in that arithmetic, its copy of the network made; it has done a batch already, with ε = 0."""
    step = BoundStep(subject.network, method, "real" if arithmetic == NO_ROUNDING else arithmetic, alone=False)
    step(first._replace(eps=0.0))
    if arithmetic == NO_ROUNDING:
        assert step.certifier is not None
        step.certifier.settings = replace(step.certifier.settings, rounding=None)
    return step


def measure(subject: Subject, method: str, arithmetics: Sequence[str], numbers: list[int]) -> dict[str, Column]:
    """The method on the points of these numbers, in each arithmetic in turn."""
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
            assert found.margins is not None  # which a bound method always gives
            column.margins.append(found.margins)
            column.certified += found.verdicts.count("certified")
            column.misclassified += found.verdicts.count("misclassified")
    return columns


def arithmetics_of(method: str, wanted: Sequence[str]) -> list[str]:
    """The arithmetics that a method is asked in: the coarse ones only where that is cheap."""
    return [NO_ROUNDING, *(name for name in wanted if method in CHEAP or name not in COARSE)]


def show_methods(found: dict[str, dict[str, Column]], points: Sequence[ExampleResult], numbers: list[int]) -> None:
    """What each method does alone, in float32; without `points` there was no attack."""
    counts, attacked = count(points), bool(points)
    print("| method | certified | falsified | open | misclassified | s a point, median | s in all | times ibp |")
    print("|---|---|---|---|---|---|---|---|")
    cheapest = found["ibp"][DEPLOYED].seconds if "ibp" in found else None
    for method, columns in found.items():
        mine = columns[DEPLOYED]
        ratio = f"{mine.seconds / cheapest:,.1f}" if cheapest else "–"
        falsified = str(counts["falsified"]) if attacked else "–"
        misclassified = counts["misclassified"] + mine.misclassified
        left = len(numbers) - mine.certified - mine.misclassified
        others = f"{falsified} | {left} | {misclassified}"
        print(f"| {method} | {mine.certified} | {others} | {mine.median:.4f} | {mine.seconds:.1f} | {ratio} |")


def show_cascade(points: Sequence[ExampleResult], cheapest: float | None) -> None:
    """What the cascade did, as a line of the table of the methods, and its steps."""
    counts, steps = count(points), step_summaries(points, names_of("auto", PGD()))
    bounds = [sum(s for name, s in point.tried.items() if name in METHODS) for point in points]
    spent = [seconds for seconds in bounds if seconds > 0] or [0.0]
    ratio = f"{sum(spent) / cheapest:,.1f}" if cheapest else "–"
    verdicts = " | ".join(str(counts[name]) for name in ("certified", "falsified", "open", "misclassified"))
    print(f"| auto | {verdicts} | {statistics.median(spent):.4f} | {sum(spent):.1f} | {ratio} |")
    print("\nauto, step by step: " + "; ".join(_step(step) for step in steps))


def _step(step: StepSummary) -> str:
    return f"{step.name} decided {step.decided} of {step.examples} in {step.seconds:.1f} s"


def show_arithmetics(found: dict[str, dict[str, Column]], numbers: list[int]) -> None:
    """What each arithmetic certifies, and its processor time in multiples of bounds without any rounding term."""
    print(f"\nOf {len(numbers):,} points bounded, certified by arithmetic (processor time, times no rounding's):\n")
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
    """By how much each arithmetic lowers the smallest margin of the median point."""
    print("\nloss of the smallest margin, median:")
    for method, columns in found.items():
        ideal = torch.cat(columns[NO_ROUNDING].margins)
        lost = {name: ideal - torch.cat(c.margins) for name, c in columns.items() if name != NO_ROUNDING}
        each = ", ".join(f"{name} {values.median().item():.2g}" for name, values in lost.items())
        print(f"- {method}, of {ideal.abs().median().item():.3g}: {each}")


@tensor_cores(False)
def run(subject: Subject, methods: Sequence[str], arithmetics: Sequence[str], every_point: bool, steps: int) -> None:
    """Everything about one network, printed."""
    network, attack = subject.network, PGD(steps=steps)
    seen = Round((InferenceStep(network, DEPLOYED), AttackStep(network, attack, DEPLOYED)), subject.batch_size)
    known = [] if every_point else subject.cascade([seen])
    numbers = [p.index for p in known if p.verdict == "open"] if known else list(range(len(subject.images)))
    if not numbers:
        print("\nno point is left to bound: all are misclassified or falsified")
        return
    found = {name: measure(subject, name, arithmetics_of(name, arithmetics), numbers) for name in methods}
    if known:
        (attacked,) = step_summaries(known, [ATTACK])
        print(f"attack: {attacked.seconds_per_example:.4f} s a point")
    print()
    show_methods(found, known, numbers)
    if known:
        rounds = rounds_of(network, "auto", attack, subject.batch_size, DEPLOYED, VERDICTS_ALONE)
        show_cascade(subject.cascade(rounds, known), found["ibp"][DEPLOYED].seconds if "ibp" in found else None)
    show_arithmetics(found, numbers)
    show_losses(found)


def main(given: list[str] | None = None) -> None:
    """Parse the arguments and print the tables of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model files")
    parser.add_argument("--eps", nargs="+", default=[], help="ε for each model; by default the one it was trained for")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--limit", type=int, default=200, help="the first so many test examples")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--arithmetics", nargs="*", default=list(ARITHMETICS), choices=list(ARITHMETICS))
    parser.add_argument("--batch-size", type=int, default=200, help="a tenth of it in methods beyond ibp")
    parser.add_argument("--pgd-steps", type=int, default=20)
    parser.add_argument("--every-point", action="store_true", help="bound wrong points too, without attack and cascade")
    arguments = parser.parse_args(given)
    if arguments.eps and len(arguments.eps) != len(arguments.models):
        parser.error("--eps takes one value for each model")
    keep_freed_memory()
    wanted = list(dict.fromkeys([*arguments.arithmetics, DEPLOYED]))
    for number, file in enumerate(arguments.models):
        network = load_model(file)
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
