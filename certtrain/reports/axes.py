"""The axes of a picture: which numbers can be drawn, and round limits."""

import math
from collections.abc import Iterable


def drawable(value: float | None, log: bool = False) -> float:
    """The value, or NaN, which leaves a gap, if the axis cannot show it; `log` says that the axis is logarithmic."""
    return value if value is not None and math.isfinite(value) and (value > 0 or not log) else math.nan


def from_zero(values: Iterable[float | None]) -> tuple[float, float]:
    """Limits that contain all values and zero, so that small changes look small."""
    known = [0.0, *(value for value in values if value is not None and math.isfinite(value))]
    lowest, highest = min(known), max(known)
    space = 0.04 * (highest - lowest) or 0.04
    return lowest - space, highest + space


def whole_decades(values: Iterable[float | None]) -> tuple[float, float]:
    """Powers of ten that enclose all values above zero, so that a logarithmic axis has a label at both ends."""
    exponents = [math.log10(value) for value in values if value is not None and value > 0 and math.isfinite(value)]
    lowest, highest = math.floor(min(exponents, default=0)), math.ceil(max(exponents, default=0))
    return 10.0**lowest, 10.0 ** max(highest, lowest + 1)
