"""When work that recurs is due, by a clock that stands still between the test's own steps."""

import math

import pytest

from certtrain.training import pacing
from certtrain.training.pacing import Pacing, Recurring, Stopwatch


class Clock:
    """In place of the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """What the test has set."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    return clock


def done(work: Recurring, clock: Clock, *, takes: float) -> None:
    with work.timed():
        clock.now += takes


def test_a_stopwatch_starts_again_where_it_was_read(clock: Clock):
    watch = Stopwatch()
    clock.now += 3
    assert watch.seconds() == watch.restart() == 3
    clock.now += 2
    assert watch.restart() == 2


def test_work_is_due_some_seconds_after_it_was_done(clock: Clock):
    work = Recurring(20.0, 0.05)
    done(work, clock, takes=0.5)
    clock.now += 19.9
    assert not work.due()
    clock.now += 0.2
    assert work.due()
    done(work, clock, takes=0.5)
    assert not work.due()


def test_work_that_takes_long_is_due_later(clock: Clock):
    work = Recurring(20.0, 0.05)
    done(work, clock, takes=3.0)  # so that it is done once in a minute
    clock.now += 59.9
    assert not work.due()
    clock.now += 0.2
    assert work.due()
    done(work, clock, takes=0.1)  # its last time decides
    clock.now += 20.1
    assert work.due()


def test_an_infinite_share_never_puts_work_off(clock: Clock):
    work = Recurring(0.0, math.inf)
    done(work, clock, takes=1000.0)
    assert work.due()


def test_another_pause_for_once(clock: Clock):
    work = Recurring(20.0, 0.01)
    done(work, clock, takes=5.0)
    clock.now += 350
    assert not work.due()
    assert work.due(300.0)
    assert not work.due(400.0)


def test_checkpoints_within_an_epoch_are_rarer_than_at_its_end():
    assert Pacing().checkpoint > Pacing().epoch_checkpoint
