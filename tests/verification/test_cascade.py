"""The cascade: order, limits, and what is resumed is what was never stopped."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import pytest
import torch

from certtrain import certify
from certtrain.attack import APGD, PGD, named
from certtrain.bounds.methods import METHODS, BoundMethod
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.data import to_unit
from certtrain.errors import MethodError, SoundnessError
from certtrain.runtime.deadline import Deadline
from certtrain.verification import cascade
from certtrain.verification.cascade import DEFAULT_LIMITS, UNLIMITED, Cascade, Limits, Work
from certtrain.verification.methods import examples_at_once, names_of, rounds_of
from certtrain.verification.results import ExampleResult, StepSummary, step_summaries
from certtrain.verification.results import count as count_points
from certtrain.verification.steps import (
    AttackStep,
    ExampleBatch,
    Round,
    StepResult,
    VerificationStep,
    misclassified_in_batch_of_one,
)
from certtrain.verification.verify import Report, verify
from helpers.tiny_classifier import mostly_right

WIDE = 0.06  # at which every step of the cascade decides some points


def run(eps: float = WIDE, **options: Any) -> tuple[Report, dict[int, ExampleResult]]:
    points: dict[int, ExampleResult] = {}
    options = {"attack": PGD(steps=5), "on_examples": lambda done: points.update({p.index: p for p in done})} | options
    return verify(*mostly_right(), eps, **options), points


def known(points: dict[int, ExampleResult]) -> list[tuple[object, ...]]:
    """All that does not depend on the clock."""
    return [(p.index, p.label, p.verdict, p.margin, p.method, list(p.tried)) for _, p in sorted(points.items())]


def test_every_step_decides_some_and_the_steps_add_up():
    report, points = run()
    names = ["inference", "attack", "ibp", "crown-ibp", "pgd-t", "crown", "alpha-crown", "complete"]
    assert [step.name for step in report.steps] == names
    assert all(step.decided > 0 for step in report.steps if step.name not in ("pgd-t", "crown", "alpha-crown"))
    assert all(step.seconds > 0 for step in report.steps)
    assert sum(step.decided for step in report.steps) + report.open == 100
    assert [step.examples for step in report.steps[:3]] == [100, 80, 80]
    for before, after in pairwise(report.steps[3:]):
        assert before.examples == after.examples + before.decided < 100
    assert (report.unfinished, report.method) == (0, "auto")
    assert {point.method for point in points.values()} >= {"inference", "attack", "ibp", "crown-ibp", "complete"}
    assert report.open == 0


def test_the_cascade_certifies_what_any_method_certifies_and_its_margins_are_the_best():
    report, points = run()
    model, data = mostly_right()
    alone = [certify(model, to_unit(data.images), data.labels, WIDE, method=name) for name in METHODS]
    # α-CROWN's certificates hold those of all cheaper methods; what is left is complete verification's.
    completed = {index for index, point in points.items() if (point.verdict, point.method) == ("certified", "complete")}
    assert report.certified - len(completed) == int(alone[-1].certified.sum()) > int(alone[0].certified.sum())
    for index, point in points.items():
        if index in completed or point.verdict == "misclassified":
            continue
        tried = [found.margin[index].item() for found in alone if found.method in point.tried]
        assert point.margin == pytest.approx(max(tried), rel=1e-9)


def test_an_expensive_step_does_not_repeat_the_cheaper_ones(monkeypatch: pytest.MonkeyPatch):
    called: list[str] = []

    def counted(name: str) -> BoundMethod:
        method = METHODS[name]
        return lambda *given: (called.append(name), method(*given))[1]

    for name in ("ibp", "crown-ibp", "crown"):
        monkeypatch.setitem(METHODS, name, counted(name))
    report, _ = run(limits=UNLIMITED)  # with limits, batches begin with one example
    slow = {step.name: step for step in report.steps}
    batches = [1, *(-(-slow[name].examples // 20) for name in ("crown-ibp", "crown"))]
    assert [called.count(name) for name in ("ibp", "crown-ibp", "crown")] == batches
    called.clear()
    run(method="crown")
    assert set(called) == {"ibp", "crown-ibp", "crown"}


def test_without_an_attack_nothing_is_falsified():
    report, points = run(attack=None, method="alpha-crown")
    assert [step.name for step in report.steps] == ["inference", "alpha-crown"]
    assert (report.falsified, report.attack, report.unfinished) == (0, {"name": "none"}, 0)
    assert report.attacked_accuracy == report.natural_accuracy
    assert all("attack" not in point.tried for point in points.values())
    attacked, _ = run(method="alpha-crown")
    assert report.certified == attacked.certified
    assert report.open == attacked.open + attacked.falsified > attacked.open


def test_without_an_attack_complete_verification_finds_the_counterexamples():
    report, points = run(attack=None)
    attacked, _ = run()
    assert (report.certified, report.falsified, report.open) == (attacked.certified, attacked.falsified, 0)
    assert {point.method for point in points.values() if point.verdict == "falsified"} == {"complete"}


def test_an_attack_that_breaks_off_was_not_tried_and_is_when_there_is_time():
    whole = run()[1]
    points: dict[int, ExampleResult] = {}

    def keep(done: list[ExampleResult]) -> None:
        points.update({p.index: p for p in done})

    def broken_off() -> Report:
        steps = iter(range(1000))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Deadline, "over", lambda self: next(steps) >= 3)
            return run(known=list(points.values()), on_examples=keep, limits=Limits(budget=1e6))[0]

    report = broken_off()
    right = [point for point in points.values() if point.verdict != "misclassified"]
    undecided = [point for point in right if "attack" not in point.tried]
    assert undecided
    assert all(point.verdict in ("certified", "open") for point in undecided)
    assert report.unfinished == sum(point.verdict == "open" for point in points.values())
    before = dict(points)
    broken_off()
    assert all(before[index].tried.items() <= points[index].tried.items() for index in points)
    run(known=list(points.values()), on_examples=keep)
    for index, point in whole.items():
        assert (points[index].verdict, points[index].method) == (point.verdict, point.method)
        assert points[index].margin == (None if point.margin is None else pytest.approx(point.margin, rel=1e-9))


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_one_method_alone(method: str):
    report, points = run(method=method)
    assert [step.name for step in report.steps] == ["inference", "attack", method]
    model, data = mostly_right()
    assert report.certified == int(
        certify(model, to_unit(data.images), data.labels, WIDE, method=method).certified.sum()
    )
    assert {point.method for point in points.values()} == {"inference", "attack", method, None}


def test_an_unknown_method_is_an_error():
    with pytest.raises(MethodError, match=r"'magic' is not known; choose from: auto, ibp, .*, complete, milp"):
        run(method="magic")


def test_falsified_points_carry_inputs_in_the_box_that_are_misclassified():
    _, points = run()
    model, data = mostly_right()
    for index, point in points.items():
        assert (point.counterexample is not None) == (point.verdict == "falsified")
        if point.counterexample is not None:
            x = to_unit(data.images[index])
            assert ((point.counterexample.double() - x.double()).abs() <= WIDE).all()
            assert ((point.counterexample >= 0) & (point.counterexample <= 1)).all()
            assert misclassified_in_batch_of_one(model, point.counterexample, data.labels[index], "float32")


def test_expensive_methods_get_few_points_at_once():
    assert (examples_at_once("ibp", 200), examples_at_once("crown-ibp", 200), examples_at_once("crown-ibp", 3)) == (
        200,
        20,
        1,
    )
    sizes: list[int] = []
    verify(
        *mostly_right(),
        WIDE,
        attack=PGD(steps=5),
        batch_size=50,
        limits=UNLIMITED,
        on_examples=lambda points: sizes.append(len(points)),
    )
    assert sizes[:2] == [50, 50]
    assert max(sizes[2:]) == 5


def test_rounds_are_reported_with_the_points_that_come_to_them():
    rounds: list[tuple[tuple[str, ...], int]] = []
    report, _ = run(on_round=lambda names, points: rounds.append((names, points)))
    later = [((step.name,), step.examples) for step in report.steps[3:]]
    assert rounds == [(("inference", "attack", "ibp"), 100), *later]


def test_a_stop_during_the_first_attack_leaves_what_inference_found():
    whole, expected = run(method="ibp", batch_size=60)
    stopped: list[bool] = []

    def on_work(work: Work) -> None:
        stopped.extend([True] if work.step == "attack" else [])

    report, points = run(method="ibp", batch_size=60, on_work=on_work, stop=lambda: bool(stopped))
    assert report.interrupted
    assert (report.examples, report.unreached, report.certified, report.falsified) == (60, 40, 0, 0)
    assert all(list(point.tried) == ["inference"] for point in points.values())
    after, found = run(method="ibp", batch_size=60, known=list(points.values()))
    assert (after.certified, after.falsified) == (whole.certified, whole.falsified)
    assert known(found) == known({index: point for index, point in expected.items() if index in found})


# --- resumed ---------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("batches", range(1, 5))
def test_what_is_stopped_and_resumed_is_what_was_never_stopped(batches: int):
    """Three batches of the first round, then two of the second."""
    whole = run(batch_size=40)[1]
    points: dict[int, ExampleResult] = {}

    def until_stopped(done: list[ExampleResult]) -> None:
        points.update({p.index: p for p in done})
        if next(batch) == batches:
            raise Stop

    batch = count(1)
    with pytest.raises(Stop):
        run(batch_size=40, on_examples=until_stopped)
    assert known(points) != known(whole)
    known_before = list(points.values())
    run(batch_size=40, known=known_before, on_examples=lambda done: points.update({p.index: p for p in done}))
    assert known(points) == known(whole)


def test_nothing_that_is_known_is_done_again():
    report, points = run()
    again, done = run(known=list(points.values()))
    assert not done
    assert again == replace(report, seconds=again.seconds)


# --- limits ----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, as the cascade sees it."""
    now = [0.0]
    monkeypatch.setattr(cascade.time, "monotonic", lambda: now[0])
    return now


class Slow:
    """A step that decides nothing, and takes its time for each point."""

    def __init__(self, name: str, clock: list[float], seconds: float) -> None:
        self.name, self.clock, self.seconds = name, clock, seconds
        self.seen: list[int] = []

    def __call__(self, batch: ExampleBatch) -> StepResult:
        self.clock[0] += self.seconds * len(batch.numbers)
        self.seen += batch.numbers
        return StepResult(["open"] * len(batch.numbers))


def slow(
    clock: list[float], limits: Limits, known: Sequence[ExampleResult] = (), second: float = 2.0
) -> list[list[int]]:
    """Which of ten points came to each of three steps, in batches of two, that take 1, 2 and 3 seconds a point."""
    model, data = mostly_right(10)
    steps: list[VerificationStep] = [
        Slow("inference", clock, 1),
        Slow("crown", clock, second),
        Slow("expensive", clock, 3),
    ]
    cascade = Cascade(model, data, 0.1, [Round((step,), 2) for step in steps], limits, known)
    points = cascade.run()
    assert [point.index for point in points] == list(range(10))
    seen = [step.seen for step in steps]  # type: ignore[attr-defined]
    for step, numbers in zip(steps, seen, strict=True):
        assert [point.index for point in points if step.name in point.tried] == sorted(numbers)
    return seen


EVERY = list(range(10))


def test_without_limits_every_open_point_comes_to_every_step(clock: list[float]):
    assert slow(clock, Limits()) == [EVERY, EVERY, EVERY]
    assert clock == [60.0]


def test_a_point_leaves_a_method_out_that_it_has_no_time_for(clock: list[float]):
    assert slow(clock, Limits(timeout=2.0)) == [EVERY, [0], [1]]  # each step's first point shows that it takes too long
    assert slow(clock, Limits(timeout=2.5)) == [EVERY, EVERY, EVERY[:1]]
    assert slow(clock, Limits(timeout=5.1)) == [EVERY, EVERY, EVERY]


def test_the_budget_stops_expensive_methods_between_batches(clock: list[float]):
    assert slow(clock, Limits(budget=17)) == [EVERY, EVERY[:4], []]


def test_an_expensive_batch_is_no_larger_than_the_budget_lasts_for(clock: list[float]):
    model, data = mostly_right(10)
    first, expensive = Slow("inference", clock, 0), Slow("expensive", clock, 3)
    Cascade(model, data, 0.1, [Round((first,), 10), Round((expensive,), 10)], Limits(budget=14)).run()
    # One point, then two, then of four only one, as five seconds are left, and one more in the last two.
    assert (expensive.seen, clock) == (EVERY[:5], [15.0])


class Needs:
    """A search that certifies an example if it may take `needed` seconds for it, and else runs out of time."""

    def __init__(self, name: str, clock: list[float], needed: float) -> None:
        self.name, self.clock, self.needed, self.seen = name, clock, needed, list[tuple[int, float]]()

    def __call__(self, batch: ExampleBatch) -> StepResult:
        (number,) = batch.numbers
        enough = batch.seconds >= self.needed
        self.clock[0] += min(self.needed, batch.seconds)
        self.seen.append((number, batch.seconds))
        return StepResult(
            ["certified" if enough else "open"], torch.tensor([1.0 if enough else -1.0]), cut=[not enough]
        )


def test_examples_that_ran_out_of_time_are_tried_again_when_more_is_given(clock: list[float]):
    model, data = mostly_right(2)
    alpha, complete = Needs("alpha", clock, 100.0), Needs("complete", clock, 8.0)
    rounds = [Round((Slow("inference", clock, 0),), 2), Round((alpha,), 1), Round((complete,), 1, timed=True)]

    def tried(timeout: float | None, known: Sequence[ExampleResult]) -> list[ExampleResult]:
        alpha.seen, complete.seen = [], []
        return Cascade(model, data, 0.1, rounds, Limits(timeout), known).run()

    first = tried(4.0, [])
    assert (alpha.seen, complete.seen) == ([(0, 1.0), (1, 1.0)], [(0, 3.0), (1, 3.0)])
    assert [each.cut for each in first] == [("alpha", "complete")] * 2
    again = tried(4.0, first)
    assert (alpha.seen, complete.seen, again) == ([], [], first)  # there is no more time than before
    more = tried(8.0, first)
    assert (alpha.seen, complete.seen) == ([(0, 2.0), (1, 2.0)], [(0, 6.0), (1, 6.0)])
    assert [each.tried["complete"] for each in more] == [6.0, 6.0]
    last = tried(16.0, more)
    assert [(each.verdict, each.method, each.cut) for each in last] == [("certified", "complete", ())] * 2
    assert complete.seen == [(0, 12.0), (1, 12.0)]
    assert not tried(None, last)[0].cut
    assert (alpha.seen, complete.seen) == ([], [])


def test_the_second_attack_is_targeted_and_comes_before_the_slow_bounds():
    names = ("inference", "attack", "ibp", "crown-ibp", "pgd-t", "crown", "alpha-crown", "complete")
    assert names_of("auto", PGD()) == names_of("auto", APGD()) == names
    for attack in (None, PGD(targets=3), named("apgd-t"), named("strong")):
        assert "pgd-t" not in names_of("auto", attack)  # there is none, or it is targeted already
    assert names_of("complete", PGD()) == ("inference", "attack", "complete")
    rounds = rounds_of(mostly_right()[0], "auto", PGD(steps=7, restarts=2, seed=3), 40, "float32", VERDICT_SETTINGS)
    assert tuple(name for each in rounds for name in each.names) == names
    (targeted,) = [step for each in rounds for step in each.steps if step.name == "pgd-t"]
    assert isinstance(targeted, AttackStep)
    assert (targeted.settings, targeted.timed) == (PGD(7, 2, 3, targets=9), True)


def test_the_targeted_attack_falsifies_what_the_first_one_leaves(monkeypatch: pytest.MonkeyPatch):
    _, points = run(attack=PGD(steps=1), eps=0.12)
    found = {point.method for point in points.values() if point.verdict == "falsified"}
    assert "pgd-t" in found


def test_an_example_has_thirty_seconds_unless_said_otherwise():
    assert (Limits().timeout, DEFAULT_LIMITS, UNLIMITED.timeout) == (30.0, Limits(), None)
    assert inspect.signature(verify).parameters["limits"].default == DEFAULT_LIMITS


def test_when_the_budget_ends_the_first_round_the_rest_is_at_least_classified():
    report, points = run(limits=Limits(budget=1e-9))
    assert [step.examples for step in report.steps] == [100, 0, 0, 0, 0, 0, 0, 0]
    assert (report.misclassified, report.open, report.unfinished) == (20, 80, 80)
    assert report.natural_accuracy == report.attacked_accuracy == 0.8
    assert all(list(point.tried) == ["inference"] for point in points.values())


def test_with_more_time_a_verification_goes_on_from_open_points():
    whole = run()[1]
    early = run(limits=Limits(budget=1e-9))[1]
    late = early | run(known=list(early.values()))[1]
    for index, point in late.items():
        assert point.tried["inference"] == early[index].tried["inference"]
        assert (point.verdict, point.method) == (whole[index].verdict, whole[index].method)
        assert point.verdict == "misclassified" or list(point.tried) == list(whole[index].tried)


# --- contradictions --------------------------------------------------------------------------------------


class Says:
    """A step that says the same of every point."""

    def __init__(self, name: str, found: str, margin: float) -> None:
        self.name, self.found, self.margin = name, found, margin

    def __call__(self, batch: ExampleBatch) -> StepResult:
        verdicts: Any = [self.found] * len(batch.numbers)
        return StepResult(verdicts, torch.full((len(batch.numbers),), self.margin), batch.x)


def decided(*steps: VerificationStep) -> list[ExampleResult]:
    model, data = mostly_right(3)
    return Cascade(model, data, 0.1, [Round(steps, 2)]).run()


def test_a_certificate_of_an_attacked_point_is_an_error():
    with pytest.raises(SoundnessError, match=r"example 0 is certified with margin 1\.0, yet an input"):
        decided(Says("attack", "falsified", torch.nan), Says("ibp", "certified", 1.0))


def test_a_verdict_stays_and_margins_only_rise():
    (first, *_) = decided(Says("attack", "falsified", -torch.inf), Says("ibp", "open", -0.5))
    assert (first.verdict, first.method, first.margin) == ("falsified", "attack", -0.5)
    (first, *_) = decided(Says("a", "open", -1.0), Says("b", "open", -0.5), Says("c", "open", torch.nan))
    assert (first.verdict, first.margin) == ("open", -0.5)
    assert first.counterexample is None
    (first, *_) = decided(Says("inference", "open", torch.nan), Says("expensive", "misclassified", torch.nan))
    assert (first.verdict, first.method, first.margin) == ("misclassified", "inference", None)


def test_a_misclassified_point_comes_to_no_later_step():
    _, points = run()
    wrong = [point for point in points.values() if point.verdict == "misclassified"]
    assert len(wrong) == 20
    assert all((list(point.tried), point.margin) == (["inference"], None) for point in wrong)


def test_counts_and_steps_by_hand():
    points = [
        ExampleResult(0, 1, "certified", 0.5, "ibp", {"attack": 1.0, "ibp": 2.0}),
        ExampleResult(1, 1, "open", None, None, {"attack": 3.0}),
    ]
    assert count_points(points) == {"certified": 1, "open": 1, "falsified": 0, "misclassified": 0}
    found = step_summaries(points, ["attack", "ibp", "crown"])
    assert found == (StepSummary("attack", 2, 0, 4.0), StepSummary("ibp", 1, 1, 2.0), StepSummary("crown", 0, 0, 0))
    assert [step.seconds_per_example for step in found] == [2.0, 2.0, 0.0]
