"""Numbers as people read them."""

import math
import re

import pytest

from certtrain import formats
from helpers.documents import ROOT


@pytest.mark.parametrize(("share", "shown"), [(0.5, "50.00%"), (1, "100.00%"), (None, "–"), (math.nan, "–")])
def test_shares_become_percentages(share: float | None, shown: str):
    assert formats.percent(share) == shown


def test_a_percentage_has_the_decimals_that_are_asked_for():
    assert formats.percent(0.12345, 1) == "12.3%"


def test_one_thing_is_no_plural():
    assert [formats.count_of(n, "epoch") for n in (0, 1, 2, 62560)] == [
        "0 epochs",
        "1 epoch",
        "2 epochs",
        "62,560 epochs",
    ]
    assert formats.count_of(3, "property") == "3 properties"
    assert formats.count_of(3, "process") == "3 processes"


def test_rough_times_have_one_unit():
    found = [formats.roughly(seconds) for seconds in (20, 100, 3600, 7300, 6.2 * 86400)]
    assert found == ["1 min", "2 min", "60 min", "2 hours", "6 days"]


def test_no_sentence_says_one_epochs():
    """Numbers of things are written by `count_of`, but for constants, "k of n" and what a condition excludes."""
    noun = "epochs|steps|examples|images|properties|instances|trials|seeds|layers|records"
    found = set()
    for file in (ROOT / "certtrain").rglob("*.py"):
        for line in file.read_text("utf-8").splitlines():
            numbers = re.findall(rf"(.{{0,12}})\{{([^{{}}]+)\}} (?:{noun})\b", line)
            named = [number for before, number in numbers if not re.search("of |to |there are |compiled; ", before)]
            found |= {(file.name, number) for number in named if not (number.isupper() or " if " in line)}
    assert found == set()


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
