"""Numbers as text, for the terminal and for pages. A dash stands for a missing number."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

NO_NUMBER = "–"
MILLION = 1e6
ROUGH_UNITS = ((86400, "days"), (3600, "hours"), (60, "min"))


def attack_words(attack: Mapping[str, Any]) -> str:
    """An attack as a report records it: "pgd, 20 steps × 1", with the number of starts. Old reports have no name."""
    steps = f", {count_of(int(attack['steps']), 'step')}" if attack.get("steps") else ""
    restarts = f" × {attack['restarts']}" if "restarts" in attack else ""
    return f"{attack.get('name', 'pgd')}{steps}{restarts}"


def percent(share: float | None, digits: int = 2) -> str:
    """A share of one as a percentage with `digits` decimal places."""
    return NO_NUMBER if share is None or math.isnan(share) else f"{100 * share:.{digits}f}%"


def number(value: float | None, digits: int = 3) -> str:
    """A number to `digits` significant digits; below a million without an exponent, like 1,940."""
    if value is None or math.isnan(value):
        return NO_NUMBER
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e+" in text and abs(value) < MILLION else text


def count_of(number: int | float, noun: str) -> str:
    """A number of things, like 1 epoch or 62,560 steps; the plural has an s, or ies and es where English has them."""
    if number == 1:
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {plural}"


def times(value: float | None) -> str:
    """A factor to three significant digits."""
    return NO_NUMBER if value is None or math.isnan(value) else f"{number(value)}×"


def clock(seconds: float) -> str:
    """Seconds as 0:59, 9:05 or 2:09:05; from a day on as `about` has them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return about(seconds)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """Seconds as 1.3 s, 9 min 5 s, 6 h 8 min or 6 days 4 h."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else about(seconds)


def about(seconds: float) -> str:
    """Seconds as an estimate: 45 s, 9 min, 6 h 8 min or 6 days 4 h."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} day{'s' * (days > 1)}" + (f" {hours} h" if hours else "")


def roughly(seconds: float) -> str:
    """Seconds as a rough estimate, in the largest unit of which there are two or more: 40 min, 6 hours or 5 days."""
    size, unit = next(((size, unit) for size, unit in ROUGH_UNITS if seconds >= 2 * size), (60, "min"))
    return f"{max(seconds / size, 1):.0f} {unit}"


def short_time(seconds: float) -> str:
    """Seconds to three significant digits, as 21.1 µs, 3.4 ms or 1.24 s; from a minute on as `duration`."""
    if round(seconds, 1) >= 60:
        return duration(seconds)
    size, unit = next(((size, unit) for size, unit in ((1.0, "s"), (1e-3, "ms")) if seconds >= size), (1e-6, "µs"))
    return f"{number(seconds / size)} {unit}"


def column(values: Sequence[float], decimals: int = 4) -> list[str]:
    """The numbers of one column, all ≥ 0, with the same number of decimal places, or more if the largest needs them.

    Zero is "0". A number that would be rounded to zero is shown like "<0.0001".
    """
    largest = max(values, default=0.0)
    if 0 < largest < 1:
        decimals = max(decimals, 2 - math.floor(math.log10(largest)))
    return [_fixed(value, decimals) for value in values]


def _fixed(value: float, decimals: int) -> str:
    least = 10.0**-decimals
    if value == 0:
        return "0"
    return f"<{least:.{decimals}f}" if value < least / 2 else f"{value:.{decimals}f}"
