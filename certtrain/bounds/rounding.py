"""The arithmetics that a deployed network computes in, and how far each can be from exact.

With unit roundoff u and γ_n = nu/(1 − nu), n operations that each multiply a
result by a factor in 1 ± u multiply it by one in 1 ± γ_n (Higham 2002, lemma
3.1). A dot product of length n in any order, with or without fused
multiply-add, is therefore within γ_n |w|·|x| of the exact one. Terms with x = 0
do not count: their products are zero, and adding zero rounds nothing. So if k of
the n terms are not zero, at most k − 1 additions on the way of each term to the
result round, and the dot product is within γ_k |w|·|x|.

The verifier computes in float64 and rounds as well. `interval_error` adds its
error to the network's, in every arithmetic.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from torch import Tensor

from certtrain.errors import MethodError

Error = TypeVar("Error", float, Tensor, float | Tensor)  # κ as a number, or as one for each example

UNIT64 = 2.0**-53
SAFETY_FACTOR = 1 + 2.0**-40  # larger than the rounding in the computation of these constants

# An upper limit of the roundings besides those of the sums in the float64 bounds of one layer: the bias, three of the
# magnitude, the radius, the scale of a BatchNorm, the ends of an interval, and the conversion to centre and radius.
EXTRA_ROUNDINGS = 32
# A network must have fewer layers, so each of its values is used by fewer layers.
LAYER_LIMIT = 2**12
# Coefficients of linear bounds may underflow, each by at most 2^-1022 for each product in it, and are then multiplied
# by values below 2^500 (`Rounding.largest`). This covers 2^12 layers with 2^30 values and as many products for each.
COEFFICIENTS_UNDERFLOW = 2.0**-440


@dataclass(frozen=True)
class Rounding:
    """How a deployed network rounds.

    unit: unit roundoff u of each operation outside matrix products.
    sums: unit roundoff of the sums in convolutions and linear layers.
    operands: relative error of the operands of matrix products (weights, inputs and bias) before they are multiplied.
    results: relative error of any result when it is stored, in addition to `unit`.
    tiny: the smallest normal number; smaller numbers may become zero.
    largest: a magnitude that cannot overflow anywhere inside a layer, at most 2^500.
    zeros_are_exact: whether it is certain that adding zero to a sum rounds nothing.
    assumptions: what these numbers assume, in sentences.
    """

    name: str
    unit: float
    sums: float
    operands: float
    results: float
    tiny: float
    largest: float
    assumptions: tuple[str, ...]
    zeros_are_exact: bool = False

    @cache  # noqa: B019 (there are four arithmetics, which are never freed)
    def products(self, length: int) -> float:
        """κ: a convolution or linear layer with sums of `length` products is within κ(|W||x| + |b|) of exact.

        Where `zeros_are_exact`, `length` may be the number of products that are not zero.
        A result may be stored twice: cuDNN's convolutions add the bias to a stored sum.
        """
        return _compound((self.operands, 2), (gamma(length + 2, self.sums), 1), (self.results, 2))

    def steps(self, count: int) -> float:
        """κ of any other layer, which takes `count` operations one after another."""
        return _compound((gamma(count, self.unit), 1), (self.results, 2))

    def function(self, units: int) -> float:
        """κ of a function whose error is at most `units` units in the last place of its result."""
        return _compound((2 * units * self.unit, 1), (self.results, 2))

    def function_of_input(self, units: int) -> float:
        """κ of a function whose error is at most `units` units in the last place of its input, relative to the input.

        This includes the error of the network and of the verifier, which computes the function in float64, with its
        other roundings. The rounding when the result is stored is added separately (`stored`).
        """
        return (2 * units * self.unit * (1 + self.stored()) + (2 * units + EXTRA_ROUNDINGS) * UNIT64) * SAFETY_FACTOR

    def stored(self) -> float:
        """κ of storing a result."""
        return _compound((self.results, 2))


def gamma(count: int, unit: float) -> float:
    """γ_n = nu / (1 − nu); NaN where nu reaches 1/2, so that nothing is certified."""
    return count * unit / (1 - count * unit) * SAFETY_FACTOR if count * unit < 0.5 else math.nan


def _compound(*factors: tuple[float, int]) -> float:
    """Π (1 + κ)^n − 1, without the cancellation."""
    return math.expm1(sum(times * math.log1p(factor) for factor, times in factors)) * SAFETY_FACTOR


def interval_error(network_error: Error, length: int) -> Error:
    """κ for the float64 bounds of a layer whose sums have `length` terms, where `network_error` is the network's own κ.

    Let M = |W|(|c| + r) + |b|, which bounds |W||x̂| + |b| in the box, and
    R = |W|r ≤ M. The result is within R + network_error·M of the exact centre, and
    the computed centre within g·M of that, g = γ64. The radius is computed
    from terms that are not negative, so it is at least (1 − g)(R + κM). Then
    (1 − g)(R + κM) ≥ R + (network_error + g)M holds if (1 − g)κ ≥ network_error + 2g.
    """
    own = gamma(length + EXTRA_ROUNDINGS, UNIT64)
    return (network_error + 2 * own) / (1 - own) * SAFETY_FACTOR if own < 0.5 else network_error * math.nan


def backsubstitution_error(length: int) -> float:
    """The verifier's κ for the backsubstitution of a linear function Λ through a layer, relative to |Λ|(|W||x| + |b|).

    `length` is the length of the longest sum: over the layer's inputs, over its
    outputs, or of the constant over all elements. The coefficients from several
    layers that use a value are summed, and so are the constants of the layers. Each
    sum rounds by at most its length times its terms, and each term belongs to a layer.
    """
    return 4 * gamma(length + EXTRA_ROUNDINGS + LAYER_LIMIT, UNIT64)


EXACT_NETWORK = "arithmetic real: the network without any rounding; every network that runs does round"
NEAREST = "every operation rounds to nearest; reciprocal square roots are within 2 units in the last place"
NO_TF32 = (
    "no TF32 and no bfloat16 inside: torch.backends.cudnn.allow_tf32 off, torch.set_float32_matmul_precision highest"
)
ORDER = "sums in any order, with or without fused multiply-add; no Winograd or FFT convolution"
UNDERFLOW = "what underflows may be flushed to zero; that nothing overflows is checked, not assumed"
VERIFIER = "the bounds are computed in float64, and its own rounding is added to them"

ARITHMETICS: dict[str, Rounding] = {
    found.name: found
    for found in (
        Rounding(
            "real", 0.0, 0.0, 0.0, 0.0, 2.0**-1022, 2.0**500,
            (EXACT_NETWORK, VERIFIER),
        ),
        Rounding(
            "float32", 2.0**-24, 2.0**-24, 0.0, 0.0, 2.0**-126, 2.0**126,
            (f"arithmetic float32: {NEAREST}", NO_TF32, ORDER, UNDERFLOW, VERIFIER),
            zeros_are_exact=True,
        ),
        Rounding(
            "tf32", 2.0**-24, 2.0**-22, 2.0**-10, 0.0, 2.0**-126, 2.0**126,
            (
                "arithmetic tf32: operands of convolutions and linear layers rounded or cut to 10 bits, their sums in "
                f"float32, rounded or cut, within 2^-22 each; outside them, {NEAREST}",
                ORDER, UNDERFLOW, VERIFIER,
            ),
        ),
        Rounding(
            "bf16", 2.0**-24, 2.0**-22, 2.0**-8, 2.0**-8, 2.0**-126, 2.0**126,
            (
                "arithmetic bf16: a float32 network under torch.autocast(bfloat16): operands of convolutions and "
                "linear layers and any layer's result rounded to bfloat16, sums in float32, rounded or cut, within "
                "2^-22 each (torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction off); "
                f"elsewhere, {NEAREST}",
                ORDER, UNDERFLOW, VERIFIER,
            ),
        ),
    )
}  # fmt: skip


def arithmetic_named(name: str) -> Rounding:
    """The arithmetic of that name. Raises MethodError."""
    if name not in ARITHMETICS:
        raise MethodError(f"arithmetic {name!r} is not known; choose from: {', '.join(ARITHMETICS)}")
    return ARITHMETICS[name]
