"""CROWN: the boxes at the nonlinear layers come from linear bounds too, layer by layer in the order of the network.

Zhang et al. 2018. The relaxations of the earlier layers bound the input of each
nonlinear layer, and these bounds determine its relaxation. Neurons whose
relaxation is already exact need no such bounds.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.box import Box
from certtrain.bounds.chunks import Functions, in_parts, rows_at_once, signed_coordinates
from certtrain.bounds.contract import check_order
from certtrain.bounds.graph import Add
from certtrain.bounds.interval import Tighten
from certtrain.bounds.linear import Prefix, backsubstitute
from certtrain.bounds.rounding import UNIT64
from certtrain.bounds.settings import Settings
from certtrain.bounds.shape_layers import Concat
from certtrain.bounds.trace import NONLINEAR
from certtrain.bounds.windows import prefixes_by_window

# Lower bounds (B, S) from a prefix, functions of its result, (B, S), and the number of coefficients of each.
LowerBounds = Callable[[Prefix, Functions, tuple[int, int], int], Tensor]
MIXING = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def crown_lower_bounds(settings: Settings) -> LowerBounds:
    """Lower bounds by backsubstitution, with relaxations over the records' boxes, in parts that fit the memory."""

    def lower_bounds(prefix: Prefix, functions: Functions, shape: tuple[int, int], size: int) -> Tensor:
        rows = rows_at_once(prefix, size, settings)
        bound = partial(backsubstitute, rounding=settings.rounding)
        return in_parts(bound, prefix, functions, shape, rows, settings.deadline)

    return lower_bounds


def tighten_by_crown(settings: Settings) -> Tighten:
    """The boxes by CROWN; interval bounds stay where the relaxation is already exact."""
    return lambda layer, records, start, box: tighten(
        layer, Prefix(records, start), box, crown_lower_bounds(settings), settings
    )


def intersected(tighten: Tighten, settings: Settings) -> Tighten:
    """The boxes of `tighten`, intersected with the pass's intervals, which may be tighter for some values."""
    return lambda layer, records, start, box: intersection(box, tighten(layer, records, start, box), settings)


def intersection(box: Box, other: Box, settings: Settings) -> Box:
    """The intersection of two boxes for the same values."""
    return ordered_box(torch.maximum(box.lower, other.lower), torch.minimum(box.upper, other.upper), box, settings)


@torch.no_grad()
def tighten(
    layer: nn.Module, prefix: Prefix, box: Box, lower_bounds: LowerBounds, settings: Settings, most: int | None = None
) -> Box:
    """`box` at the input of `layer`, with the bounds of its unstable neurons replaced by `lower_bounds`.

    Examples with more than `most` unstable neurons keep their bounds, and so do
    neurons that are not bounded before the deadline. As in the authors'
    implementation, a new bound replaces the old one even if it is less tight;
    `intersection` takes the tighter of both.
    """
    if intervals_are_exact(prefix):
        return box
    return ordered_box(*tighter_ends(layer, prefix, box, lower_bounds, settings, most), box, settings)


def tighter_ends(
    layer: nn.Module,
    prefix: Prefix,
    box: Box,
    lower_bounds: LowerBounds,
    settings: Settings,
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The ends of `tighten`, whose order is not checked: the prefix may hold only under contradictory conditions."""
    if intervals_are_exact(prefix):
        return box.lower, box.upper
    chosen = unstable_neurons(layer, box)
    if most is None and chosen[0].numel() <= settings.dense:
        chosen = torch.ones_like(chosen)
    if most is not None:
        few = chosen.flatten(1).sum(1) <= most
        chosen = chosen & few.view(-1, *[1] * (chosen.dim() - 1))
    lower, upper = box.lower, box.upper
    for part, before in prefixes_by_window(prefix, chosen):
        if settings.deadline.over():
            break
        _write_bounds(part(lower), part(upper), part(chosen), before, lower_bounds)
    return lower, upper


def _write_bounds(lower: Tensor, upper: Tensor, chosen: Tensor, prefix: Prefix, lower_bounds: LowerBounds) -> None:
    """Replace `lower` and `upper` by the bounds of the `chosen` (B, …) results of `prefix`, in place."""
    flat = chosen.flatten(1)
    examples = flat.any(1).nonzero().squeeze(1)
    if not len(examples):
        return
    # The chosen values come first. Examples with fewer of them are padded with others, whose bounds are not used.
    count = int(flat.sum(1).max())
    index = flat[examples].to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    taken, prefix = flat[examples].gather(1, index), prefix.examples(examples)
    for ends, sign in ((lower, 1.0), (upper, -1.0)):
        found = sign * lower_bounds(prefix, signed_coordinates(index, sign, ends), (len(index), count), flat.shape[1])
        before = ends[examples].flatten(1)
        new = torch.where(taken & found.isfinite(), found, before.gather(1, index))
        ends[examples] = before.scatter(1, index, new).view(-1, *ends.shape[1:])


def unstable_neurons(layer: nn.Module, box: Box) -> Tensor:
    """Which neurons (B, …) at the input of `layer` have a relaxation over `box` that is not exact."""
    record = ACTIVATIONS.get(type(layer))
    return box.lower < box.upper if record is None else record.unstable(layer, box)


def intervals_are_exact(prefix: Prefix) -> bool:
    """Whether intervals of the result are exact: at most one layer mixes values, none is nonlinear or joins two."""
    layers = [record.call.layer for record in prefix.records]
    return sum(isinstance(layer, MIXING) for layer in layers) <= 1 and not any(
        isinstance(layer, (*NONLINEAR, Add, Concat)) for layer in layers
    )


def ordered_box(lower: Tensor, upper: Tensor, before: Box, settings: Settings) -> Box:
    """The box with these ends (B, …), and all rounding of a box; the clean batch is that of `before`."""
    # Without rounding, ends that are equal but for the last digits may be in the wrong order.
    centre, radius = (lower + upper) / 2, ((upper - lower) / 2).clamp(min=0)
    if settings.rounding is not None:
        check_order(lower, upper, "a layer's inputs")
        # the rounding of centre and radius, and of the ends that are computed from them
        radius = radius + 8 * UNIT64 * (centre.abs() + radius) + torch.finfo(radius.dtype).tiny
    return Box(centre, radius, before.clean)
