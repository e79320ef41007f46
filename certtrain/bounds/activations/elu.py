"""ELU: x above zero, α(exp(x) − 1) below, for α > 0.

It increases everywhere. Its slope changes from α to 1 at zero. For α up to 1 it is
convex; for α above 1 it is convex below zero and a line above.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations.curves import NO_POINT, ActivationCurve, Touching, curve_lines
from certtrain.bounds.activations.intervals import monotone_box
from certtrain.bounds.activations.record import Accuracy, Activation, nonzero_width
from certtrain.bounds.activations.tangents import TangentLines, tangent_lines
from certtrain.bounds.box import Box
from certtrain.bounds.forms import FunctionForm, OnnxForm, OnnxReading, Operator, number_given
from certtrain.bounds.layer_errors import PointwiseError, magnitude
from certtrain.bounds.lines import Lines
from certtrain.bounds.rounding import EXTRA_ROUNDINGS, UNIT64, Rounding
from certtrain.spec.activations import ELUSection
from certtrain.spec.layer_section import LARGEST_FLOAT

_ACCURACY = Accuracy(8, "ELU is within 8 units in the last place of alpha below zero, and exact above")

NEWTON_STEPS = 4


def _refusal(layer: nn.ELU) -> str | None:
    if 0 < layer.alpha <= LARGEST_FLOAT:
        return None
    return f"is an ELU with alpha = {layer.alpha:g}; it has a rule for finite numbers above zero, where it is monotone"


def _interval(layer: nn.ELU, box: Box) -> Box:
    return monotone_box(lambda x: F.elu(x, layer.alpha), box)


def _lines(layer: nn.ELU, box: Box) -> Lines:
    return curve_lines(_curve(layer), box)


def _free_lines(layer: nn.ELU, box: Box) -> TangentLines | None:
    return tangent_lines(_curve(layer), box)


def _curve(layer: nn.ELU) -> ActivationCurve:
    alpha = float(layer.alpha)

    def value(x: Tensor) -> Tensor:
        return F.elu(x, alpha)

    def derivative(x: Tensor) -> Tensor:
        return torch.where(x > 0, 1.0, alpha * x.clamp(max=0).exp())

    if alpha <= 1:
        return ActivationCurve(value, derivative, -math.inf, math.inf, (0.0, 1.0), None)
    touching = Touching(
        lambda end: _touched_below(alpha, end), lambda end: torch.where(value(end) <= end, 0.0, NO_POINT).to(end)
    )
    return ActivationCurve(value, derivative, -math.inf, 0.0, (0.0, alpha), touching, kink=True)


def _touched_below(alpha: float, end: Tensor) -> Tensor:
    """The point q below zero at which a line through (e, e) touches α(exp(x) − 1), for e above zero.

    With s = 1 + e − q that is s − log s = 1 + e − log(1 + e/α), which is convex in s: Newton's method.
    """
    end = end.clamp(min=0)
    constant = 1 + end - torch.log1p(end / alpha)
    s = constant + torch.sqrt(2 * (constant - 1).clamp(min=0))
    for _ in range(NEWTON_STEPS):
        s = s - (s - s.log() - constant) * s / (s - 1).clamp(min=1e-6)
    return 1 + end - s


def _unstable(layer: nn.ELU, box: Box) -> Tensor:
    return nonzero_width(layer, box) & (box.lower < 0)


def _error(rounding: Rounding, layer: nn.ELU, units: int) -> PointwiseError:
    """Some of torch's kernels compute exp(x) − 1, which cancels near zero, so the error is relative to α.

    The rounding of an end of the box changes the result by a unit of x times the slope, 1 or α · exp(x): at most
    |x| + α/2 units. The slopes of the lines are at most 1 or α.
    """
    alpha = float(layer.alpha)
    share, steepest = rounding.function_of_input(units), max(1.0, alpha)

    def absolute(given: Box, result: Box) -> Tensor:
        own = 2 * EXTRA_ROUNDINGS * UNIT64 * (magnitude(given) + alpha)
        return torch.where(given.lower <= 0, share * alpha, 0.0) + own

    return PointwiseError(
        rounding.stored(), lambda size: 4 * steepest * size + 2 * alpha, can_overflow=True, absolute=absolute
    )


def _elu(alpha: float = 1.0, inplace: bool = False) -> list[nn.Module]:
    return [nn.ELU(number_given(alpha))]


def _onnx(layer: nn.ELU) -> list[Operator]:
    return [Operator("Elu", {}, {"alpha": float(layer.alpha)})]


ELU = Activation(
    layer=nn.ELU,
    section=ELUSection,
    refusal=_refusal,
    monotone=True,
    interval=_interval,
    lines=_lines,
    free_lines=_free_lines,
    unstable=_unstable,
    splittable=True,
    rectifier=None,
    accuracy=_ACCURACY,
    error=_error,
    functions={F.elu: FunctionForm(_elu)},
    onnx=OnnxForm(_onnx, OnnxReading("Elu", 22, {"alpha": ("alpha", 1.0)})),
)
