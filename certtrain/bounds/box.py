"""Boxes of values, as centre and radius: what interval bounds carry, and what attacks and domains begin with."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.rounding import UNIT64, Rounding

Pointwise = Callable[[Tensor], Tensor]
Clip = tuple[float, float] | None

PIXEL_RANGE = (0.0, 1.0)


class Box(NamedTuple):
    """A batch of boxes and, where it is wanted, the clean batch inside them; (B, …) each, radius not negative."""

    centre: Tensor
    radius: Tensor
    clean: Tensor | None = None

    @property
    def lower(self) -> Tensor:
        return self.centre - self.radius

    @property
    def upper(self) -> Tensor:
        return self.centre + self.radius

    @property
    def values(self) -> Tensor:
        """What the boxes are about: the clean batch, or the centres where none is carried."""
        return self.centre if self.clean is None else self.clean

    def examples(self, chosen: slice | Tensor) -> "Box":
        """The boxes of some of the batch."""
        return Box(self.centre[chosen], self.radius[chosen], None if self.clean is None else self.clean[chosen])

    def through(self, points: Pointwise, radius: Pointwise) -> "Box":
        """The box after a layer that maps centre and clean batch by `points`, and radius by `radius`."""
        clean = None if self.clean is None else points(self.clean)
        return Box(points(self.centre), radius(self.radius), clean)

    def through_stacked(self, points: Pointwise, radius: Pointwise) -> "Box":
        """As `through`, with centre and clean batch as one batch: for layers that read many weights."""
        if self.clean is None:
            return self.through(points, radius)
        both, count = points(torch.cat([self.centre, self.clean])), len(self.centre)
        return Box(both[:count], radius(self.radius), both[count:])


def input_box(
    x: Tensor,
    eps: float | Tensor,
    clip: Clip = PIXEL_RANGE,
    *,
    with_clean: bool = False,
    rounding: Rounding | None = None,
) -> Box:
    """The box [x − ε, x + ε] ∩ clip around each of `x` (B, …); with `rounding`, one that holds the exact box.

    with_clean: whether a pass carries `x` itself beside the boxes.
    """
    lower, upper = x - eps, x + eps
    if clip is not None:
        lower, upper = lower.clamp(*clip), upper.clamp(*clip)
    return box_between(lower, upper, rounding)._replace(clean=x if with_clean else None)


def box_between(lower: Tensor, upper: Tensor, rounding: Rounding | None = None) -> Box:
    """The box from `lower` to `upper` (B, …); with `rounding`, one that holds the exact box, rounded ends and all."""
    radius = (upper - lower) / 2
    if rounding is not None:
        # The ends, the centre and the radius round by a unit of |l| + |u| each, or less; a product may underflow.
        radius = radius + (8 * UNIT64 * (lower.abs() + upper.abs()) + torch.finfo(lower.dtype).tiny)
    return Box((lower + upper) / 2, radius)


def box_ends(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The least and the greatest number of `x`'s type (B, …) in [x − ε, x + ε] ∩ [0, 1], in real numbers.

    A sum is rounded: x + ε as computed may lie outside the box by its last digit. These two ends do not.
    """
    return (-_at_most(-x, eps)).clamp(min=0), _at_most(x, eps).clamp(max=1)


def _at_most(x: Tensor, eps: float) -> Tensor:
    """The greatest number of `x`'s type that is at most x + ε."""
    exact = x.double()
    end = exact + eps
    # Knuth's sum of two: `lost` is exactly what rounding took from x + ε.
    part = end - exact
    lost = (exact - (end - part)) + (eps - part)
    end = torch.where(lost < 0, _next_below(end), end)
    rounded = end.to(x.dtype)
    return torch.where(rounded.double() > end, _next_below(rounded), rounded)


def _next_below(x: Tensor) -> Tensor:
    return x.nextafter(torch.full_like(x, -torch.inf))
