"""The radius ε of an L∞ box, in pixels of [0, 1], as text: 8/255, 0.3; and several of them, in a list or a range."""

import re
from decimal import ROUND_DOWN, Context
from fractions import Fraction

from certtrain.errors import EpsilonError

SHORT = Context(6, ROUND_DOWN)
ROUNDING = 1e-12  # two ways to compute the same radius may differ by this share of it
MOST_RADII = 1000  # in a list; more are a slip of the pen


def parse_eps(value: str | float) -> float:
    """A radius from "8/255", "0.3" or a number.

    Raises EpsilonError unless it is a finite number in [0, 1].
    """
    try:
        eps = _divide(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise EpsilonError(f"ε {value!r} is not a number; write it like 8/255 or 0.3") from error
    if eps == 0 and isinstance(value, str) and any(digit in "123456789" for digit in re.split("[eE/]", value)[0]):
        raise EpsilonError(f"ε {value!r} is too small for a float64")
    if not 0 <= eps <= 1:
        raise EpsilonError(f"ε {value!r} is outside [0, 1]; pixels run from 0 to 1, so write 8/255 rather than 8")
    return eps


def _divide(text: str) -> float:
    above, slash, below = text.partition("/")
    return float(above) / float(below) if slash else float(text)


def parse_radii(text: str) -> tuple[float, ...]:
    """Radii in ascending order, each once, from a list like "0.1,0.2" whose parts may be ranges like "0..8/255:5".

    A range FIRST..LAST:COUNT has COUNT radii at equal distances, both ends among them. Raises EpsilonError.
    """
    found = sorted({radius for part in text.split(",") for radius in _part(part.strip())})
    if len(found) > MOST_RADII:
        raise EpsilonError(f"{text!r} has {len(found):,} radii; at most {MOST_RADII:,} are verified at a time")
    return tuple(found)


def _part(text: str) -> list[float]:
    """The radii of one part of a list."""
    first, dots, rest = text.partition("..")
    if not dots:
        return [parse_eps(text)]
    last, _, number = rest.partition(":")
    if not number.strip().isdecimal() or not 2 <= int(number.strip()[:9]) <= MOST_RADII:
        raise EpsilonError(
            f"the range {text!r} needs its number of radii, from 2 to {MOST_RADII:,}; write it like 0.05..0.3:6"
        )
    if not parse_eps(first) < parse_eps(last):
        raise EpsilonError(f"the range {text!r} begins with its larger end; write it like 0.05..0.3:6")
    low, high, steps = _exact(first), _exact(last), int(number) - 1
    return [float(low + (high - low) * step / steps) for step in range(steps + 1)]


def _exact(text: str) -> Fraction:
    """The number that `parse_eps` rounds, so that 0..8/255:9 has 1/255 to 8/255 as they are given one by one."""
    above, slash, below = text.strip().partition("/")
    return Fraction(above) / Fraction(below) if slash else Fraction(above)


def format_eps(eps: float) -> str:
    """ε as people write it: with one decimal place if it has no more, else as a fraction of 255 if it is one.

    A longer number is cut after six digits, and never rounded up, since a certificate holds at every smaller radius.
    """
    return f"{eps:g}" if eps == round(eps, 1) < 1 else _as_levels(eps)


def exact_eps(eps: float) -> str:
    """ε as a text from which `parse_eps` gives the same number: a fraction of 255 if it is one, else a number.

    It is part of certificate files, and so as in earlier versions: 51/255 rather than 0.2.
    """
    short = _as_levels(eps)
    return short if parse_eps(short) == eps else repr(eps)


def _as_levels(eps: float) -> str:
    """A fraction of 255 if it is one, else a number with six significant digits; both up to rounding in float64."""
    levels = round(eps * 255)
    if levels and abs(eps * 255 - levels) <= ROUNDING * levels:
        return f"{levels}/255"
    text = f"{eps:.6g}"
    return text if float(text) <= eps * (1 + ROUNDING) else f"{float(SHORT.create_decimal(repr(eps))):g}"
