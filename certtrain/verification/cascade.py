"""The cascade: fast steps on every example, then tighter and slower steps on those that are open, within limits."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor, nn

from certtrain.data import ImageSet, to_unit
from certtrain.errors import SoundnessError
from certtrain.runtime.deadline import DEFAULT_TIMEOUT, NEVER, Deadline, never
from certtrain.runtime.device import device_of
from certtrain.verdicts import Verdict
from certtrain.verification.results import ExampleResult
from certtrain.verification.shares import ALONE, Shares
from certtrain.verification.steps import INFERENCE, ExampleBatch, Round, StepResult, VerificationStep

SHARE_BEFORE_LAST = 0.25  # of an example's time left that a round may take, if a tighter one follows
MORE = 1.1  # so many times its last time is tried again
BATCH_SECONDS = 0.5  # the most that a batch is expected to take, where time is limited

OnExamples = Callable[[list[ExampleResult]], None]
OnRound = Callable[[tuple[str, ...], int], None]


class SearchState(NamedTuple):
    """The domains of a search so far: how many are closed and open, and the least lower bound of the open ones."""

    closed: int
    open: int
    bound: float


class Work(NamedTuple):
    """What begins or goes on: a step on the examples of these `numbers`; `domains` are those of a search.

    seconds: how many each example may take at most; infinity without a limit. radius: what a bisection tries now.
    """

    step: str
    numbers: Sequence[int]
    seconds: float
    domains: SearchState | None = None
    radius: float | None = None

    @property
    def begins(self) -> bool:
        """Whether it begins; False if it goes on."""
        return self.domains is None and self.radius is None


OnWork = Callable[[Work], None]


@dataclass(frozen=True)
class Limits:
    """Time that may be spent, in seconds; None for no limit.

    timeout: for one example, in all methods after inference, attack and interval bounds, which every example goes
        through. Examples in one batch share their time. An example does not get to a method that is expected to take
        longer than the time that it has left, by the mean time of earlier examples; but a search uses what is left. A
        method that was cut short for an example is tried again when it may take longer than it did; it then begins
        anew, and only its new time counts.
    budget: for everything but inference, which every example goes through first.

    A method that another one follows may take a quarter of the time that an example has left, so that the last has most
    of it. Bound methods, attacks and searches stop at either limit. Batches are small enough that everything else takes
    less than a second, by the mean time so far.
    """

    timeout: float | None = DEFAULT_TIMEOUT
    budget: float | None = None


DEFAULT_LIMITS, UNLIMITED = Limits(), Limits(timeout=None)


@dataclass
class Cascade:
    """Takes the examples of `images` through `rounds`. `known` are earlier results for some of them.

    The first step of the first round is inference. on_round: called at the start of each round, with its steps' names
    and the number of examples. on_examples: called with the new results of each batch. on_work: called when a step
    begins on a batch, and on the way by searches. stop: once it returns True, the cascade ends with the batches that it
    has finished, and examples that it has not reached have no result. shares: the processes that share each round.
    """

    model: nn.Module
    images: ImageSet
    eps: float
    rounds: Sequence[Round]
    limits: Limits = UNLIMITED
    known: Sequence[ExampleResult] = ()
    on_examples: OnExamples = lambda results: None
    on_round: OnRound = lambda names, examples: None
    on_work: OnWork = lambda work: None
    stop: Callable[[], bool] = never
    shares: Shares = ALONE
    results: dict[int, ExampleResult] = field(default_factory=dict, init=False)
    budget: Deadline = field(default=NEVER, init=False)
    counted: list[str] = field(default_factory=list, init=False)  # the names of the slow rounds that are over

    def run(self) -> list[ExampleResult]:
        """The results in the order of numbers, of every example unless `stop` ended it.

        Raises SoundnessError if a certificate has a counterexample.
        """
        self.budget = Deadline.after(self.limits.budget, self._stopped)
        self.results = {result.index: result for result in self.known}
        first, *others = self.rounds
        if self.budget.limited:  # the natural accuracy needs all examples, however little time there is
            first = self._classify(first)
        for each in [first] if first.steps else []:
            self._round(each, slow=False)
        for each in others:
            if self._stopped():  # then some examples have no result yet
                break
            self._round(each, slow=True, share=1.0 if each is others[-1] else SHARE_BEFORE_LAST)
            self.counted += each.names
        return [result for _, result in sorted(self.results.items())]

    def _classify(self, first: Round) -> Round:
        """Take every example through inference; gives the first round without it."""
        inference = replace(first, steps=first.steps[:1])
        new = [index for index in range(len(self.images)) if index not in self.results]
        new = self.shares.begin(new, self.results, self._receive)
        self.on_round(inference.names, len(new))
        for part in self.shares.parts(new, first.size):
            self._infer(inference, part)
        self._infer(inference, [index for index in self.shares.end(self._stopped) if index not in self.results])
        return replace(first, steps=first.steps[1:])

    def _infer(self, inference: Round, new: list[int]) -> None:
        """Take these examples through inference, in batches."""
        for numbers in _batches(new, inference.size):
            if self._stopped():
                break
            self._keep(self._work(inference.steps, numbers))

    def _round(self, each: Round, *, slow: bool, share: float = 1.0) -> None:
        """Take every batch through the steps: in the first round all examples, in slow rounds the open ones.

        share: how much of the time that it has left an example may take.
        """
        entering = [index for index in range(len(self.images)) if self._needs(index, each, share)]
        entering = [index for index in entering if not slow or self._has_time(index, 0.0)]
        entering = self.shares.begin(entering, self.results, self._receive)
        self.on_round(each.names, len(entering))
        # The time per example is only known after the first one. So with limits, batches start small and double.
        pace = _Pace(1 if self._limited(slow) else each.size)
        for part in self.shares.parts(entering, each.size):
            self._take(each, part, pace, slow=slow, share=share)
            if self.budget.over():
                break
        left = [index for index in self.shares.end(self._stopped) if self._needs(index, each, share)]
        self._take(each, left, pace, slow=slow, share=share)

    def _take(self, each: Round, entering: list[int], pace: "_Pace", *, slow: bool, share: float) -> None:
        """Take these examples through the steps of a round, in batches."""
        while entering and not self.budget.over():
            count = self._affordable(pace.most, pace.expected, slow=slow)
            chunk, entering, pace.most = entering[:count], entering[count:], min(2 * pace.most, each.size)
            known = 0.0 if each.timed else pace.expected
            if numbers := [index for index in chunk if not slow or self._has_time(index, known)]:
                done = self._work(each.steps, numbers, share)
                pace.spent += sum(result.tried.get(name, 0.0) for result in done for name in each.names)
                pace.finished += len(done)
                self._keep(done)

    def _limited(self, slow: bool) -> bool:
        return self.limits.budget is not None or (slow and self.limits.timeout is not None)

    def _affordable(self, most: int, expected: float, *, slow: bool) -> int:
        """How many examples, up to `most`, one batch and the budget have time for; at least one."""
        left = self.budget.left
        if left is None or expected == 0:
            return most
        return max(1, min(most, int(min(BATCH_SECONDS, left) / expected)))

    def _needs(self, index: int, each: Round, share: float) -> bool:
        result = self.results.get(index)
        if result is None or not set(each.names) <= result.tried.keys():
            return result is None or result.verdict == "open"
        again = [result.tried[name] for name in each.names if name in result.cut]
        return bool(again) and share * self._left([index]) > MORE * max(again)

    def _has_time(self, index: int, expected: float) -> bool:
        """Whether an example has time for a round in which one takes `expected` seconds."""
        return self.limits.timeout is None or self.limits.timeout - self._spent(index) > expected

    def _spent(self, index: int) -> float:
        """The seconds that an example has spent in the slow rounds before this one; 0 if no result is known here."""
        known = self.results.get(index)  # several processes: each knows the results of its own examples only
        return 0.0 if known is None else sum(known.tried[name] for name in known.tried if name in self.counted)

    def _work(self, steps: Sequence[VerificationStep], numbers: list[int], share: float = 1.0) -> list[ExampleResult]:
        """The results of these examples after the steps. A step that all of them have been through is skipped.

        What `stop` cut short is left out, so that continuing gives what would have come without it.
        """
        labels = self.images.labels[numbers].tolist()
        known = (self.results.get(n) or ExampleResult(n, y, "open", None) for n, y in zip(numbers, labels, strict=True))
        results, seconds = list(known), share * self._left(numbers)
        for step in steps:
            # A misclassified example needs no further step.
            rows = [row for row, result in enumerate(results) if result.verdict != "misclassified"]
            if all(results[row].finished(step.name) for row in rows):
                continue
            after = list(self._step(step, [results[row] for row in rows], seconds))
            if self._stopped():
                break
            for row, result in zip(rows, after, strict=True):
                results[row] = result
        return results

    def _step(
        self, step: VerificationStep, results: Sequence[ExampleResult], seconds: float
    ) -> Iterator[ExampleResult]:
        """The results after one step, in which each example may take `seconds` seconds."""
        start = time.monotonic()
        found = step(self._batch(step.name, [result.index for result in results], seconds))
        rows = list(_rows(found, len(results)))
        took = (time.monotonic() - start) / len(results)
        for result, row in zip(results, rows, strict=True):
            yield _resolved(result, step.name, took, row) if found.complete or row.verdict != "open" else result

    def _left(self, numbers: Sequence[int]) -> float:
        """The seconds that each of the examples may still take."""
        if self.limits.timeout is None:
            return math.inf
        return min(self.limits.timeout - self._spent(number) for number in numbers)

    def _batch(self, step: str, rows: list[int], seconds: float) -> ExampleBatch:
        work, device = Work(step, rows, seconds), device_of(self.model)
        self.on_work(work)

        def on_domains(closed: int, left: int, bound: float) -> None:
            self.on_work(work._replace(domains=SearchState(closed, left, bound)))

        x, labels = to_unit(self.images.images[rows].to(device)), self.images.labels[rows].to(device)
        return ExampleBatch(rows, x, labels, self.eps, self.budget, seconds, on_domains)

    def _keep(self, results: list[ExampleResult]) -> None:
        """Keep and report the new results. After a step that stopped early, some are unchanged."""
        new = [result for result in results if result.tried and result != self.results.get(result.index)]
        self._receive(new)
        if new:
            self.shares.send(new)

    def _receive(self, new: list[ExampleResult]) -> None:
        """Keep and report results, which may come from another process."""
        self.results |= {result.index: result for result in new}
        if new:
            self.on_examples(new)

    def _stopped(self) -> bool:
        return self.shares.stopped() or self.stop()


@dataclass
class _Pace:
    """How fast a round is: the size of its next batch, and the seconds and the number of examples so far."""

    most: int
    spent: float = 0.0
    finished: int = 0

    @property
    def expected(self) -> float:
        """The seconds that an example takes, by the mean so far; 0 before the first."""
        return self.spent / self.finished if self.finished else 0.0


def _batches(numbers: list[int], size: int) -> Iterator[list[int]]:
    return (numbers[first : first + size] for first in range(0, len(numbers), size))


class Row(NamedTuple):
    """The result of a step for one example."""

    verdict: Verdict
    margin: float | None
    counterexample: Tensor | None
    trees: Mapping[int, str]
    cut: bool


def _rows(found: StepResult, count: int) -> Iterator[Row]:
    margins = [None] * count if found.margins is None else found.margins.tolist()
    finite = [None] * count if found.margins is None else found.margins.isfinite().tolist()
    for n in range(count):
        verdict = found.verdicts[n]
        inputs = found.counterexamples if verdict == "falsified" else None
        trees = {} if found.trees is None else found.trees[n]
        margin, counterexample = margins[n] if finite[n] else None, None if inputs is None else inputs[n].cpu()
        yield Row(verdict, margin, counterexample, trees, found.cut is not None and found.cut[n])


def _resolved(result: ExampleResult, name: str, seconds: float, row: Row) -> ExampleResult:
    """The result after a step. An earlier verdict stays; a contradiction raises SoundnessError."""
    verdict, margin, counterexample, trees, cut = row
    if result.verdict == "falsified" and verdict == "certified":
        raise SoundnessError(
            f"example {result.index} is certified with margin {margin}, yet an input in its box is misclassified. "
            "A bound is wrong or the margin is within rounding error: do not trust this model's certificates."
        )
    tried = {**result.tried, name: result.tried[name] if result.finished(name) else seconds}
    left = tuple(step for step in result.cut if step != name)
    result = replace(result, tried=tried, margin=_greater(result.margin, margin), cut=(*left, name) if cut else left)
    if result.verdict != "open" or verdict == "open":
        return result if result.verdict == "open" else replace(result, cut=())
    # A step with another batch size may round differently, and only then find the example misclassified by inference.
    method = INFERENCE if verdict == "misclassified" else name
    return replace(result, verdict=verdict, method=method, counterexample=counterexample, trees=trees, cut=())


def _greater(first: float | None, second: float | None) -> float | None:
    known = [margin for margin in (first, second) if margin is not None]
    return max(known, default=None)
