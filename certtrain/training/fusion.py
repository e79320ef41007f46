"""Loss fusion: an upper bound of the cross-entropy by one backsubstitution, whatever the number of classes.

The loss of an example is log Σ_j exp(z_j) with z_j = logit[j] − logit[y]. Over
the interval bounds of z_j, exp lies below its chord. So the sum lies below a
linear function of the logits, which one backsubstitution through the network
bounds from above (Xu et al. 2020, section 3.3). Bounds of the margins need one
backsubstitution for each class.
"""

import torch
from torch import Tensor

from certtrain.bounds.linear import lower_bounds
from certtrain.bounds.trace import BoundTrace


def fused_cross_entropy(trace: BoundTrace, labels: Tensor) -> Tensor:
    """An upper bound (B,) of each example's cross-entropy against `labels` (B,) over its box.

    It is sound: never below the largest cross-entropy in the box. It may be
    larger or smaller than the cross-entropy of the margins' linear bounds: a
    chord is looser than exp, but one function for all classes is tighter than
    one for each. It is never above the cross-entropy of the interval bounds if
    the linear bounds are tighter than those. If the intervals are wide, a chord
    is far above exp, and the bound is only a little below that of the intervals.
    """
    margins = trace.logits.margin_box(labels)
    lower, upper = _at_least_float(-margins.upper), _at_least_float(-margins.lower)  # of z (B, K)
    shift = upper.detach().amax(dim=1, keepdim=True)  # so that no exp overflows; it drops out at the end
    slope, value = _chord(lower - shift, upper - shift)
    label_slope = torch.zeros_like(slope).scatter(1, labels.unsqueeze(1), slope.sum(1, keepdim=True))
    below = lower_bounds(trace, (label_slope - slope).unsqueeze(1)).squeeze(1)  # of −Σ slope_j z_j
    total = (value - slope * upper).sum(1) - below
    # In exact arithmetic the sum is at least its value at the lower ends; rounding must not reduce it to zero.
    least = (lower - shift).exp().sum(1).clamp(min=torch.finfo(total.dtype).tiny)
    return torch.maximum(total, least).log() + shift.squeeze(1)


def _chord(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The slope of the chord of exp over [lower, upper], and its value at the upper end."""
    value, width = upper.exp(), upper - lower
    wide = width > 0
    some = torch.where(wide, width, 1.0)
    return value * torch.where(wide, -torch.expm1(-some) / some, 1.0), value


def _at_least_float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
