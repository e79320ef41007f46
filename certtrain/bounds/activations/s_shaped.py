"""Sigmoid and tanh: convex below zero and concave above, between two limits."""

import math

import torch
from torch import Tensor, nn

from certtrain.bounds.activations.curves import ActivationCurve, touching_of_odd
from certtrain.bounds.activations.intervals import monotone_box
from certtrain.bounds.activations.record import Accuracy, Activation, no_refusal, nonzero_width
from certtrain.bounds.activations.tangents import tangent_lines
from certtrain.bounds.box import Box, Pointwise
from certtrain.bounds.forms import FunctionForm, OnnxForm, OnnxReading, one_operator
from certtrain.bounds.layer_errors import PointwiseError
from certtrain.bounds.lines import Lines
from certtrain.bounds.rounding import Rounding
from certtrain.spec.activations import SigmoidSection, TanhSection

# The chord is not used for an interval of at most this width.
NARROW = 1e-3
_ACCURACY = Accuracy(8, "sigmoid and tanh are within 8 units in the last place")


def _s_shaped(function: Pointwise, derivative: Pointwise, box: Box) -> Lines:
    """A box on one side of zero gets the chord and the tangent at its centre, others two lines of the least slope k.

    The least slope in the interval is at one of its ends. So f(x) − kx never
    decreases, and its values at the ends bound it (Singh et al. 2019, DeepPoly).
    """
    low, high = function(box.lower), function(box.upper)
    slope = torch.minimum(derivative(low), derivative(high))
    middle = function(box.centre)
    tangent, width = derivative(middle), box.upper - box.lower
    wide = width > NARROW  # elsewhere rounding dominates the difference of the ends, and its gradient
    chord = torch.where(wide, (high - low) / torch.where(wide, width, 1.0), slope)
    convex, concave = (box.upper <= 0) & wide, (box.lower >= 0) & wide
    below = torch.where(convex, tangent, torch.where(concave, chord, slope))
    above = torch.where(concave, tangent, torch.where(convex, chord, slope))
    from_below = torch.where(convex, middle - tangent * box.centre, low - below * box.lower)
    from_above = torch.where(concave, middle - tangent * box.centre, high - above * box.upper)
    return Lines(below, from_below, above, from_above)


def _curve(function: Pointwise, of_value: Pointwise, steepest: float) -> ActivationCurve:
    """The curve of `function`, whose derivative at x is `of_value(f(x))`, at most `steepest`."""

    def derivative(x: Tensor) -> Tensor:
        return of_value(function(x))

    return ActivationCurve(function, derivative, -math.inf, 0.0, (0.0, steepest), touching_of_odd(function, derivative))


def _error(rounding: Rounding, layer: nn.Module, units: int) -> PointwiseError:
    """The verifier's own results are within the same number of units in the last place.

    Rounding an end of the box by a unit of x changes the result by x·f′(x) units.
    For tanh this is at most |f|. For sigmoid it is at most |x|·f, where x is above
    −709 or f is below float64's smallest normal number: fewer than 4096 units of the
    result. A line's terms, k·x and f − k·x, are at most |x| and 1 + |x|.
    """
    return PointwiseError(rounding.function(units), lambda size: size + 1, length=4096)


def _sigmoid() -> list[nn.Module]:
    return [nn.Sigmoid()]


def _tanh() -> list[nn.Module]:
    return [nn.Tanh()]


def _of_sigmoid(y: Tensor) -> Tensor:
    return y * (1 - y)


def _of_tanh(y: Tensor) -> Tensor:
    return 1 - y.square()


_SIGMOID_CURVE, _TANH_CURVE = _curve(torch.sigmoid, _of_sigmoid, 0.25), _curve(torch.tanh, _of_tanh, 1.0)

SIGMOID = Activation(
    layer=nn.Sigmoid,
    section=SigmoidSection,
    refusal=no_refusal,
    monotone=True,
    interval=monotone_box,
    lines=lambda layer, box: _s_shaped(torch.sigmoid, _of_sigmoid, box),
    free_lines=lambda layer, box: tangent_lines(_SIGMOID_CURVE, box),
    unstable=nonzero_width,
    splittable=True,
    rectifier=None,
    accuracy=_ACCURACY,
    error=_error,
    functions=dict.fromkeys((torch.sigmoid, "sigmoid"), FunctionForm(_sigmoid)),
    onnx=OnnxForm(one_operator("Sigmoid"), OnnxReading("Sigmoid", 13)),
)
TANH = Activation(
    layer=nn.Tanh,
    section=TanhSection,
    refusal=no_refusal,
    monotone=True,
    interval=monotone_box,
    lines=lambda layer, box: _s_shaped(torch.tanh, _of_tanh, box),
    free_lines=lambda layer, box: tangent_lines(_TANH_CURVE, box),
    unstable=nonzero_width,
    splittable=True,
    rectifier=None,
    accuracy=_ACCURACY,
    error=_error,
    functions=dict.fromkeys((torch.tanh, "tanh"), FunctionForm(_tanh)),
    onnx=OnnxForm(one_operator("Tanh"), OnnxReading("Tanh", 13)),
)
