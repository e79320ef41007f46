"""The two warm-up regularisers of Shi et al. 2021, section 3.3.

Both are means over the ReLU layers, and zero for a layer that meets the
tolerance τ. Both are functions of a few sums at each ReLU's input, which can be
added up over the parts of a batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.box import Box

SMALLEST_WIDTH = 1e-12  # smaller widths are replaced by it, so that the ratio is finite


class Sums(NamedTuple):
    """Sums over batch and units at the inputs of L layers, each (L,).

    With A = 1[lower > 0], I = 1[upper < 0], centres c and radii r: Σ 1, Σ c,
    Σ r, Σ A, Σ c·A, Σ c²·A, Σ I, Σ c·I, Σ c²·I.
    """

    size: Tensor
    centre: Tensor
    radius: Tensor
    active: Tensor
    active_centre: Tensor
    active_square: Tensor
    inactive: Tensor
    inactive_centre: Tensor
    inactive_square: Tensor


def sums_of(boxes: Sequence[Box]) -> Tensor:
    """The sums (L, 9) of L boxes, in the order of the fields of `Sums`."""
    return torch.stack([_BoxSums.apply(_at_least_float(box.centre), _at_least_float(box.radius)) for box in boxes])


def width_of(box: Box) -> Tensor:
    """Σ 1 and Σ r of one box as such a row (9,); the other sums are zero."""
    width = _at_least_float(box.radius).sum()
    size, nothing = torch.full_like(width, box.radius.numel()), torch.zeros_like(width)
    return torch.stack([size, nothing, width, *[nothing] * (len(Sums._fields) - 3)])


def regularizer_losses(sums: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tightness and balance loss, and the number of layers without a balance ratio.

    `sums` (L + 1, 9): `width_of` the network's input, then `sums_of` L ReLU inputs.
    """
    network_input, relu_inputs = Sums(*sums[:1].unbind(1)), Sums(*sums[1:].unbind(1))
    balance, skipped = relu_balance_loss(relu_inputs, tolerance)
    return tightness_loss(network_input, relu_inputs, tolerance), balance, skipped


def tightness_loss(network_input: Sums, relu_inputs: Sums, tolerance: float) -> Tensor:
    """The mean of relu(τ − Δ0/Δ)/τ: Δ is the mean radius at a ReLU's input, Δ0 that at the network's input."""
    reference = network_input.radius / network_input.size
    widths = (relu_inputs.radius / relu_inputs.size).clamp(min=SMALLEST_WIDTH)
    return (torch.relu(tolerance - reference / widths) / tolerance).mean()


def relu_balance_loss(relu_inputs: Sums, tolerance: float) -> tuple[Tensor, Tensor]:
    """The mean of (relu(τ − r_m) + relu(τ − r_v))/τ, and the number of layers without a ratio.

    A layer has no ratio if none of its ReLUs is active or inactive. Its term is zero.
    """
    ratios = torch.stack(balance_ratios(relu_inputs))
    defined = ratios.isfinite().all(dim=0)
    terms = (torch.relu(tolerance - ratios) / tolerance).sum(dim=0)
    return terms.where(defined, 0.0).mean(), (~defined).sum()


def balance_ratios(relu_inputs: Sums) -> tuple[Tensor, Tensor]:
    """r_m and r_v, each (L,): the balance of active and inactive ReLUs in mean and in variance.

    r_m = mean(c·A) / −mean(c·I), r_v = Σ(c−c̄)²·A / Σ(c−c̄)²·I, each replaced by its inverse if that is smaller.
    """
    s = relu_inputs
    mean = s.centre / s.size
    active_spread = s.active_square - 2 * mean * s.active_centre + mean.square() * s.active
    inactive_spread = s.inactive_square - 2 * mean * s.inactive_centre + mean.square() * s.inactive
    # A spread is a sum of squares, but computed as a difference, so rounding may make it negative.
    return _folded(s.active_centre, -s.inactive_centre), _folded(active_spread.relu(), inactive_spread.relu())


class _BoxSums(torch.autograd.Function):
    """The sums (9,) of one box.

    The gradient is written out; A and I have none. With autograd, and with masks
    of bool instead of floats, these sums would take a large part of a training
    step on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, centre: Tensor, radius: Tensor) -> Tensor:
        active, inactive = (centre - radius).sign_().relu_(), (centre + radius).neg_().sign_().relu_()
        ctx.save_for_backward(centre, active, inactive)
        sums = [torch.full_like(centre[:0].sum(), centre.numel()), centre.sum(), radius.sum()]
        for state in (active, inactive):
            chosen = centre * state
            sums += [state.sum(), chosen.sum(), chosen.square_().sum()]
        return torch.stack(sums)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        centre, active, inactive = ctx.saved_tensors
        _, each, radius, _, on, on_square, _, off, off_square = gradients[0].unbind()
        result = (centre * (2 * on_square)).add_(on).mul_(active)
        result.addcmul_((centre * (2 * off_square)).add_(off), inactive).add_(each)
        return result, radius.expand_as(centre)


def _at_least_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def _folded(first: Tensor, second: Tensor) -> Tensor:
    """min(r, 1/r) with r = first/second, both at least 0; NaN, without a gradient, where both are zero."""
    larger = torch.maximum(first, second)
    ratio = torch.minimum(first, second) / larger.where(larger != 0, 1.0)
    return ratio.where(larger != 0, torch.nan)
