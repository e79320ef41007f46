"""ε and the learning rate as functions of the step."""

from itertools import pairwise

import pytest

from certtrain import eps_at
from certtrain.spec.schedule import cosine_rate_at, learning_rate_at, linear_rate_at

RAMPS = [(10, 2, 4), (391, 2, 80), (7, 1, 3), (1, 1, 8), (23, 5, 1), (1, 1, 1), (1, 3, 2)]
EACH_RAMP = pytest.mark.parametrize(("per_epoch", "start", "length"), RAMPS)


def values(per_epoch: int, start: int, length: int, eps_max: float = 0.3) -> list[float]:
    """ε at each step, until two epochs after the ramp."""
    steps = range((start + length + 1) * per_epoch)
    return [eps_at(s, steps_per_epoch=per_epoch, start=start, length=length, eps_max=eps_max) for s in steps]


@EACH_RAMP
def test_eps_never_falls_and_stays_in_range(per_epoch: int, start: int, length: int):
    found = values(per_epoch, start, length)
    assert all(before <= after for before, after in pairwise(found))
    assert found[0] >= 0
    assert max(found) == 0.3


@EACH_RAMP
def test_eps_rises_from_the_ramps_first_step_to_its_last(per_epoch: int, start: int, length: int):
    found, first, last = values(per_epoch, start, length), (start - 1) * per_epoch, (start - 1 + length) * per_epoch
    assert found[: first + 1] == [0.0] * (first + 1)
    assert found[last:] == [0.3] * (len(found) - last)
    assert all(before < after for before, after in pairwise(found[first : last + 1]))


def test_a_quarter_of_the_ramp_is_quartic_and_the_rest_linear():
    found = values(per_epoch=10, start=2, length=4)[10:51]  # a ramp of 40 steps
    rate = 0.3 / (10**3 * (160 - 30))
    assert found[:10] == pytest.approx([rate * t**4 for t in range(10)])
    assert [b - a for a, b in pairwise(found[10:])] == pytest.approx([rate * 4 * 10**3] * 30)


def test_both_parts_meet_with_the_same_value_and_slope():
    found = values(per_epoch=1000, start=1, length=4, eps_max=1.0)
    before, after = found[1000] - found[999], found[1001] - found[1000]
    assert before == pytest.approx(after, rel=2e-3)
    assert found[1000] == pytest.approx(1000**4 / (1000**3 * (16000 - 3000)))


def test_a_ramp_too_short_for_a_quarter_is_a_straight_line():
    assert values(per_epoch=1, start=1, length=3) == pytest.approx([0, 0.1, 0.2, 0.3, 0.3])


@pytest.mark.parametrize(("start", "jump"), [(1, 0), (3, 20)])
def test_without_length_eps_jumps(start: int, jump: int):
    found = values(per_epoch=10, start=start, length=0)
    assert found == [0.0] * jump + [0.3] * (len(found) - jump)


def test_from_epoch_one_only_the_first_step_is_without_eps():
    found = values(per_epoch=10, start=1, length=2)
    assert found[0] == 0
    assert found[1] > 0


def test_the_learning_rate_drops_at_each_milestone():
    rates = [learning_rate_at(epoch, base=1e-3, milestones=(2, 4), decay=0.1) for epoch in range(6)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_without_milestones_or_beyond_the_last_epoch_the_learning_rate_stays():
    for milestones in ((), (100,)):
        assert learning_rate_at(99, base=5e-4, milestones=milestones, decay=0.2) == 5e-4


def test_the_cosine_rate_by_hand():
    rates = [cosine_rate_at(step, base=4.0, steps=6, warmup=2) for step in range(7)]
    half = 2**0.5
    assert rates == pytest.approx([2, 4, 4, 2 + half, 2, 2 - half, 0])


def test_cosine_and_line_rise_together_and_meet_halfway():
    settings = {"base": 1e-3, "steps": 120, "warmup": 20}
    cosine, line = ([rate(step, **settings) for step in range(121)] for rate in (cosine_rate_at, linear_rate_at))
    assert cosine[:21] == line[:21]
    assert (cosine[70], cosine[120]) == pytest.approx((line[70], line[120]))
    assert all(one > two for one, two in zip(cosine[21:70], line[21:70], strict=True))
    assert all(one < two for one, two in zip(cosine[71:120], line[71:120], strict=True))
    assert all(before > after for before, after in pairwise(cosine[20:]))


def test_a_warmup_of_all_but_one_step_divides_by_no_zero():
    assert cosine_rate_at(9, base=1.0, steps=10, warmup=9) == 1.0
