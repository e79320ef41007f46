"""CROWN: the boxes at the nonlinear layers come from linear bounds too, layer by layer in the order of the network.

Zhang et al. 2018. A layer's input is bounded by the lines of the layers before
it, and gives its own lines to those behind it. Only where its lines are not
exact already does an input need bounds from here.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.box import Box
from certtrain.bounds.chunks import Functions, in_parts, rows_at_once, units
from certtrain.bounds.contract import check_order
from certtrain.bounds.graph import Add
from certtrain.bounds.interval import Tighten
from certtrain.bounds.linear import Prefix, backsubstitute
from certtrain.bounds.rounding import UNIT64
from certtrain.bounds.settings import Settings
from certtrain.bounds.shape_layers import Concat
from certtrain.bounds.trace import NONLINEAR
from certtrain.bounds.windows import parts

# Lower bounds (B, S) of functions, given by parts, of a prefix's result; B, S and the coefficients of each.
Follow = Callable[[Prefix, Functions, tuple[int, int], int], Tensor]
MIXING = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def by_crown(settings: Settings) -> Follow:
    """Lower bounds by the lines of the boxes that the records hold, in parts that fit into the memory."""

    def follow(prefix: Prefix, functions: Functions, shape: tuple[int, int], size: int) -> Tensor:
        rows = rows_at_once(prefix, size, settings)
        bound = partial(backsubstitute, rounding=settings.rounding)
        return in_parts(bound, prefix, functions, shape, rows, settings.deadline)

    return follow


def tightened(settings: Settings) -> Tighten:
    """The boxes of CROWN's bounds, the intervals' own where a layer's lines are exact already."""
    return lambda layer, records, start, box: tighten(layer, Prefix(records, start), box, by_crown(settings), settings)


def intersection(box: Box, other: Box, settings: Settings) -> Box:
    """What two boxes for the same values have in common."""
    return _box(torch.maximum(box.lower, other.lower), torch.minimum(box.upper, other.upper), box, settings)


@torch.no_grad()
def tighten(
    layer: nn.Module, prefix: Prefix, box: Box, follow: Follow, settings: Settings, most: int | None = None
) -> Box:
    """`box` at the input of `layer`, by the bounds that `follow` finds where the layer's lines are not exact.

    Examples with more than `most` such inputs are left as they are, and so are
    all inputs that no bound was found of before the deadline. As in the
    field's own implementation the new bounds take the old ones' place, the
    tighter or not; `intersection` has both.
    """
    if exact(prefix):
        return box
    chosen = open_inputs(layer, box)
    if most is None and chosen[0].numel() <= settings.dense:
        chosen = torch.ones_like(chosen)
    if most is not None:
        few = chosen.flatten(1).sum(1) <= most
        chosen = chosen & few.view(-1, *[1] * (chosen.dim() - 1))
    lower, upper = box.lower, box.upper
    for part, seen in parts(prefix, chosen):
        if settings.deadline.over():
            break
        _tighten(part(lower), part(upper), part(chosen), seen, follow)
    return _box(lower, upper, box, settings)


def _tighten(lower: Tensor, upper: Tensor, chosen: Tensor, prefix: Prefix, follow: Follow) -> None:
    """Write the bounds that `follow` finds of the `chosen` (B, …) results of `prefix` over these."""
    flat = chosen.flatten(1)
    examples = flat.any(1).nonzero().squeeze(1)
    if not len(examples):
        return
    # The chosen come first; the examples that have fewer of them are filled up, and what is found there is left alone.
    count = int(flat.sum(1).max())
    index = flat[examples].to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    taken, prefix = flat[examples].gather(1, index), prefix.examples(examples)
    for ends, sign in ((lower, 1.0), (upper, -1.0)):
        found = sign * follow(prefix, units(index, sign, ends), (len(index), count), flat.shape[1])
        before = ends[examples].flatten(1)
        new = torch.where(taken & found.isfinite(), found, before.gather(1, index))
        ends[examples] = before.scatter(1, index, new).view(-1, *ends.shape[1:])


def open_inputs(layer: nn.Module, box: Box) -> Tensor:
    """Which inputs within `box` do not have lines that are exact already."""
    record = ACTIVATIONS.get(type(layer))
    return box.lower < box.upper if record is None else record.bends(layer, box)


def exact(prefix: Prefix) -> bool:
    """Whether intervals lose nothing: at most one layer mixes values, and none is nonlinear or joins two."""
    layers = [record.call.layer for record in prefix.records]
    return sum(isinstance(layer, MIXING) for layer in layers) <= 1 and not any(
        isinstance(layer, (*NONLINEAR, Add, Concat)) for layer in layers
    )


def _box(lower: Tensor, upper: Tensor, before: Box, settings: Settings) -> Box:
    # Without rounding, ends that are the same but for the last digits may come out in the other order.
    centre, radius = (lower + upper) / 2, ((upper - lower) / 2).clamp(min=0)
    if settings.rounding is not None:
        check_order(lower, upper, "a layer's inputs")
        # of centre and radius, and of the ends that others make of them
        radius = radius + 8 * UNIT64 * (centre.abs() + radius) + torch.finfo(radius.dtype).tiny
    return Box(centre, radius, before.clean)
