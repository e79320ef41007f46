"""What linear lower bounds of several functions say about the part of a box where all of them may be at most zero.

For each function f there is a lower bound L over the box [l, u] and the coefficients
Λ of its linear bound, which takes the value L in the corner where it is smallest. With
the distances t ≥ 0 from this corner, f(x) ≥ L + Σᵢ |Λᵢ| tᵢ for every x in the box.

Sums with weights μ ≥ 0 are linear bounds too: Σ μₛ fₛ(x) ≥ Σ μₛ Lₛ + Σᵢ hᵢ(xᵢ), where each hᵢ is linear and at least
(uᵢ − lᵢ) · min(Σₛ μₛ Λₛᵢ⁺, Σₛ μₛ Λₛᵢ⁻). Where such a sum is above zero in the whole box, one function is above zero
everywhere. This is the Lagrangian dual of the linear program that asks for an input at which all bounds are at most 0.

What underflows here is far less than COEFFICIENTS_UNDERFLOW, by which the bounds are lower than they could be.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.rounding import UNIT64

WEIGHT_STEPS, RATE, RATE_DECAY = 15, 2.0, 0.3  # of the ascent that looks for weights
ROUNDS = 2  # of intersections with the halfspaces, since each can make the next one smaller
OUTWARD = 1 + 64 * UNIT64  # covers the rounding of a distance


class LinearFunctions(NamedTuple):
    """Linear bounds of S functions in each of C cases, over D boxes with N entries.

    lower, upper: (D, N), the ends of the boxes. bounds: (D, C, S), and coefficients: (D, C, S, N). A bound that is not
    finite is −∞, with coefficients 0.
    """

    lower: Tensor
    upper: Tensor
    bounds: Tensor
    coefficients: Tensor

    @classmethod
    def of(cls, lower: Tensor, upper: Tensor, bounds: Tensor, coefficients: Tensor) -> "LinearFunctions":
        """From bounds of which some may be NaN or infinite."""
        known = bounds.isfinite() & coefficients.isfinite().all(-1)
        return cls(lower, upper, bounds.where(known, -torch.inf), coefficients.where(known.unsqueeze(-1), 0.0))

    def take(self, chosen: Tensor) -> "LinearFunctions":
        """Those of some of the boxes."""
        return LinearFunctions(*(part[chosen] for part in self))

    @property
    def widths(self) -> Tensor:
        """(D, N)."""
        return self.upper - self.lower


@torch.no_grad()
def with_combinations(linear: LinearFunctions) -> LinearFunctions:
    """The same with one more function in each case: the weighted sum of the case's functions with the best bound.

    Where there is one function, nothing is added. The sum of the weights is 1, but for rounding.
    """
    if linear.bounds.shape[2] == 1:
        return linear
    weights = linear.bounds.new_zeros(linear.bounds.shape)
    best_weights, best = weights, torch.full_like(linear.bounds[..., :1], -torch.inf)
    for step in range(WEIGHT_STEPS):
        shares = weights.softmax(2)
        bound, values = _combined(linear, shares)
        better = bound > best
        best, best_weights = torch.where(better, bound, best), torch.where(better, shares, best_weights)
        size = values.abs().amax(2, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
        weights = weights + (values / size).nan_to_num(0.0) * (RATE / (1 + RATE_DECAY * step))
    bounds = torch.cat([linear.bounds, best - _lost(linear, best_weights)], 2)
    coefficients = (best_weights.unsqueeze(2) @ linear.coefficients.flatten(3)).view_as(linear.coefficients[:, :, :1])
    return LinearFunctions.of(linear.lower, linear.upper, bounds, torch.cat([linear.coefficients, coefficients], 2))


def _combined(linear: LinearFunctions, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The bound (D, C, 1) of the weighted sum, and each function's linear bound (D, C, S) where the sum is smallest."""
    rising = (weights.unsqueeze(2) @ linear.coefficients.relu()).squeeze(2)  # (D, C, N), from the lower end
    falling = (weights.unsqueeze(2) @ (-linear.coefficients).relu()).squeeze(2)
    widths = linear.widths.unsqueeze(1)
    bound = (weights * linear.bounds).sum(2) + (widths * torch.minimum(rising, falling)).sum(2)
    # The sum is smallest at the lower end where it rises; there, functions that fall are above their bounds.
    at_lower = (rising >= falling).unsqueeze(2)
    away = torch.where(at_lower, (-linear.coefficients).relu(), linear.coefficients.relu())
    return bound.unsqueeze(2), linear.bounds + (away @ linear.widths.view(len(away), 1, -1, 1)).squeeze(3)


def _lost(linear: LinearFunctions, weights: Tensor) -> Tensor:
    """(D, C, 1): the rounding of the weighted sum, of its bound and of its coefficients anywhere in the box."""
    size = (linear.coefficients.abs() @ linear.widths.view(len(weights), 1, -1, 1)).squeeze(3) + linear.bounds.abs()
    terms = sum(linear.coefficients.shape[2:]) + 16
    return 4 * terms * UNIT64 * (weights * size).sum(2, keepdim=True)


class Remaining(NamedTuple):
    """What is left of D boxes: ends (D, N) of a box that contains it, and in which cases (D, C) anything is left."""

    lower: Tensor
    upper: Tensor
    cases: Tensor


def open_cases(linear: LinearFunctions) -> Tensor:
    """The cases (D, C) in which no function has a bound above zero."""
    return ~((linear.bounds > 0) & linear.bounds.isfinite()).any(2)


@torch.no_grad()
def remaining(linear: LinearFunctions, considered: Tensor) -> Remaining:
    """A box around every x at which, in one of the cases `considered` (D, C), all bounds are at most zero.

    Where there is no such x, no case is left, and the box stays as it is.
    """
    lower, upper = (end.unsqueeze(1).expand(-1, linear.bounds.shape[1], -1) for end in linear[:2])
    for _ in range(ROUNDS):
        for number in range(linear.bounds.shape[2]):
            lower, upper = _intersected(linear, number, lower, upper)
    left = considered & (lower <= upper).all(2)
    hull = (
        lower.masked_fill(~left.unsqueeze(2), torch.inf).amin(1),
        upper.masked_fill(~left.unsqueeze(2), -torch.inf).amax(1),
    )
    some = left.any(1, keepdim=True)
    return Remaining(torch.where(some, hull[0], linear.lower), torch.where(some, hull[1], linear.upper), left)


def _intersected(linear: LinearFunctions, number: int, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (D, C, N) around the parts of boxes where one function's linear bound is at most zero; empty where none."""
    slopes = linear.coefficients[:, :, number]
    moved = torch.where(slopes > 0, lower - linear.lower.unsqueeze(1), linear.upper.unsqueeze(1) - upper)
    added = slopes.abs() * moved.clamp(min=0)  # what the corner of the smaller box adds to the bound
    bound = linear.bounds[:, :, number] + added.sum(2) * (1 - 4 * (added.shape[2] + 8) * UNIT64)
    reach = ((-bound).relu() * OUTWARD).unsqueeze(2) / slopes.abs() * OUTWARD  # the part ends so far from the corner
    known = reach.isfinite() & bound.isfinite().unsqueeze(2)  # no slope of zero
    tiny = torch.finfo(reach.dtype).tiny
    new_upper = lower + reach + (4 * UNIT64 * (lower.abs() + reach) + tiny)
    new_lower = upper - reach - (4 * UNIT64 * (upper.abs() + reach) + tiny)
    new_upper = torch.where((slopes > 0) & known, torch.minimum(upper, new_upper), upper)
    new_lower = torch.where((slopes < 0) & known, torch.maximum(lower, new_lower), lower)
    nothing = ((bound > 0) & bound.isfinite()).unsqueeze(2)
    return new_lower.masked_fill(nothing, torch.inf), new_upper.masked_fill(nothing, -torch.inf)
