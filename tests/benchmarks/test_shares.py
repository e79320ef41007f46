"""The simulation of a hand-out: nothing is lost, and it is never faster than it can be."""

import pytest

from helpers.commands_of_benchmarks import benchmark

shares = benchmark("shares")


@pytest.mark.parametrize("ranks", [1, 2, 8, 64])
def test_a_hand_out_takes_as_long_as_its_work(ranks: int) -> None:
    seconds = [0.01 * (1 + place % 7) ** 3 for place in range(500)]
    parts = shares.handed_out(len(seconds), 20, ranks)
    found = shares._makespan(seconds, parts, ranks)
    least = max(sum(seconds) / ranks, max(seconds))
    assert least <= found
    if ranks == 1:
        assert found == pytest.approx(sum(seconds) + shares.CLAIM * len(parts))
    assert found <= 1.3 * least + shares.CLAIM * len(parts)


def test_rounds_are_those_of_a_cascade() -> None:
    records = [
        {"tried": {"inference": 1.0, "attack": 2.0, "ibp": 3.0}},
        {"tried": {"inference": 1.0, "attack": 2.0, "ibp": 3.0, "crown": 4.0, "complete": 5.0}},
    ]
    assert list(shares._rounds(records, 200)) == [([6.0, 6.0], 200), ([4.0], 20), ([5.0], 1)]
