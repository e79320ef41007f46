"""Lines above and below a nonlinear layer over an interval: what linear bounds put in its place."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.box import Box

# An interval of an S-shaped function that is no wider than this has no chord.
NARROW = 1e-3


class Lines(NamedTuple):
    """lower_slope · x + lower_offset ≤ f(x) ≤ upper_slope · x + upper_offset for every x of a box (B, …).

    An offset is None where it is zero everywhere.
    """

    lower_slope: Tensor
    lower_offset: Tensor | None
    upper_slope: Tensor
    upper_offset: Tensor | None

    def examples(self, chosen: Tensor) -> "Lines":
        """The lines of some of the batch."""
        return self._each(lambda part: part[chosen])

    def for_functions(self) -> "Lines":
        """The same lines (B, 1, …) for all functions of an example."""
        return self._each(lambda part: part.unsqueeze(1))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Lines":
        lower, below, upper, above = self
        changed = (None if offset is None else change(offset) for offset in (below, above))
        return Lines(change(lower), next(changed), change(upper), next(changed))


class Slopes(NamedTuple):
    """The lines of a rectifier max(x, sx) or min(x, sx) whose line through zero is free to turn.

    Its slope is s + (1 − s)α for any α between `least` and `most` (B, 1, …): 0
    and 1 where the sign of x is open, else the same number. `first` is the α
    of `lines`, which the box gives.
    """

    lines: Lines
    slope: float
    least: Tensor
    most: Tensor
    first: Tensor

    def examples(self, chosen: Tensor) -> "Slopes":
        """The slopes of some of the batch."""
        parts = (part[chosen] for part in (self.least, self.most, self.first))
        return Slopes(self.lines.examples(chosen), self.slope, *parts)

    def at(self, alpha: Tensor) -> Lines:
        """The lines (B, S, …) of α (B, S, …) for each function apart; they hold for any α in [0, 1], rounding too."""
        ends = sorted((self.slope, 1.0))
        turned = alpha if self.slope == 0 else (alpha + self.slope * (1 - alpha)).clamp(*ends)
        if self.slope <= 1:
            return self.lines._replace(lower_slope=turned)
        return self.lines._replace(upper_slope=turned)


def free_slopes(layer: nn.Module, box: Box) -> Slopes | None:
    """The lines of a layer that have a slope to choose; None where it is no rectifier, or no sign is open."""
    if not isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
        return None
    lower, upper = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
    slope = 0.0 if isinstance(layer, nn.ReLU) else layer.negative_slope
    if slope == 1 or not bool(((lower < 0) & (upper > 0)).any()):
        return None
    rises, falls = (lower >= 0).to(lower.dtype), (upper > 0).to(lower.dtype)
    return Slopes(relaxed(layer, box).for_functions(), slope, rises, falls, (lower + upper > 0).to(lower.dtype))


def relaxed(layer: nn.Module, box: Box) -> Lines:
    """The lines for an element-wise layer over `box` (B, …)."""
    return RELAXATIONS[type(layer)](layer, box)


def _relu(layer: nn.ReLU, box: Box) -> Lines:
    return _rectifier(0.0, box)


def _leaky_relu(layer: nn.LeakyReLU, box: Box) -> Lines:
    return _rectifier(layer.negative_slope, box)


def _rectifier(slope: float, box: Box) -> Lines:
    """The chord on one side, and on the other a line through zero of slope 1 where u > −l, else `slope`.

    Zhang et al. 2018 (CROWN), section 3.2: of the two lines the one that leaves the smaller area.
    """
    lower, upper = box.lower, box.upper
    # A sign is much cheaper than a mask of bool.
    rising = (lower + upper).detach().sign().relu()
    bent = rising + slope * (1 - rising)  # not rising · (1 − s) + s, in which a steep slope cancels
    # max(x, sx) is sx and (1 − s) relu(x). Written by u⁺ and l⁻, the chord of a stable unit has no gradient, however
    # narrow its interval is; by (f(u) − f(l)) / (u − l) it would have one as large as the width is small.
    above, below = torch.relu(upper), torch.relu(-lower)
    share = above / (above + below).clamp(min=torch.finfo(above.dtype).tiny)
    through, offset = (bent, None), (share + slope * (1 - share), share * (1 - slope) * below)
    return Lines(*through, *offset) if slope <= 1 else Lines(*offset, *through)  # concave above slope 1


def _sigmoid(layer: nn.Sigmoid, box: Box) -> Lines:
    return _s_shaped(torch.sigmoid, lambda y: y * (1 - y), box)


def _tanh(layer: nn.Tanh, box: Box) -> Lines:
    return _s_shaped(torch.tanh, lambda y: 1 - y.square(), box)


def _s_shaped(function: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor], box: Box) -> Lines:
    """On one side of zero the curve's chord and the tangent at the middle, else two lines of the least slope k.

    The curve is convex below zero and concave above. The least slope in the
    interval is at one of its ends, so f(x) − kx never falls in between, and its
    ends bound it (Singh et al. 2019, DeepPoly).
    """
    low, high = function(box.lower), function(box.upper)
    slope = torch.minimum(derivative(low), derivative(high))
    middle = function(box.centre)
    tangent, width = derivative(middle), box.upper - box.lower
    wide = width > NARROW  # where it is not, the difference of the ends is lost in rounding, and its gradient with it
    chord = torch.where(wide, (high - low) / torch.where(wide, width, 1.0), slope)
    convex, concave = (box.upper <= 0) & wide, (box.lower >= 0) & wide
    below = torch.where(convex, tangent, torch.where(concave, chord, slope))
    above = torch.where(concave, tangent, torch.where(convex, chord, slope))
    from_below = torch.where(convex, middle - tangent * box.centre, low - below * box.lower)
    from_above = torch.where(concave, middle - tangent * box.centre, high - above * box.upper)
    return Lines(below, from_below, above, from_above)


# Layer → lines, for layers that act on each value by itself.
RELAXATIONS: dict[type[nn.Module], Callable[..., Lines]] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Sigmoid: _sigmoid,
    nn.Tanh: _tanh,
}
