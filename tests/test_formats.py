"""Numbers as people read them."""

import math

import pytest

from certtrain import formats


@pytest.mark.parametrize(("share", "shown"), [(0.5, "50.00%"), (1, "100.00%"), (None, "–"), (math.nan, "–")])
def test_shares_become_percentages(share: float | None, shown: str):
    assert formats.percent(share) == shown


def test_a_percentage_has_the_decimals_that_are_asked_for():
    assert formats.percent(0.12345, 1) == "12.3%"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234.5, "1,230"),
        (1940.4, "1,940"),
        (999_400, "999,000"),
        (2e6, "2e+06"),
        (12.345, "12.3"),
        (0.0, "0"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_numbers_and_factors_have_three_digits(value: float | None, shown: str):
    assert formats.number(value) == shown
    assert formats.times(value) == (shown if shown == "–" else f"{shown}×")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (59.4, "59.4 s"),
        (59.96, "1 min 0 s"),
        (61, "1 min 1 s"),
        (3599.7, "1 h"),
        (7384.6, "2 h 3 min"),
        (368 * 60, "6 h 8 min"),
        (6.17 * 86400, "6 days 4 h"),
    ],
)
def test_seconds_become_times(seconds: float, shown: str):
    assert formats.duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0 µs"), (2.11e-5, "21.1 µs"), (0.0034, "3.4 ms"), (1.239, "1.24 s"), (59.9, "59.9 s"), (601, "10 min 1 s")],
)
def test_short_times_have_the_unit_that_fits(seconds: float, shown: str):
    assert formats.short_time(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (7.4, "7 s"),
        (59.7, "1 min"),
        (569, "9 min"),
        (3585, "1 h"),
        (22080, "6 h 8 min"),
        (86395, "1 day"),
        (6.17 * 86400, "6 days 4 h"),
    ],
)
def test_estimates_have_one_or_two_units(seconds: float, shown: str):
    assert formats.about(seconds) == shown


def test_a_clock_of_a_day_or_more_has_days():
    assert formats.clock(86399) == "23:59:59"
    assert formats.clock(86400 + 3600) == "1 day 1 h"


@pytest.mark.parametrize(("seconds", "shown"), [(7.4, "0:07"), (61, "1:01"), (7384.6, "2:03:05")])
def test_a_clock_has_no_unit(seconds: float, shown: str):
    assert formats.clock(seconds) == shown


def test_a_column_has_equally_many_decimals_and_hides_nothing_as_zero():
    assert formats.column([0.0, 4e-6, 0.0123, 0.3]) == ["0", "<0.0001", "0.0123", "0.3000"]
    assert formats.column([0.0, 2e-5, 5e-5]) == ["0", "0.0000200", "0.0000500"]
    assert formats.column([]) == []
