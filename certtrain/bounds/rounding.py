"""The arithmetics that a deployed network computes in, and how far each can be from exact.

With unit roundoff u and γ_n = nu/(1 − nu), n operations that each multiply a
result by a factor in 1 ± u multiply it by one in 1 ± γ_n (Higham 2002, lemma
3.1). A dot product of length n in any order, with or without fused
multiply-add, is so within γ_n |w|·|x| of the exact one.

The verifier computes in float64 and rounds as well. Its part is added to the
network's in `Rounding.enclosing`; no arithmetic is without it.
"""

import math
from dataclasses import dataclass

from certtrain.errors import MethodError

UNIT64 = 2.0**-53
SAFE = 1 + 2.0**-40  # more than what rounds off where these constants are computed

# More roundings than stand beside a sum's own in the float64 bounds of one layer: its bias, its magnitude's three,
# its radius's, the BatchNorm's scale, the ends of an interval and the way back to centre and radius.
SPARE_ROUNDINGS = 32
# A network has fewer layers, and so each of its values fewer readers.
LAYERS = 2**12


@dataclass(frozen=True)
class Rounding:
    """How a deployed network rounds.

    unit: unit roundoff u of each operation outside matrix products.
    sums: unit roundoff of the sums in convolutions and linear layers.
    operands: relative error of their operands, weights, inputs and bias, before they are multiplied.
    results: relative error of any result when it is stored, on top of `unit`.
    tiny: the smallest normal number; what is smaller may be lost.
    largest: a magnitude that is certain not to overflow, anywhere inside a layer.
    assumptions: what all this rests on, in sentences.
    """

    name: str
    unit: float
    sums: float
    operands: float
    results: float
    tiny: float
    largest: float
    assumptions: tuple[str, ...]

    def products(self, length: int) -> float:
        """κ: a convolution or linear layer with sums of `length` products is within κ(|W||x| + |b|) of exact.

        A result may be stored twice: cuDNN's convolutions add the bias to a stored sum.
        """
        return _compound((self.operands, 2), (gamma(length + 2, self.sums), 1), (self.results, 2))

    def steps(self, count: int) -> float:
        """κ of any other layer, which takes `count` operations one after another."""
        return _compound((gamma(count, self.unit), 1), (self.results, 2))

    def function(self, units: int) -> float:
        """κ of a function that is within so many units in the last place of its result."""
        return _compound((2 * units * self.unit, 1), (self.results, 2))

    def function_of_input(self, units: int) -> float:
        """κ of a function within so many units in the last place of another number than its result, relative to that.

        The network's error and the verifier's, which computes the function in float64, with room for what else that
        rounds. The result is stored as well, which `stored` adds: an error in it is stored with it.
        """
        return (2 * units * self.unit * (1 + self.stored()) + (2 * units + SPARE_ROUNDINGS) * UNIT64) * SAFE

    def stored(self) -> float:
        """κ of a result that is stored and not computed."""
        return _compound((self.results, 2))


def gamma(count: int, unit: float) -> float:
    """γ_n = nu / (1 − nu); NaN where nu reaches 1/2, so that nothing is certified."""
    return count * unit / (1 - count * unit) * SAFE if count * unit < 0.5 else math.nan


def _compound(*factors: tuple[float, int]) -> float:
    """Π (1 + κ)^n − 1, without the cancellation."""
    return math.expm1(sum(times * math.log1p(factor) for factor, times in factors)) * SAFE


def enclosing(deployed: float, length: int) -> float:
    """κ for the float64 bounds of a layer whose sums have `length` terms, the network's own κ being `deployed`.

    Let M = |W|(|c| + r) + |b|, which bounds |W||x̂| + |b| in the box, and
    R = |W|r ≤ M. The result is within R + deployed·M of the exact centre, and
    the computed centre within g·M of that, g = γ64. The radius is computed
    from terms that are not negative, so it is at least (1 − g)(R + κM). Then
    (1 − g)(R + κM) ≥ R + (deployed + g)M holds if (1 − g)κ ≥ deployed + 2g.
    """
    own = gamma(length + SPARE_ROUNDINGS, UNIT64)
    return (deployed + 2 * own) / (1 - own) * SAFE if own < 0.5 else math.nan


def of_line(length: int) -> float:
    """The verifier's κ for taking a linear function Λ back through a layer, relative to |Λ|(|W||x| + |b|).

    `length` is that of the longest sum: over the layer's inputs, over its
    outputs, or the constant's over all elements. What several readers of a
    value hand back is summed, and so are the layers' constants; each sum rounds
    by no more than its length times its terms, of which each belongs to a layer.
    """
    return 4 * gamma(length + SPARE_ROUNDINGS + LAYERS, UNIT64)


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
            "real", 0.0, 0.0, 0.0, 0.0, 2.0**-1022, 2.0**1000,
            ("arithmetic real: the network without any rounding, which none that runs is", VERIFIER),
        ),
        Rounding(
            "float32", 2.0**-24, 2.0**-24, 0.0, 0.0, 2.0**-126, 2.0**126,
            (f"arithmetic float32: {NEAREST}", NO_TF32, ORDER, UNDERFLOW, VERIFIER),
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
