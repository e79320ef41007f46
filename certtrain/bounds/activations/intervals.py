"""Interval rules that several activations share."""

import torch
from torch import Tensor

from certtrain.bounds.box import Box, Pointwise


def monotone_box(function: Pointwise, box: Box, ends: Pointwise | None = None) -> Box:
    """The box after a nondecreasing function, which maps ends to ends; `ends`, if given, computes it at the ends."""
    lower, upper = (ends or function)(box.lower), (ends or function)(box.upper)
    return box_of_ends(lower, upper, None if box.clean is None else function(box.clean))


def box_of_ends(lower: Tensor, upper: Tensor, clean: Tensor | None) -> Box:
    """The box with these ends. Their memory is reused where no gradient needs it."""
    if torch.is_grad_enabled():
        return Box(torch.lerp(lower, upper, 0.5), (upper - lower) * 0.5, clean)
    centre = lower.lerp_(upper, 0.5)
    return Box(centre, upper.sub_(centre), clean)


def unimodal_box(function: Pointwise, minimiser: float, least: float, box: Box) -> Box:
    """The box after a function that decreases up to `minimiser` and increases after it.

    `least` is a lower bound of the minimum. The minimiser counts as inside the box if rounding could put it there.
    """
    low, high = box.lower, box.upper
    at_low, at_high = function(low), function(high)
    inside = (low <= minimiser + CLOSE) & (high >= minimiser - CLOSE)
    lower = torch.minimum(at_low, at_high)
    lower = torch.where(inside, lower.clamp(max=least), lower)
    return box_of_ends(lower, torch.maximum(at_low, at_high), None if box.clean is None else function(box.clean))


CLOSE = 1e-7  # above float32's rounding of a minimiser near 1; this close, the function is within 1e-14 of its minimum
