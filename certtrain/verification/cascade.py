"""The cascade: cheap steps on every point, each dearer one on the points still open, as long as there is time."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor, nn

from certtrain.data import ImageSet, to_unit
from certtrain.errors import SoundnessError
from certtrain.runtime.deadline import NEVER, Deadline
from certtrain.runtime.device import device_of
from certtrain.verdicts import Verdict
from certtrain.verification.results import Point
from certtrain.verification.steps import INFERENCE, Batch, Found, Round, Step

SOON = 0.5  # seconds that a batch is expected to take, at most, where time is limited

OnPoints = Callable[[list[Point]], None]
OnRound = Callable[[tuple[str, ...], int], None]


@dataclass(frozen=True)
class Limits:
    """Time that may be spent, in seconds; None for no limit.

    timeout: by one point in the rounds after the first; points that go through a step together share their time.
        A point does not enter a round that, by what a point took there so far, would take it longer, unless the
        round's steps decide one point after the other.
    budget: in all, but for inference, which every point goes through first, whatever it takes.

    A step that bounds or searches breaks off at either. Of others, and of what a broken one still has to do, a batch
    is small enough to take less than a second, by what a point took there so far.
    """

    timeout: float | None = None
    budget: float | None = None


UNLIMITED = Limits()


@dataclass
class Cascade:
    """Goes through `rounds` with the points of `images`, which are `known` as far as they were decided before.

    The first step of the first round is inference.
    """

    model: nn.Module
    images: ImageSet
    eps: float
    rounds: Sequence[Round]
    limits: Limits = UNLIMITED
    known: Sequence[Point] = ()
    on_points: OnPoints = lambda points: None
    on_round: OnRound = lambda names, points: None
    points: dict[int, Point] = field(default_factory=dict, init=False)
    budget: Deadline = field(default=NEVER, init=False)

    def run(self) -> list[Point]:
        """Every point, by number. Raises SoundnessError if a certified point was attacked: then a bound is wrong."""
        self.budget = Deadline.after(self.limits.budget)
        self.points = {point.index: point for point in self.known}
        first, *dear = self.rounds
        if self.budget.limited:  # the natural accuracy is that of all points, whatever else there is time for
            first = self._classified(first)
        for each in [first] if first.steps else []:
            self._round(each, dear=False)
        for each in dear:
            self._round(each, dear=True)
        return [self.points[index] for index in range(len(self.images))]

    def _classified(self, first: Round) -> Round:
        """Take every point through inference, and leave the other steps of the first round."""
        inference = replace(first, steps=first.steps[:1])
        untouched = [index for index in range(len(self.images)) if index not in self.points]
        self.on_round(inference.names, len(untouched))
        for numbers in _batches(untouched, first.size):
            self._tell(self._work(inference.steps, numbers))
        return replace(first, steps=first.steps[1:])

    def _round(self, each: Round, *, dear: bool) -> None:
        """Each batch through the steps; the first round takes every point, the others those that are open."""
        entering = [index for index in range(len(self.images)) if self._needs(index, each)]
        entering = [index for index in entering if not dear or self._has_time(index, 0.0)]
        self.on_round(each.names, len(entering))
        # What a point takes is known after the first one, and better after more: with limits few go in at once before.
        most = 1 if self._limited(dear) else each.size
        spent, worked = 0.0, 0
        while entering and not self.budget.over():
            expected = spent / worked if worked else 0.0
            count = self._affordable(most, expected, dear=dear)
            chunk, entering, most = entering[:count], entering[count:], min(2 * most, each.size)
            known = 0.0 if each.timed else expected
            if numbers := [index for index in chunk if not dear or self._has_time(index, known)]:
                done = self._work(each.steps, numbers)
                spent += sum(point.tried.get(name, 0.0) for point in done for name in each.names)
                worked += len(done)
                self._tell(done)

    def _limited(self, dear: bool) -> bool:
        return self.limits.budget is not None or (dear and self.limits.timeout is not None)

    def _affordable(self, most: int, expected: float, *, dear: bool) -> int:
        """How many points, of at most so many, take no more than the budget lasts for, and soon; at least one."""
        if not self._limited(dear) or expected == 0:
            return most
        left = self.budget.left
        return max(1, min(most, int(min(SOON, SOON if left is None else left) / expected)))

    def _needs(self, index: int, each: Round) -> bool:
        point = self.points.get(index)
        if point is None:
            return True
        return point.verdict == "open" and not set(each.names) <= point.tried.keys()

    def _has_time(self, index: int, expected: float) -> bool:
        """Whether a point has time for a round in which a point takes `expected` seconds."""
        return self.limits.timeout is None or self.limits.timeout - self._spent(index) > expected

    def _spent(self, index: int) -> float:
        cheap = self.rounds[0].names
        return sum(seconds for name, seconds in self.points[index].tried.items() if name not in cheap)

    def _work(self, steps: Sequence[Step], numbers: list[int]) -> list[Point]:
        """The points of these numbers after the steps; what all of them have tried is not tried again."""
        labels = self.images.labels[numbers].tolist()
        points = [self.points.get(n) or Point(n, y, "open", None) for n, y in zip(numbers, labels, strict=True)]
        seconds = self._left(numbers)
        for step in steps:
            # Of a misclassified point there is nothing left to know.
            rows = [row for row, point in enumerate(points) if point.verdict != "misclassified"]
            if all(step.name in points[row].tried for row in rows):
                continue
            for row, point in zip(rows, self._step(step, [points[row] for row in rows], seconds), strict=True):
                points[row] = point
        return points

    def _step(self, step: Step, points: Sequence[Point], seconds: float) -> Iterator[Point]:
        """The points after one step, which one of them may take so many seconds."""
        start = time.monotonic()
        found = step(self._batch([point.index for point in points], seconds))
        rows = list(_rows(found, len(points)))
        took = (time.monotonic() - start) / len(points)
        for point, row in zip(points, rows, strict=True):
            yield _settled(point, step.name, took, row) if found.complete or row.verdict != "open" else point

    def _left(self, numbers: Sequence[int]) -> float:
        """Seconds that each of the points may still take; those that nothing is known of are in the first round."""
        if self.limits.timeout is None:
            return math.inf
        return min(self.limits.timeout - (self._spent(n) if n in self.points else 0.0) for n in numbers)

    def _batch(self, numbers: Sequence[int], seconds: float) -> Batch:
        device, rows = device_of(self.model), list(numbers)
        x = to_unit(self.images.images[rows].to(device))
        return Batch(rows, x, self.images.labels[rows].to(device), self.eps, self.budget, seconds)

    def _tell(self, points: list[Point]) -> None:
        """Of a point of which nothing new is known nothing is told: a step broke off."""
        points = [point for point in points if point != self.points.get(point.index)]
        self.points |= {point.index: point for point in points}
        if points:
            self.on_points(points)


def _batches(numbers: list[int], size: int) -> Iterator[list[int]]:
    return (numbers[first : first + size] for first in range(0, len(numbers), size))


class Row(NamedTuple):
    """What a step has found about one point."""

    verdict: Verdict
    margin: float | None
    counterexample: Tensor | None
    trees: Mapping[int, str]


def _rows(found: Found, count: int) -> Iterator[Row]:
    margins = [None] * count if found.margins is None else found.margins.tolist()
    finite = [None] * count if found.margins is None else found.margins.isfinite().tolist()
    for n in range(count):
        verdict = found.verdicts[n]
        hit = found.counterexamples if verdict == "falsified" else None
        trees = {} if found.trees is None else found.trees[n]
        yield Row(verdict, margins[n] if finite[n] else None, None if hit is None else hit[n].cpu(), trees)


def _settled(point: Point, name: str, seconds: float, row: Row) -> Point:
    """The point after a step; a verdict that it has stays, and one that contradicts it is an error."""
    verdict, margin, counterexample, trees = row
    if point.verdict == "falsified" and verdict == "certified":
        raise SoundnessError(
            f"example {point.index} is certified with margin {margin}, yet an input in its box is misclassified. "
            "A bound is wrong or the margin is within rounding error: do not trust this model's certificates."
        )
    point = replace(
        point, tried={**point.tried, name: point.tried.get(name, seconds)}, margin=_greater(point.margin, margin)
    )
    if point.verdict != "open" or verdict == "open":
        return point
    # A step of another batch size may round otherwise, and then it was inference that saw the error.
    method = INFERENCE if verdict == "misclassified" else name
    return replace(point, verdict=verdict, method=method, counterexample=counterexample, trees=trees)


def _greater(first: float | None, second: float | None) -> float | None:
    known = [margin for margin in (first, second) if margin is not None]
    return max(known, default=None)
