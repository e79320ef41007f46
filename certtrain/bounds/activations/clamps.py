"""Hardtanh, ReLU6 and torch.clamp: min(max(x, a), b). Either limit may be missing."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations.intervals import monotone_box
from certtrain.bounds.activations.record import BASIC, Activation
from certtrain.bounds.box import Box
from certtrain.bounds.forms import FunctionForm, OnnxForm, Operator, number_given
from certtrain.bounds.layer_errors import PointwiseError
from certtrain.bounds.lines import Lines
from certtrain.bounds.rounding import Rounding
from certtrain.spec.activations import ClampSection, HardtanhSection, ReLU6Section
from certtrain.spec.layer_section import LARGEST_FLOAT, ElementwiseSection

_Limits = tuple[float | None, float | None]


class Clamp(nn.Module):
    """torch.clamp by numbers, None for no limit."""

    def __init__(self, min: float | None = None, max: float | None = None) -> None:
        super().__init__()
        self.min, self.max = min, max

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.min, self.max)

    def extra_repr(self) -> str:
        """The limits; layers are compared by this text."""
        return f"min={self.min}, max={self.max}"


def limits_of(layer: Any) -> _Limits:
    """The least and the largest value, None for no limit."""
    return (layer.min, layer.max) if isinstance(layer, Clamp) else (layer.min_val, layer.max_val)


def _ends(layer: nn.Module) -> tuple[float, float]:
    """The limits; infinite where there is none."""
    low, high = limits_of(layer)
    return -math.inf if low is None else low, math.inf if high is None else high


def _refusal(layer: nn.Module) -> str | None:
    low, high = limits_of(layer)
    if (low is None and high is None) or not all(end is None or abs(end) <= LARGEST_FLOAT for end in (low, high)):
        return f"clamps to {low} and {high}; use finite numbers that float32 can hold, or None for one of them"
    if low is not None and high is not None and low > high:
        return f"clamps to {low:g} and {high:g}, of which the first is above the second"
    return None


def _relu6_refusal(layer: nn.ReLU6) -> str | None:
    """ReLU6 takes no limits as arguments, but its attributes can be changed."""
    return None if limits_of(layer) == (0, 6) else f"is a ReLU6 with the limits {limits_of(layer)}; use nn.Hardtanh"


def _interval(layer: nn.Module, box: Box) -> Box:
    return monotone_box(lambda x: torch.clamp(x, *limits_of(layer)), box)


class _ClampLines(NamedTuple):
    """Lines through a corner of the function: any slope from zero, a constant, to that of the chord is sound.

    leaves, reaches: where the function leaves its least value in the box, and where it reaches its largest one. least,
    most: these values. below, above: the slopes of the chords from there to the other end.
    """

    leaves: Tensor
    reaches: Tensor
    least: Tensor
    most: Tensor
    below: Tensor
    above: Tensor

    def lines(self, below: Tensor | float, above: Tensor | float) -> Lines:
        """The lines whose slopes are these shares of the chords'."""
        lower, upper = below * self.below, above * self.above
        return Lines(lower, self.least - lower * self.leaves, upper, self.most - upper * self.reaches)


def _clamp_lines(layer: nn.Module, box: Box) -> _ClampLines:
    (first, last), low, high = _ends(layer), box.lower, box.upper
    leaves, reaches = low.clamp(min=first), high.clamp(max=last)
    least, most = leaves.clamp(max=last), reaches.clamp(min=first)
    below = _share(high.clamp(first, last) - least, high - leaves)
    above = _share(most - low.clamp(first, last), reaches - low)
    return _ClampLines(leaves, reaches, least, most, below, above)


def _lines(layer: nn.Module, box: Box) -> Lines:
    """The lower line is constant or a chord, the higher of both at the centre; the upper one is its mirror image."""
    each = _clamp_lines(layer, box)
    return each.lines((box.centre > each.leaves).to(each.below), (box.centre < each.reaches).to(each.above))


class ClampSlopes(NamedTuple):
    """The lines over boxes (B, 1, …) with slopes to choose: those of the chords times α (B, S, 2, …) in [0, 1]."""

    clamped: _ClampLines
    first: Tensor
    least: Tensor
    most: Tensor

    def examples(self, chosen: Tensor) -> "ClampSlopes":
        """The slopes of some examples of the batch."""
        clamped = _ClampLines(*(part[chosen] for part in self.clamped))
        return ClampSlopes(clamped, *(number[chosen] for number in self[1:]))

    def at(self, alpha: Tensor) -> Lines:
        """The lines (B, S, …) for α (B, S, 2, …), one for each function; sound for any α in [0, 1]."""
        return self.clamped.lines(alpha[:, :, 0], alpha[:, :, 1])


def _free_lines(layer: nn.Module, box: Box) -> ClampSlopes | None:
    if not bool(_unstable(layer, box).any()):
        return None
    each = _clamp_lines(layer, box)
    first = torch.stack((box.centre > each.leaves, box.centre < each.reaches), 1).unsqueeze(1).to(each.below)
    each = _ClampLines(*(part.unsqueeze(1) for part in each))
    return ClampSlopes(each, first, torch.zeros_like(first), torch.ones_like(first))


def _share(rise: Tensor, run: Tensor) -> Tensor:
    """rise / run, a slope between 0 and 1; any finite number where both are zero."""
    return rise / run.clamp(min=torch.finfo(run.dtype).tiny)


def _unstable(layer: nn.Module, box: Box) -> Tensor:
    first, last = _ends(layer)
    return ((box.lower < first) & (box.upper > first)) | ((box.lower < last) & (box.upper > last))


def _error(rounding: Rounding, layer: nn.Module, units: int) -> PointwiseError:
    """The limits are rounded to the type of the values, and a result that is cut is one of the limits."""
    largest = max(abs(end) for end in limits_of(layer) if end is not None)
    return PointwiseError(rounding.steps(1), lambda size: 4 * (size + largest), can_overflow=True)


def _onnx(layer: nn.Module) -> list[Operator]:
    low, high = (None if end is None else torch.tensor(float(end)) for end in limits_of(layer))
    return [Operator("Clip", {"min": low, "max": high})]


def _record(
    layer: type[nn.Module],
    section: type[ElementwiseSection],
    functions: Mapping[object, FunctionForm],
    refusal: Callable[[Any], str | None] = _refusal,
) -> Activation:
    """One of the three. ONNX's Clip is read as two ReLUs instead, since complete verification can split these."""
    return Activation(
        layer=layer,
        section=section,
        refusal=refusal,
        monotone=True,
        interval=_interval,
        lines=_lines,
        free_lines=_free_lines,
        unstable=_unstable,
        splittable=False,
        rectifier=None,
        accuracy=BASIC,
        error=_error,
        functions=functions,
        onnx=OnnxForm(_onnx, None),
    )


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> list[nn.Module]:
    low, high = number_given(min_val), number_given(max_val)
    if not low < high:
        raise ValueError(f"the limits {low} and {high}; the first must be below the second")
    return [nn.Hardtanh(low, high)]


def _relu6(inplace: bool = False) -> list[nn.Module]:
    return [nn.ReLU6()]


def _clamp(min: Any = None, max: Any = None) -> list[nn.Module]:
    ends = number_given(min), number_given(max)
    if any(isinstance(end, Tensor) for end in ends):
        raise ValueError("a tensor of limits; give numbers")
    return [Clamp(*ends)]


HARDTANH = _record(nn.Hardtanh, HardtanhSection, {F.hardtanh: FunctionForm(_hardtanh)})
RELU6 = _record(nn.ReLU6, ReLU6Section, {F.relu6: FunctionForm(_relu6)}, _relu6_refusal)
CLAMP = _record(
    Clamp,
    ClampSection,
    dict.fromkeys((torch.clamp, "clamp", torch.clip, "clip"), FunctionForm(_clamp))
    | dict.fromkeys((torch.clamp_, "clamp_", torch.clip_, "clip_"), FunctionForm(_clamp, inplace=True)),
)
CLAMPS = (nn.Hardtanh, nn.ReLU6, Clamp)
