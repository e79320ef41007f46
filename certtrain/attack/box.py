"""The box of an attack in floating-point numbers: every one of them in the box of real numbers, and none left out."""

import torch
from torch import Tensor


def box_ends(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The least and the greatest number of `x`'s type (B, …) in [x − ε, x + ε] ∩ [0, 1], in real numbers.

    A sum is rounded: x + ε as computed may lie outside the box by its last digit.
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
