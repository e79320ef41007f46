"""What is known about each example of a set, and the counts over them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from certtrain.verdicts import VERDICTS, Verdict


@dataclass(frozen=True)
class Point:
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
class Stage:
    """One step of a cascade as it went: points tried, points that it decided, seconds in all."""

    name: str
    points: int
    decided: int
    seconds: float

    @property
    def seconds_per_point(self) -> float:
        """0 where no point was tried."""
        return self.seconds / self.points if self.points else 0.0


class Judged(Protocol):
    """What has a verdict."""

    @property
    def verdict(self) -> Verdict:
        """One of `VERDICTS`."""


def count(points: Iterable[Judged]) -> dict[Verdict, int]:
    """How many points have each verdict."""
    counts = dict.fromkeys(VERDICTS, 0)
    for point in points:
        counts[point.verdict] += 1
    return counts


def stages(points: Sequence[Point], names: Iterable[str]) -> tuple[Stage, ...]:
    """How each of the steps in `names` went."""
    return tuple(_stage(name, points) for name in names)


def _stage(name: str, points: Sequence[Point]) -> Stage:
    seconds = [point.tried[name] for point in points if name in point.tried]
    return Stage(name, len(seconds), sum(point.method == name for point in points), sum(seconds))
