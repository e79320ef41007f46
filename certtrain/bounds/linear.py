"""Linear bounds: a linear function of the logits, followed back through the network to its input.

Λ·f(x) is bounded from below by Λ'·x + d over the box: an affine layer takes Λ
to its own transpose's image, a nonlinear one is replaced by a line below it
where Λ is positive and by one above where it is negative (Zhang et al. 2018,
CROWN, theorem 3.2). The lines come from the boxes that an interval pass has
left at the nonlinear layers, which makes this CROWN-IBP (Zhang et al. 2020).

Λ has shape (B, S, …): S functions for each of B examples.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.graph import Add, Normalize
from certtrain.bounds.interval import Visit, scale_and_shift
from certtrain.bounds.relaxation import RELAXATIONS, relaxed
from certtrain.bounds.rounding import of_line
from certtrain.bounds.statistics import BatchNorm
from certtrain.bounds.trace import BoundTrace


class Back(NamedTuple):
    """Λ (B, S, …) at a layer's input, and the constant (B, S) that the layer adds; None for none."""

    slope: Tensor
    constant: Tensor | None = None


def lower_bounds(trace: BoundTrace, functions: Tensor) -> Tensor:
    """Lower bounds (B, S) of `functions` (B, S, K), linear in the logits, over the boxes of `trace`."""
    pending = {len(trace.visits): functions}
    constants = []
    for number in reversed(range(len(trace.visits))):
        visit, slope = trace.visits[number], pending.pop(number + 1, None)
        if slope is None:  # a result that nothing uses
            continue
        back = RULES[type(visit.call.layer)](visit, slope)
        constants += [] if back.constant is None else [back.constant]
        constants += [] if visit.slack is None else [-_dot(slope.abs(), visit.slack)]
        for value in visit.call.inputs:
            pending[value] = pending[value] + back.slope if value in pending else back.slope
    start, size = trace.start, pending[0].abs()
    if trace.logits.rounding is not None:
        own = of_line(start.radius[:1].numel())
        constants.append(-_dot(size, own * (start.centre.abs() + start.radius)))
    return sum(constants, _dot(pending[0], start.centre) - _dot(size, start.radius))


def margins(trace: BoundTrace, labels: Tensor) -> Tensor:
    """Lower bounds (B, K) of logit[y] − logit[j] for the classes y in `labels` (B,); column y is 0."""
    each = _identity(trace)
    return lower_bounds(trace, each[labels].unsqueeze(1) - each)


def logits(trace: BoundTrace) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds (B, K) of the logits."""
    each = _identity(trace).expand(len(trace.start.radius), -1, -1)
    return lower_bounds(trace, each), -lower_bounds(trace, -each)


def _identity(trace: BoundTrace) -> Tensor:
    radius = trace.start.radius
    return torch.eye(trace.logits.shape[1], dtype=radius.dtype, device=radius.device)


# --- the rules -------------------------------------------------------------------------------------------


def _dot(slope: Tensor, values: Tensor) -> Tensor:
    """Λ·v (B, S), of Λ (B, S, …) and values (B, …) or fewer, summed in float32 at least."""
    return (slope * values.unsqueeze(1)).flatten(2).sum(2, dtype=torch.promote_types(slope.dtype, torch.float32))


def _linear(visit: Visit, slope: Tensor) -> Back:
    layer = visit.call.layer
    assert isinstance(layer, nn.Linear)
    return Back(slope @ layer.weight, None if layer.bias is None else _dot(slope, layer.bias.unsqueeze(0)))


def _conv2d(visit: Visit, slope: Tensor) -> Back:
    layer, shape = visit.call.layer, visit.shape
    assert isinstance(layer, nn.Conv2d)
    constant = None if layer.bias is None else _dot(slope, layer.bias.view(1, -1, 1, 1))
    padded = F.conv_transpose2d(
        slope.flatten(0, 1), layer.weight, None, layer.stride, 0, 0, layer.groups, layer.dilation
    )
    # Cut the padding off; at the far end there may be rows and columns that no window reaches.
    (top, left), (height, width) = _padding(layer), padded.shape[2:]
    back = F.pad(padded, (-left, shape[3] + left - width, -top, shape[2] + top - height))
    return Back(back.reshape(*slope.shape[:2], *shape[1:]), constant)


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    """Rows above and columns to the left."""
    if not isinstance(layer.padding, str):
        return layer.padding
    if layer.padding == "valid":
        return (0, 0)
    return tuple(
        dilation * (kernel - 1) // 2 for dilation, kernel in zip(layer.dilation, layer.kernel_size, strict=True)
    )


def _batch_norm(visit: Visit, slope: Tensor) -> Back:
    layer = visit.call.layer
    assert isinstance(layer, BatchNorm)
    assert visit.statistics is not None  # which every pass gives a BatchNorm
    scale, shift = scale_and_shift(layer, visit.statistics, len(visit.shape))
    return Back(slope * scale, _dot(slope, shift))


def _normalize(visit: Visit, slope: Tensor) -> Back:
    layer = visit.call.layer
    assert isinstance(layer, Normalize)
    scaled = slope / layer.std
    return Back(scaled, -_dot(scaled, layer.mean.unsqueeze(0)))


def _averaging(visit: Visit, slope: Tensor) -> Back:
    """A layer that is linear without a constant: its transpose is its gradient."""
    layer, shape = visit.call.layer, visit.shape
    some = slope.new_zeros(slope.shape[0] * slope.shape[1], *shape[1:])
    transpose = torch.func.vjp(layer, some)[1]
    return Back(transpose(slope.flatten(0, 1))[0].reshape(*slope.shape[:2], *shape[1:]))


def _reshaped(visit: Visit, slope: Tensor) -> Back:
    """Λ in its earlier shape; images in channels-last memory, as training has them."""
    back = slope.reshape(-1, *visit.shape[1:])
    if back.dim() == 4:
        back = back.contiguous(memory_format=torch.channels_last)
    return Back(back.view(*slope.shape[:2], *visit.shape[1:]))


def _add(visit: Visit, slope: Tensor) -> Back:
    return Back(slope)  # for both of its inputs


def _elementwise(visit: Visit, slope: Tensor) -> Back:
    assert visit.box is not None  # a trace keeps the boxes of all nonlinear layers
    lines, (positive, negative) = relaxed(visit.call.layer, visit.box), _by_sign(slope)
    back = positive * lines.lower_slope.unsqueeze(1) + negative * lines.upper_slope.unsqueeze(1)
    constant = slope.new_zeros(())
    for part, offset in ((positive, lines.lower_offset), (negative, lines.upper_offset)):
        constant = constant if offset is None else constant + _dot(part, offset)
    return Back(back, constant)


def _by_sign(slope: Tensor) -> tuple[Tensor, Tensor]:
    """The positive and the negative part, which add up to `slope`."""
    positive = torch.relu(slope)
    return positive, slope - positive


def _max_pool2d(visit: Visit, slope: Tensor) -> Back:
    """From below, the entry of each window whose lower bound is largest; from above, its largest upper bound."""
    layer, box = visit.call.layer, visit.box
    assert isinstance(layer, nn.MaxPool2d)
    assert box is not None
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    _, chosen = F.max_pool2d(box.lower, *window, return_indices=True)
    positive, negative = _by_sign(slope)
    places = chosen.flatten(-2).unsqueeze(1).expand(-1, slope.shape[1], *[-1] * (chosen.dim() - 2))
    back = slope.new_zeros(*slope.shape[:2], *visit.shape[1:]).flatten(-2)
    back = back.scatter_add(-1, places, positive.flatten(-2))
    return Back(back.reshape(*slope.shape[:2], *visit.shape[1:]), _dot(negative, F.max_pool2d(box.upper, *window)))


Rule = Callable[[Visit, Tensor], Back]

# Layer → rule, by exact type, for every layer that has a rule for intervals.
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Normalize: _normalize,
    nn.AvgPool2d: _averaging,
    nn.AdaptiveAvgPool2d: _averaging,
    nn.Flatten: _reshaped,
    nn.Identity: _reshaped,
    nn.Dropout: _reshaped,
    Add: _add,
    nn.MaxPool2d: _max_pool2d,
    **dict.fromkeys(RELAXATIONS, _elementwise),
}
