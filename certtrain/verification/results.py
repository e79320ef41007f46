"""The results for the examples of a set, and counts over them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from certtrain.verdicts import VERDICTS, Verdict


@dataclass(frozen=True)
class ExampleResult:
    """The result for one example.

    margin: the largest lower bound of its smallest margin that a method found; None
        if none is finite.
    method: the step that decided it; None while it is open.
    tried: the steps it went through, in order, with the seconds that each took.
    counterexample: (C, H, W) float32 on the CPU, if it is falsified.
    trees: by class j, the tree that proves logit[label] − logit[j] to be above zero,
        as text, if complete verification certified it.
    cut: if it is open, those of the steps in `tried` that ran out of its time.
    """

    index: int
    label: int
    verdict: Verdict
    margin: float | None
    method: str | None = None
    tried: Mapping[str, float] = field(default_factory=dict)
    counterexample: Tensor | None = field(default=None, compare=False, repr=False)
    trees: Mapping[int, str] = field(default_factory=dict, repr=False)
    cut: tuple[str, ...] = ()

    def finished(self, step: str) -> bool:
        """Whether it went through the step to its end."""
        return step in self.tried and step not in self.cut


@dataclass(frozen=True)
class StepSummary:
    """One step of the cascade: how many examples went through it, how many it decided, and its total seconds."""

    name: str
    examples: int
    decided: int
    seconds: float

    @property
    def seconds_per_example(self) -> float:
        """The mean; 0 without examples."""
        return self.seconds / self.examples if self.examples else 0.0

    def to_dict(self) -> dict[str, str | int | float]:
        """The fields of reports."""
        return {"name": self.name, "examples": self.examples, "decided": self.decided, "seconds": self.seconds}


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


def certified_by(results: Iterable[ExampleResult], names: Iterable[str]) -> dict[str, int]:
    """The number of certified examples by the step that certified them, in the order of `names`."""
    methods = [result.method for result in results if result.verdict == "certified"]
    return {name: methods.count(name) for name in names if name in methods}


def step_summaries(results: Sequence[ExampleResult], names: Iterable[str]) -> tuple[StepSummary, ...]:
    """A summary for each of the steps in `names`."""
    return tuple(_summary(name, results) for name in names)


def _summary(name: str, results: Sequence[ExampleResult]) -> StepSummary:
    seconds = [result.tried[name] for result in results if name in result.tried]
    return StepSummary(name, len(seconds), sum(result.method == name for result in results), sum(seconds))
