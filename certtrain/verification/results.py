"""What is known about each example of a set, and the counts over them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from certtrain.verdicts import VERDICTS, Verdict


@dataclass(frozen=True)
class ExampleResult:
    """What is known about one example.

    margin: the greatest of the lower bounds of its smallest margin that the
        methods found; None where none is finite.
    method: the step that decided it; None while it is open.
    tried: all that was tried, in its order, with the seconds that each took.
    counterexample: (C, H, W) float32 on the CPU, where it is falsified.
    trees: by class j, the splits under which logit[label] − logit[j] is proved
        to be above zero, as text; where complete verification certified it.
    """

    index: int
    label: int
    verdict: Verdict
    margin: float | None
    method: str | None = None
    tried: Mapping[str, float] = field(default_factory=dict)
    counterexample: Tensor | None = field(default=None, compare=False, repr=False)
    trees: Mapping[int, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class StepSummary:
    """One step of a cascade: how many examples came to it, how many of them it decided, and its seconds in all."""

    name: str
    examples: int
    decided: int
    seconds: float

    @property
    def seconds_per_example(self) -> float:
        """0 where none came to it."""
        return self.seconds / self.examples if self.examples else 0.0

    def to_dict(self) -> dict[str, str | int | float]:
        """As in reports, which call the examples points."""
        return {"name": self.name, "points": self.examples, "decided": self.decided, "seconds": self.seconds}


class HasVerdict(Protocol):
    """A result, or a record of one."""

    @property
    def verdict(self) -> Verdict:
        """One of `VERDICTS`."""


def count(results: Iterable[HasVerdict]) -> dict[Verdict, int]:
    """How many of the results have each verdict."""
    counts = dict.fromkeys(VERDICTS, 0)
    for result in results:
        counts[result.verdict] += 1
    return counts


def step_summaries(results: Sequence[ExampleResult], names: Iterable[str]) -> tuple[StepSummary, ...]:
    """A summary for each of the steps in `names`."""
    return tuple(_summary(name, results) for name in names)


def _summary(name: str, results: Sequence[ExampleResult]) -> StepSummary:
    seconds = [result.tried[name] for result in results if name in result.tried]
    return StepSummary(name, len(seconds), sum(result.method == name for result in results), sum(seconds))
