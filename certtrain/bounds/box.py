"""Boxes of values, as centre and radius: interval bounds propagate them, attacks and searches start from them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.rounding import UNIT64

Pointwise = Callable[[Tensor], Tensor]
Clip = tuple[float, float] | None

PIXEL_RANGE = (0.0, 1.0)


class Box(NamedTuple):
    """A batch of boxes and, optionally, the clean batch inside them; (B, …) each, the radius not negative."""

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
        """The clean batch, or the centres where there is none."""
        return self.centre if self.clean is None else self.clean

    def examples(self, chosen: slice | Tensor) -> "Box":
        """The boxes of some examples of the batch."""
        return Box(self.centre[chosen], self.radius[chosen], None if self.clean is None else self.clean[chosen])

    def in_float32(self) -> "Box":
        """The same without the clean batch, in float32."""
        return Box(self.centre.float(), self.radius.float())

    def through(self, on_values: Pointwise, on_radius: Pointwise) -> "Box":
        """The box after a layer that maps centre and clean batch by `on_values`, and the radius by `on_radius`."""
        clean = None if self.clean is None else on_values(self.clean)
        return Box(on_values(self.centre), on_radius(self.radius), clean)

    def through_stacked(self, on_values: Pointwise, on_radius: Pointwise) -> "Box":
        """As `through`, with centre and clean batch as one batch: for layers that read many weights."""
        if self.clean is None:
            return self.through(on_values, on_radius)
        both, count = on_values(torch.cat([self.centre, self.clean])), len(self.centre)
        return Box(both[:count], on_radius(self.radius), both[count:])


def input_box(
    x: Tensor,
    eps: float | Tensor,
    clip: Clip = PIXEL_RANGE,
    *,
    with_clean: bool = False,
) -> Box:
    """The box [x − ε, x + ε] ∩ clip around each of `x` (B, …).

    with_clean: whether the box also has `x` as its clean batch.
    """
    lower, upper = x - eps, x + eps
    if clip is not None:
        lower, upper = lower.clamp(*clip), upper.clamp(*clip)
    return box_between(lower, upper)._replace(clean=x if with_clean else None)


def box_between(lower: Tensor, upper: Tensor) -> Box:
    """The box from `lower` to `upper` (B, …)."""
    return Box((lower + upper) / 2, (upper - lower) / 2)


def containing_exact(box: Box) -> Box:
    """A float64 box that contains the exact box which `box` was computed for, by `input_box` or `box_between`."""
    # The ends, the centre and the radius each round by at most a unit of |l| + |u| ≤ 2 (|c| + r); a half may underflow.
    size = box.centre.abs() + box.radius
    return box._replace(radius=box.radius + (16 * UNIT64 * size + torch.finfo(size.dtype).tiny))


def box_ends(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The smallest and the largest number of `x`'s type (B, …) in [x − ε, x + ε] ∩ [0, 1], in real numbers.

    The computed sum x + ε is rounded, and may lie outside the box by a unit in the last place. These two ends do not.
    """
    return (-_at_most(-x, eps)).clamp(min=0), _at_most(x, eps).clamp(max=1)


def _at_most(x: Tensor, eps: float) -> Tensor:
    """The largest number of `x`'s type that is at most x + ε."""
    exact = x.double()
    end = exact + eps
    # Knuth's two-sum: `lost` is exactly the rounding error of x + ε.
    part = end - exact
    lost = (exact - (end - part)) + (eps - part)
    end = torch.where(lost < 0, _next_below(end), end)
    rounded = end.to(x.dtype)
    return torch.where(rounded.double() > end, _next_below(rounded), rounded)


def _next_below(x: Tensor) -> Tensor:
    return x.nextafter(torch.full_like(x, -torch.inf))
