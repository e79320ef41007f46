"""Lines of a curve whose tangent points are free, for α-CROWN: any tangent point gives a sound line.

The best lower lines over an interval are the supporting lines of the curve's convex
hull. The hull consists of chords and of a piece of the convex part, from a to b.
Every other line below the curve is nowhere above all of these. So α ∈ [0, 1] chooses
the point a + α(b − a) at which the lower line touches the curve; the chords are the
limits, where the line touches at a or b. The same holds for the upper line and the
concave parts. Each of the two lines has an α of its own. GenBaB (Shi et al. 2025)
optimises tangent points in the same way, between limits from tables; here the offset
is sound for any slope, as in `curves`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.activations.curves import (
    ActivationCurve,
    CurveInterval,
    curve_lines,
    interval_of,
    largest_offset,
    least_offset,
    slope_above,
    slope_below,
)
from certtrain.bounds.box import Box
from certtrain.bounds.lines import Lines

# From the ends of the intervals (B, 1, …) and the lines of the curve over them to those of the layer.
Adjust = Callable[[Tensor, Tensor, Lines], Lines]


class Piece(NamedTuple):
    """The piece of the curve, from `first` to `last` (B, …), that a line may touch; it may be empty."""

    first: Tensor
    last: Tensor

    def point(self, alpha: Tensor) -> Tensor:
        """The point at the share α of the piece."""
        return self.first + alpha * (self.last - self.first)

    def share(self, point: Tensor) -> Tensor:
        """The α of a point, cut to [0, 1]."""
        length = (self.last - self.first).clamp(min=torch.finfo(point.dtype).tiny)
        return ((point - self.first) / length).clamp(0, 1)

    @property
    def free(self) -> Tensor:
        """Where the piece is not empty."""
        return self.first < self.last


class TangentLines(NamedTuple):
    """The lines of a curve over intervals (B, 1, …), with tangent points to choose by α (B, S, 2, …) in [0, 1].

    fixed: the lines where there is no choice. below, above: the pieces that the lower and the upper line touch. first:
        the α of the lines of least area. least, most: 0 and 1. adjust: makes lines of the layer from the curve's.
    """

    curve: ActivationCurve
    interval: CurveInterval
    fixed: Lines
    below: Piece
    above: Piece
    first: Tensor
    least: Tensor
    most: Tensor
    adjust: Adjust

    def examples(self, chosen: Tensor) -> "TangentLines":
        """The lines of some examples of the batch."""
        interval = CurveInterval(*(part[chosen] for part in self.interval))
        below, above = (Piece(piece.first[chosen], piece.last[chosen]) for piece in (self.below, self.above))
        first, least, most = (number[chosen] for number in (self.first, self.least, self.most))
        fixed = self.fixed.examples(chosen)
        return TangentLines(self.curve, interval, fixed, below, above, first, least, most, self.adjust)

    def at(self, alpha: Tensor) -> Lines:
        """The lines (B, S, …) for α (B, S, 2, …), one for each function; sound for any α, rounding included."""
        curve, interval = self.curve, self.interval
        low, high = self.below.point(alpha[:, :, 0]), self.above.point(alpha[:, :, 1])
        lower, upper = (curve.derivative(point).clamp(*curve.slopes) for point in (low, high))
        below = least_offset(curve, interval, lower, low)
        above = largest_offset(curve, interval, upper, high, high)
        chosen = self.adjust(interval.low, interval.high, Lines(lower, below, upper, above))
        return chosen.where(self.below.free, self.above.free, self.fixed)


def unchanged(low: Tensor, high: Tensor, lines: Lines) -> Lines:
    """The lines of a layer that computes the curve."""
    return lines


def tangent_lines(curve: ActivationCurve, box: Box, adjust: Adjust = unchanged) -> TangentLines | None:
    """The lines over `box` (B, …); where there is no choice, those of least area. None if the box has no width."""
    interval = interval_of(box)
    if not bool((interval.low < interval.high).any()):
        return None
    below, above = _piece_below(curve, interval), _piece_above(curve, interval)
    fixed = adjust(box.lower, box.upper, curve_lines(curve, box))
    touched, (_, left, right) = slope_below(curve, interval)[1], slope_above(curve, interval)
    from_left = interval.low < curve.left
    first = torch.stack((below.share(touched), above.share(torch.where(from_left, left, right))), 1).unsqueeze(1)
    interval = CurveInterval(*(part.unsqueeze(1) for part in interval))
    below, above = (Piece(piece.first.unsqueeze(1), piece.last.unsqueeze(1)) for piece in (below, above))
    least, most, lines = torch.zeros_like(first), torch.ones_like(first), fixed.for_functions()
    return TangentLines(curve, interval, lines, below, above, first, least, most, adjust)


def _piece_below(curve: ActivationCurve, interval: CurveInterval) -> Piece:
    """The piece of the convex part from where a line through the lower end touches to where one through the upper does.

    An end in the convex part is itself the limit.
    """
    low, high = interval.low, interval.high
    first, last = low.clamp(min=curve.left), high.clamp(max=curve.right)
    if curve.touching is None:
        return Piece(first, last)
    touched_first, touched_last = -curve.touching.below(-low), curve.touching.below(high)
    first = torch.where(low < curve.left, torch.maximum(first, touched_first), first)
    return Piece(first, torch.where(high > curve.right, torch.minimum(last, touched_last), last))


def _piece_above(curve: ActivationCurve, interval: CurveInterval) -> Piece:
    """The piece of one concave part, up to its end of the interval; none if the ends are in different ones."""
    low, high = interval.low, interval.high
    if curve.touching is None or curve.kink:
        return Piece(low, low)
    in_right, in_left = (high > curve.right) & (low >= curve.left), (low < curve.left) & (high <= curve.right)
    first = torch.where(low < curve.right, curve.touching.above(low).clamp(min=curve.right), low)
    last = torch.where(high > curve.left, -curve.touching.above(-high).clamp(min=-curve.left), high)
    first = torch.where(in_right, torch.minimum(first, high), low)
    return Piece(first, torch.where(in_right, high, torch.where(in_left, torch.maximum(last, low), low)))
