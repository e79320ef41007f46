"""Softplus, log(1 + exp(βx)) / β, which torch replaces by x where βx is above a threshold t.

So torch's function jumps down by log(1 + e^−t) / β at the threshold: by 2·10⁻⁹ / β
for the default t = 20. A rounded product decides which branch is taken. The rules
bound both branches wherever the box comes close to the threshold, and hold for any t.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations.curves import ActivationCurve, curve_lines
from certtrain.bounds.activations.intervals import box_of_ends
from certtrain.bounds.activations.record import Accuracy, Activation, nonzero_width
from certtrain.bounds.activations.tangents import TangentLines, tangent_lines
from certtrain.bounds.box import Box
from certtrain.bounds.forms import FunctionForm, OnnxForm, OnnxReading, Operator, number_given
from certtrain.bounds.layer_errors import PointwiseError, magnitude
from certtrain.bounds.lines import Lines
from certtrain.bounds.rounding import Rounding
from certtrain.errors import UnsupportedLayer
from certtrain.spec.activations import SoftplusSection

_ACCURACY = Accuracy(8, "softplus is within 8 units in the last place of its input and its result together")
LARGEST_THRESHOLD = 80.0  # at larger ones float32's exponential overflows
LINEAR_FROM = 60.0  # log(1 + exp(y)) is y in float64, and float32's exp(60) is finite
BRANCH_MARGIN = (
    2.0**-6
)  # relative to the threshold and 1: farther from the threshold, rounding cannot change the branch
READ_THRESHOLD = 40.0  # given to ONNX's Softplus, which has none: in float64 it makes no difference
EXPORTED_FROM = 15.0  # ONNX's Softplus has no threshold; from here on the jump is below float32's rounding


class _Threshold:
    """The interval of x in which rounding may decide the branch, and how far the function may jump there."""

    def __init__(self, layer: nn.Softplus) -> None:
        beta, threshold = float(layer.beta), float(layer.threshold)
        margin = BRANCH_MARGIN * max(1.0, abs(threshold))
        self.first, self.last = (threshold - margin) / beta, (threshold + margin) / beta
        self.jump = math.log1p(math.exp(margin - threshold)) / beta * (1 + 2.0**-40)


def _smooth(layer: nn.Softplus, x: Tensor) -> Tensor:
    """The function without the threshold."""
    return F.softplus(x, layer.beta, LINEAR_FROM)


def _refusal(layer: nn.Softplus) -> str | None:
    if not 0 < layer.beta < math.inf:
        return f"is a Softplus with beta = {layer.beta:g}; it has a rule for finite numbers above zero"
    if not abs(layer.threshold) <= LARGEST_THRESHOLD:
        return (
            f"is a Softplus with a threshold of {layer.threshold:g}; it has a rule for those between "
            f"-{LARGEST_THRESHOLD:g} and {LARGEST_THRESHOLD:g}, as beyond them float32's exponential overflows"
        )
    return None


def _interval(layer: nn.Softplus, box: Box) -> Box:
    """The function increases below the threshold and above it. Close to it, either branch may give an extreme."""
    at, low, high = _Threshold(layer), box.lower, box.upper
    smooth_low, linear = _smooth(layer, low), low.clamp(min=at.first)
    least = torch.where(high < at.first, smooth_low, torch.minimum(smooth_low, linear))
    most = torch.where(
        high < at.first, _smooth(layer, high), torch.maximum(high, _smooth(layer, high.clamp(max=at.last)))
    )
    above = low > at.last
    clean = None if box.clean is None else layer(box.clean)
    return box_of_ends(torch.where(above, low, least), torch.where(above, high, most), clean)


def _lines(layer: nn.Softplus, box: Box) -> Lines:
    """The lines of the smooth curve, the lower one reduced by the jump near the threshold; above the threshold, x."""
    return _with_threshold(layer, box.lower, box.upper, curve_lines(_curve(layer), box))


def _free_lines(layer: nn.Softplus, box: Box) -> TangentLines | None:
    return tangent_lines(_curve(layer), box, partial(_with_threshold, layer))


def _curve(layer: nn.Softplus) -> ActivationCurve:
    return ActivationCurve(
        lambda x: _smooth(layer, x), lambda x: torch.sigmoid(layer.beta * x), -math.inf, math.inf, (0.0, 1.0), None
    )


def _with_threshold(layer: nn.Softplus, low: Tensor, high: Tensor, lines: Lines) -> Lines:
    """The lines of the layer, from lines of the smooth curve over [low, high]."""
    at, (below, lower, above, upper) = _Threshold(layer), lines
    assert lower is not None
    assert upper is not None
    linear, close = low > at.last, high >= at.first
    lower = torch.where(close, lower - at.jump, lower)
    parts = ((1.0, below), (0.0, lower), (1.0, above), (0.0, upper))
    return Lines(*(torch.where(linear, exact, part) for exact, part in parts))


def _error(rounding: Rounding, layer: nn.Softplus, units: int) -> PointwiseError:
    """Rounding an end of the box changes the result by at most a unit of x.

    The lines' terms are at most |x| and 2|x| + f(0), where f(0) is below 1/β, and
    the jump. What underflows in a small exponential is divided by β.
    """
    share, most = rounding.function_of_input(units), 1 / layer.beta + _Threshold(layer).jump
    return PointwiseError(
        rounding.stored(),
        lambda size: 4 * size + most,
        can_overflow=True,
        absolute=lambda given, result: share * (magnitude(given) + magnitude(result)),
    )


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> list[nn.Module]:
    return [nn.Softplus(number_given(beta), number_given(threshold))]


def _onnx(layer: nn.Softplus) -> list[Operator]:
    if layer.threshold < EXPORTED_FROM:
        raise UnsupportedLayer(f"its threshold is {layer.threshold:g}, and ONNX's Softplus has none")
    if layer.beta == 1:
        return [Operator("Softplus")]
    beta = torch.tensor(float(layer.beta))
    return [Operator("Mul", {"beta": beta}), Operator("Softplus"), Operator("Div", {"divisor": beta})]


SOFTPLUS = Activation(
    layer=nn.Softplus,
    section=SoftplusSection,
    refusal=_refusal,
    monotone=False,
    interval=_interval,
    lines=_lines,
    free_lines=_free_lines,
    unstable=nonzero_width,
    splittable=True,
    rectifier=None,
    accuracy=_ACCURACY,
    error=_error,
    functions={F.softplus: FunctionForm(_softplus)},
    onnx=OnnxForm(_onnx, OnnxReading("Softplus", 22, arguments={"threshold": READ_THRESHOLD}, consumes=False)),
)
