"""The radius ε of an L∞ box, in pixels of [0, 1], as text: 8/255, 0.3."""

from certtrain.errors import EpsilonError


def parse_eps(value: str | float) -> float:
    """A radius from "8/255", "0.3" or a number.

    Raises EpsilonError unless it is a finite number in [0, 1].
    """
    try:
        eps = _divide(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise EpsilonError(f"ε {value!r} is not a number; write it like 8/255 or 0.3") from error
    if not 0 <= eps <= 1:
        raise EpsilonError(f"ε {value!r} is outside [0, 1]; pixels run from 0 to 1, so write 8/255 rather than 8")
    return eps


def _divide(text: str) -> float:
    above, slash, below = text.partition("/")
    return float(above) / float(below) if slash else float(text)


def format_eps(eps: float) -> str:
    """ε as people write it: with one decimal place if it has no more, else as a fraction of 255 if it is one."""
    return f"{eps:g}" if eps == round(eps, 1) < 1 else _as_levels(eps)


def exact_eps(eps: float) -> str:
    """ε as a text from which `parse_eps` gives the same number: a fraction of 255 if it is one, else a number.

    It is part of certificate files, and so as in earlier versions: 51/255 rather than 0.2.
    """
    short = _as_levels(eps)
    return short if parse_eps(short) == eps else repr(eps)


def _as_levels(eps: float) -> str:
    """A fraction of 255 if it is one, else a number with six significant digits."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels and abs(eps * 255 - levels) < 1e-9 else f"{eps:.6g}"
