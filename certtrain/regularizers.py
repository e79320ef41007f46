"""The two warm-up regularisers of Shi et al. 2021, section 3.3, as functions of one pass's boxes.

Both are means over the ReLU layers, and zero once their tolerance τ is met.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from certtrain.bounds.interval import Box

SMALLEST_WIDTH = 1e-12  # below it a width counts as this, so that the ratio has a gradient


def tightness_loss(network_input: Box, relu_inputs: Sequence[Box], tolerance: float) -> Tensor:
    """Mean of relu(τ − Δ0/Δ)/τ: Δ is the mean radius at a ReLU's input, Δ0 at the network's."""
    reference = network_input.radius.mean()
    widths = torch.stack([box.radius.mean() for box in relu_inputs]).clamp(min=SMALLEST_WIDTH)
    return (torch.relu(tolerance - reference / widths) / tolerance).mean()


def relu_balance_loss(relu_inputs: Sequence[Box], tolerance: float) -> tuple[Tensor, Tensor]:
    """Mean of (relu(τ − r_m) + relu(τ − r_v))/τ, and the number of layers that have no such ratio.

    A layer where no ReLU is active and none inactive has no ratio; its term
    counts as zero.
    """
    ratios = torch.stack([torch.stack(balance_ratios(box)) for box in relu_inputs])
    defined = ratios.isfinite().all(dim=1)
    terms = (torch.relu(tolerance - ratios) / tolerance).sum(dim=1)
    return terms.where(defined, 0.0).mean(), (~defined).sum()


def balance_ratios(relu_input: Box) -> tuple[Tensor, Tensor]:
    """r_m and r_v, each folded to at most 1: how alike active and inactive ReLUs are in mean and variance.

    With A = 1[lower > 0], I = 1[upper < 0] and centres c over batch and units:
    r_m = mean(c·A) / −mean(c·I), r_v = Σ(c−c̄)²·A / Σ(c−c̄)²·I.
    """
    centre, radius = relu_input.centre, relu_input.radius
    active, inactive = centre > radius, centre < -radius
    deviation = (centre - centre.mean()).square()
    mean = _folded(_sum_where(active, centre), -_sum_where(inactive, centre))
    return mean, _folded(_sum_where(active, deviation), _sum_where(inactive, deviation))


def _sum_where(chosen: Tensor, values: Tensor) -> Tensor:
    return values.where(chosen, 0.0).sum()


def _folded(first: Tensor, second: Tensor) -> Tensor:
    """min(r, 1/r) of r = first/second, both not negative; NaN, with no gradient, where both are zero."""
    larger = torch.maximum(first, second)
    ratio = torch.minimum(first, second) / larger.where(larger != 0, 1.0)
    return ratio.where(larger != 0, torch.nan)
