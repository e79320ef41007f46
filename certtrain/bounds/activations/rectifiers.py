"""ReLU and LeakyReLU: max(x, sx), or min(x, sx) for a slope s above 1."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations.intervals import monotone_box
from certtrain.bounds.activations.record import BASIC, Activation, no_refusal
from certtrain.bounds.box import Box
from certtrain.bounds.forms import FunctionForm, OnnxForm, OnnxReading, Operator, number_given, one_operator
from certtrain.bounds.layer_errors import PointwiseError, same_magnitude
from certtrain.bounds.lines import Lines, Slopes
from certtrain.bounds.rounding import Rounding
from certtrain.spec.activations import LeakyReLUSection, ReLUSection


def rectifier_lines(slope: float, box: Box) -> Lines:
    """The chord on one side; on the other a line through zero, of slope 1 where u > −l, else of slope `slope`.

    This is the line that leaves the smaller area (Zhang et al. 2018, CROWN, section 3.2).
    """
    lower, upper = box.lower, box.upper
    # A sign is much cheaper to compute than a mask of bool.
    rising = (lower + upper).detach().sign().relu()
    through_zero = rising + slope * (1 - rising)  # not rising · (1 − s) + s, which cancels for a steep slope
    # max(x, sx) is sx + (1 − s) relu(x). In terms of u⁺ and l⁻, the chord of a stable neuron has no gradient. In terms
    # of (f(u) − f(l)) / (u − l) it would have one that grows without limit as the interval gets narrow.
    above, below = torch.relu(upper), torch.relu(-lower)
    share = above / (above + below).clamp(min=torch.finfo(above.dtype).tiny)
    line, chord = (through_zero, None), (share + slope * (1 - share), share * (1 - slope) * below)
    return Lines(*line, *chord) if slope <= 1 else Lines(*chord, *line)  # concave above slope 1


def _slopes(slope: float, box: Box) -> Slopes | None:
    """The lines with the slope of the one through zero to choose; None without an unstable neuron."""
    lower, upper = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
    if slope == 1 or not bool(((lower < 0) & (upper > 0)).any()):
        return None
    rises, falls = (lower >= 0).to(lower.dtype), (upper > 0).to(lower.dtype)
    lines = rectifier_lines(slope, box).for_functions()
    return Slopes(lines, slope, rises, falls, (lower + upper > 0).to(lower.dtype))


def _unstable(layer: nn.Module, box: Box) -> Tensor:
    return (box.lower < 0) & (box.upper > 0)


# --- ReLU ------------------------------------------------------------------------------------------------


def _relu_interval(layer: nn.ReLU, box: Box) -> Box:
    # In place only on the ends, which are new tensors: the box is kept for the regularisers.
    return monotone_box(torch.relu, box, torch.relu if torch.is_grad_enabled() else torch.relu_)


def _relu_error(rounding: Rounding, layer: nn.ReLU, units: int) -> PointwiseError:
    return PointwiseError(0.0, same_magnitude, exact=True)


def _relu(inplace: bool = False) -> list[nn.Module]:
    return [nn.ReLU()]


RELU = Activation(
    layer=nn.ReLU,
    section=ReLUSection,
    refusal=no_refusal,
    monotone=True,
    interval=_relu_interval,
    lines=lambda layer, box: rectifier_lines(0.0, box),
    free_lines=lambda layer, box: _slopes(0.0, box),
    unstable=_unstable,
    splittable=True,
    rectifier=lambda layer: 0.0,
    accuracy=BASIC,
    error=_relu_error,
    functions=dict.fromkeys((torch.relu, F.relu, "relu"), FunctionForm(_relu))
    | dict.fromkeys((torch.relu_, "relu_"), FunctionForm(_relu, inplace=True)),
    onnx=OnnxForm(one_operator("Relu"), OnnxReading("Relu", 14)),
)


# --- LeakyReLU -------------------------------------------------------------------------------------------


def _leaky_refusal(layer: nn.LeakyReLU) -> str | None:
    return "has a negative slope, so it is not monotone" if layer.negative_slope < 0 else None


def _leaky_interval(layer: nn.LeakyReLU, box: Box) -> Box:
    return monotone_box(lambda x: F.leaky_relu(x, layer.negative_slope), box)


def _leaky_error(rounding: Rounding, layer: nn.LeakyReLU, units: int) -> PointwiseError:
    """Both the slope and the product are rounded."""
    steepest = max(1.0, layer.negative_slope)
    return PointwiseError(rounding.steps(2), lambda size: size * steepest, can_overflow=True)


def _leaky_relu(negative_slope: float = 0.01, inplace: bool = False) -> list[nn.Module]:
    return [nn.LeakyReLU(number_given(negative_slope))]


def _leaky_onnx(layer: nn.LeakyReLU) -> list[Operator]:
    return [Operator("LeakyRelu", {}, {"alpha": layer.negative_slope})]


LEAKY_RELU = Activation(
    layer=nn.LeakyReLU,
    section=LeakyReLUSection,
    refusal=_leaky_refusal,
    monotone=True,
    interval=_leaky_interval,
    lines=lambda layer, box: rectifier_lines(layer.negative_slope, box),
    free_lines=lambda layer, box: _slopes(float(layer.negative_slope), box),
    unstable=_unstable,
    splittable=True,
    rectifier=lambda layer: float(layer.negative_slope),
    accuracy=BASIC,
    error=_leaky_error,
    functions={F.leaky_relu: FunctionForm(_leaky_relu)},
    onnx=OnnxForm(_leaky_onnx, OnnxReading("LeakyRelu", 16, {"negative_slope": ("alpha", 0.01)})),
)
