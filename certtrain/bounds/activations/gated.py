"""GELU and SiLU: x times an S-shaped function of x. They decrease to a minimum below zero, then increase.

Both are x/2 plus an even function: convex in the middle and concave on both
sides. They approach 0 on the left and x on the right.

The error of what torch computes is not relative to the result: where Φ(x) is
small, 1 + erf(x/√2) cancels, and SiLU's exponential overflows. Let erf in GELU,
x · ½ · (1 + erf(x/√2)), be within e of exact. The rounding of the quotient changes
erf by at most a unit roundoff u, since z · erf′(z) is below a half. The sum rounds
by at most 2u, and the products by 2u of the result. Together this is at most
|x|(e/2 + 3.5u). CUDA's erf is within two units in the last place, e = 4u. Formula
7.1.26 of Abramowitz and Stegun, which torch's vector code and oneDNN have used, is
within 2.5u, and its sum of five terms, which together are below 5, rounds by less
than 12u. So 16 units in the last place of x, which are 32u of |x|, are more than
twice this sum; the largest error observed on a CPU is 6.4u of |x|. SiLU,
x / (1 + exp(−x)), is an exponential, a sum and a quotient: its error is at most 8u
of the result, and at most x · 2⁻¹²⁶ where exp(−x) overflows.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations.curves import ActivationCurve, curve_lines, touching_of
from certtrain.bounds.activations.intervals import unimodal_box
from certtrain.bounds.activations.record import Accuracy, Activation, no_refusal, nonzero_width
from certtrain.bounds.activations.tangents import tangent_lines
from certtrain.bounds.box import Pointwise
from certtrain.bounds.forms import FunctionForm, OnnxForm, OnnxReading, Operator
from certtrain.bounds.layer_errors import PointwiseError, magnitude
from certtrain.bounds.rounding import Rounding
from certtrain.spec.activations import GELUSection, SiLUSection

GELU_STATEMENT = (
    "GELU, as x·Φ(x), is within 16 units in the last place of its input x, which is not a relative error below zero"
)
_GELU_ACCURACY = Accuracy(16, GELU_STATEMENT)
_SILU_ACCURACY = Accuracy(8, "SiLU is within 8 units in the last place of its input")

# The minimiser, and a lower bound of the minimum. Both are known to more digits than float64 has; the minimum is
# rounded down.
_GELU_MINIMUM = (-0.7517915246935645, -0.16997120747990372)
_SILU_MINIMUM = (-1.2784645427610738, -0.27846454276107386)


def _gelu_value(x: Tensor) -> Tensor:
    """xΦ(x). On a CPU torch's own function prepares each new shape of float32 for milliseconds."""
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


def _gelu_derivative(x: Tensor) -> Tensor:
    """Φ(x) + xφ(x)."""
    density = torch.exp(-0.5 * x.square()) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * density


def _silu_derivative(x: Tensor) -> Tensor:
    share = torch.sigmoid(x)
    return share * (1 + x * torch.sigmoid(-x))


# GELU's second derivative is φ(x)(2 − x²); SiLU's is zero where x · tanh(x/2) = 2. There the slopes are extreme.
_GELU_BENDS, _SILU_BENDS = math.sqrt(2), 2.399357280515468


def _curve(value: Pointwise, derivative: Pointwise, bends: float, slopes: tuple[float, float]) -> ActivationCurve:
    return ActivationCurve(value, derivative, -bends, bends, slopes, touching_of(value, derivative, bends))


_GELU_CURVE = _curve(_gelu_value, _gelu_derivative, _GELU_BENDS, (-0.1290, 1.1290))
_SILU_CURVE = _curve(F.silu, _silu_derivative, _SILU_BENDS, (-0.0999, 1.0999))


def _error(rounding: Rounding, layer: nn.Module, units: int) -> PointwiseError:
    """Rounding an end of the box changes the result by less than 1.2 units of x. A line's terms sum to below 3.6|x|."""
    share = rounding.function_of_input(units)
    return PointwiseError(
        rounding.stored(),
        lambda size: 4 * size,
        can_overflow=True,
        absolute=lambda given, result: share * magnitude(given),
    )


# --- GELU ------------------------------------------------------------------------------------------------


def _gelu_refusal(layer: nn.GELU) -> str | None:
    if layer.approximate == "none":
        return None
    return (
        f"is a GELU with approximate={layer.approximate!r}, which is another function; only the exact one has a rule, "
        "approximate='none'"
    )


def _gelu(*, approximate: str = "none") -> list[nn.Module]:
    return [nn.GELU(approximate)]


def _gelu_onnx(layer: nn.GELU) -> list[Operator]:
    """x · (1 + erf(x / √2)) · ½, since the operator Gelu needs opset 20."""
    number = {name: torch.tensor(value) for name, value in (("root", math.sqrt(2)), ("one", 1.0), ("half", 0.5))}
    return [
        Operator("Div", {"root": number["root"]}),
        Operator("Erf"),
        Operator("Add", {"one": number["one"]}),
        Operator("Mul", takes=(0, 3)),
        Operator("Mul", {"half": number["half"]}),
    ]


GELU = Activation(
    layer=nn.GELU,
    section=GELUSection,
    refusal=_gelu_refusal,
    monotone=False,
    interval=lambda layer, box: unimodal_box(F.gelu, *_GELU_MINIMUM, box),
    lines=lambda layer, box: curve_lines(_GELU_CURVE, box),
    free_lines=lambda layer, box: tangent_lines(_GELU_CURVE, box),
    unstable=nonzero_width,
    splittable=True,
    rectifier=None,
    accuracy=_GELU_ACCURACY,
    error=_error,
    functions={F.gelu: FunctionForm(_gelu)},
    onnx=OnnxForm(_gelu_onnx, OnnxReading("Gelu", 20, fixed={"approximate": b"none"})),
)


# --- SiLU ------------------------------------------------------------------------------------------------


def _silu(inplace: bool = False) -> list[nn.Module]:
    return [nn.SiLU()]


def _silu_onnx(layer: nn.SiLU) -> list[Operator]:
    return [Operator("Sigmoid"), Operator("Mul", takes=(0, 1))]


SILU = Activation(
    layer=nn.SiLU,
    section=SiLUSection,
    refusal=no_refusal,
    monotone=False,
    interval=lambda layer, box: unimodal_box(F.silu, *_SILU_MINIMUM, box),
    lines=lambda layer, box: curve_lines(_SILU_CURVE, box),
    free_lines=lambda layer, box: tangent_lines(_SILU_CURVE, box),
    unstable=nonzero_width,
    splittable=True,
    rectifier=None,
    accuracy=_SILU_ACCURACY,
    error=_error,
    functions={F.silu: FunctionForm(_silu)},
    onnx=OnnxForm(_silu_onnx, None),
)
