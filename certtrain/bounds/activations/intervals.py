"""Interval rules that activations share."""

import torch
from torch import Tensor

from certtrain.bounds.box import Box, Pointwise


def monotone_box(function: Pointwise, box: Box, ends: Pointwise | None = None) -> Box:
    """A function that never falls when its input rises: it maps ends to ends, by `ends` if that is another function."""
    lower, upper = (ends or function)(box.lower), (ends or function)(box.upper)
    return box_of_ends(lower, upper, None if box.clean is None else function(box.clean))


def box_of_ends(lower: Tensor, upper: Tensor, clean: Tensor | None) -> Box:
    """The box of new ends, whose memory it takes over where no gradient needs it."""
    if torch.is_grad_enabled():
        return Box(torch.lerp(lower, upper, 0.5), (upper - lower) * 0.5, clean)
    centre = lower.lerp_(upper, 0.5)
    return Box(centre, upper.sub_(centre), clean)


def valley_box(function: Pointwise, place: float, least: float, box: Box) -> Box:
    """A function that falls up to `place` and rises from there on; `least` is no more than its value there.

    Where the box comes close to the place, so that rounding leaves open on which side it lies, it counts as inside.
    """
    low, high = box.lower, box.upper
    at_low, at_high = function(low), function(high)
    inside = (low <= place + CLOSE) & (high >= place - CLOSE)
    lower = torch.minimum(at_low, at_high)
    lower = torch.where(inside, lower.clamp(max=least), lower)
    return box_of_ends(lower, torch.maximum(at_low, at_high), None if box.clean is None else function(box.clean))


CLOSE = 1e-7  # more than float32 rounds a place of the order of 1 by; there the function has risen by less than 1e-14
