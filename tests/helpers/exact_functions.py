"""Functions of one number: roots, exponentials and what is made of them, to sixty digits."""

from decimal import Decimal, localcontext
from fractions import Fraction

import mpmath
from torch import nn


def decimal_of(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def root(value: Fraction) -> Fraction:
    with localcontext() as context:
        context.prec = 60
        return Fraction(decimal_of(value).sqrt())


def sigmoid(value: Fraction) -> Fraction:
    if abs(value) > 800:  # within 2^-1100 of it
        return Fraction(int(value > 0))
    with localcontext() as context:
        context.prec = 60
        return Fraction(1 / (1 + (-decimal_of(value)).exp()))


def exp(value: Fraction) -> Fraction:
    """Of a number that is not above 800."""
    with localcontext() as context:
        context.prec = 60
        return Fraction(decimal_of(value).exp()) if value > -800 else Fraction(0)


def log1p(value: Fraction) -> Fraction:
    if value < Fraction(1, 10**40):
        return value * (1 - value / 2)  # within 10^-80 of it, relative to it
    with localcontext() as context:
        context.prec = 100  # 1 + value keeps sixty digits of the value
        return Fraction((1 + decimal_of(value)).ln())


def normal(value: Fraction) -> Fraction:
    """Φ, the distribution function of the standard normal distribution."""
    if abs(value) > 60:  # within 2^-2600 of it
        return Fraction(int(value > 0))
    with mpmath.workdps(60):
        found = mpmath.ncdf(mpmath.mpf(value.numerator) / value.denominator)
        return Fraction(int(found.man)) * Fraction(2) ** int(found.exp)


def softplus(layer: nn.Softplus, value: Fraction) -> Fraction:
    scaled = Fraction(layer.beta) * value
    return value if scaled > Fraction(layer.threshold) else log1p(exp(scaled)) / Fraction(layer.beta)


def clamped(value: Fraction, low: float | None, high: float | None) -> Fraction:
    value = value if low is None else max(value, Fraction(low))
    return value if high is None else min(value, Fraction(high))
