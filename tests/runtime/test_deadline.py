"""A deadline as a value."""

import math

import pytest

from certtrain.runtime.deadline import NEVER, Deadline


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test may move."""
    seconds = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    return seconds


def test_it_is_over_from_its_moment_on(now: list[float]):
    deadline = Deadline.after(2.0)
    assert (deadline.end, deadline.limited, deadline.left, deadline.over()) == (102.0, True, 2.0, False)
    now[0] = 102.0
    assert (deadline.left, deadline.over()) == (0.0, True)
    now[0] = 200.0
    assert (deadline.left, deadline.over()) == (0.0, True)


@pytest.mark.parametrize("never", [NEVER, Deadline.after(None), Deadline.after(math.inf)])
def test_without_a_limit_it_never_comes(never: Deadline, now: list[float]):
    now[0] = 1e300
    assert (never.limited, never.left, never.over()) == (False, None, False)


def test_the_earlier_of_two(now: list[float]):
    first, second = Deadline.after(1.0), Deadline.after(2.0)
    assert first.earlier(second) == second.earlier(first) == first
    assert NEVER.earlier(first) == first.earlier(NEVER) == first


def test_a_stop_ends_the_time_at_once_and_outlasts_an_earlier_deadline():
    asked = [False]
    stoppable = Deadline.after(None, lambda: asked[0])
    both = Deadline.after(1000).earlier(stoppable), stoppable.earlier(Deadline.after(1000))
    assert [each.over() for each in (stoppable, *both)] == [False] * 3
    assert (stoppable.limited, both[0].limited) == (False, True)
    asked[0] = True
    assert [each.over() for each in (stoppable, *both)] == [True] * 3
