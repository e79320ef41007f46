"""The lower and the upper line of least area for a curve that is concave, then convex, then concave again.

The area under a line over [l, u] is the line's height at the midpoint times the
width. So the best line below a curve touches the curve's convex hull at the
midpoint, and the best line above touches the concave hull there. Where the hull
is the curve, this line is the tangent at the midpoint. Elsewhere it is the chord
between both ends, or the line through one end that touches the curve at some point.

The point need not be known exactly. A line of any slope k is sound with the right
offset: the least or the largest value of g(x) = f(x) − kx in the interval. Any
point p of a convex part of the curve bounds g on that part:

    g(x) ≥ g(p) + g′(p)(x − p).

On a concave part the sign is ≤. Where p is close to the point at which the line
should touch, g′(p) is close to zero and the offset is close to the best one.
The offset is sound wherever p lies.
"""

from collections.abc import Callable
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.box import Box, Pointwise
from certtrain.bounds.lines import Lines

NARROW_CURVE = 1e-3  # relative to the midpoint and 1: the chord of a narrower interval would be mostly rounding error
FAR = 100.0  # the touching points are tabulated up to this distance from zero; farther out they hardly change the lines
NO_POINT = 1e30  # the place of a point that a line touches nowhere
BISECTIONS, ENTRIES = 40, 1024


class Touching(NamedTuple):
    """Where a line through an end of an interval touches the curve, for upper ends; lower ends are the mirror image.

    below: for an end in the right concave part, the point of the convex part.
    above: for an end in the convex part, the point of the right concave part, or `NO_POINT`.
    """

    below: Pointwise
    above: Pointwise


class ActivationCurve(NamedTuple):
    """A function and its derivative: convex from `left` to `right`, concave outside.

    At a kink, the derivative is that of the convex part, or between the derivatives of both sides.
    slopes: the least and the largest derivative. touching: None for a curve that is convex everywhere. kink: whether
        the derivative jumps at `right`, where the upper line turns about one point.
    """

    value: Pointwise
    derivative: Pointwise
    left: float
    right: float
    slopes: tuple[float, float]
    touching: Touching | None
    kink: bool = False


class CurveInterval(NamedTuple):
    """Intervals (B, …): their ends and midpoints, and which of them are wide enough for a chord."""

    low: Tensor
    high: Tensor
    middle: Tensor
    wide: Tensor


def curve_lines(curve: ActivationCurve, box: Box) -> Lines:
    """The lines of `curve` over `box` (B, …).

    Rounding of the slopes and touching points does no harm, since each offset is sound for the slope as computed. The
    rounding of the offsets themselves is part of the error in the activation's record.
    """
    at = interval_of(box)
    lower_slope, touched = slope_below(curve, at)
    upper_slope, left, right = slope_above(curve, at)
    lower_offset = least_offset(curve, at, lower_slope, touched)
    return Lines(lower_slope, lower_offset, upper_slope, largest_offset(curve, at, upper_slope, left, right))


def interval_of(box: Box) -> CurveInterval:
    """The intervals of the neurons of `box` (B, …)."""
    low, high, middle = box.lower, box.upper, box.centre
    return CurveInterval(low, high, middle, high - low > NARROW_CURVE * (1 + middle.detach().abs()))


# --- slopes ----------------------------------------------------------------------------------------------


class _Chord(NamedTuple):
    """The line through one end of the interval and a point (B, …): the other end, or where it touches the curve."""

    end: Tensor
    point: Tensor


def slope_below(curve: ActivationCurve, at: CurveInterval) -> tuple[Tensor, Tensor]:
    """The slope of the lower line, and the point where it should touch the convex part.

    Where both ends are in concave parts, it is the line through the nearer end, or the tangent at the midpoint.
    """
    tangent, (low, high, middle, wide) = curve.derivative(at.middle), at
    if curve.touching is None:
        return tangent, middle
    from_low = (low < curve.left) & ((middle <= (curve.left + curve.right) / 2) | (high <= curve.right))
    chord = _chord(at, from_low, -1, curve.touching.below)
    return _through(curve, at, chord, tangent, wide & (from_low | (high > curve.right)))


def slope_above(curve: ActivationCurve, at: CurveInterval) -> tuple[Tensor, Tensor, Tensor]:
    """The slope of the upper line, and the points where it should touch the left and the right concave part.

    Where both ends are in concave parts, it is the chord: all these curves are nearly linear there.
    """
    tangent, (low, high, _, wide) = curve.derivative(at.middle), at
    from_low, both = low >= curve.left, (low < curve.left) & (high > curve.right)
    chord = _Chord(low, high)
    if curve.touching is not None:
        chord = _chord(at, from_low, 1, curve.touching.above)
        starts_concave = torch.where(from_low, low >= curve.right, high <= curve.left)
        point = torch.where(starts_concave, chord.end, chord.point)
        chord = chord._replace(point=torch.where(both, low, point))
    slope, touched = _through(curve, at, chord, tangent, wide)
    return slope, torch.where(both, low, touched), torch.where(both, high, touched)


def _chord(at: CurveInterval, from_low: Tensor, side: int, touching: Pointwise) -> _Chord:
    """From the lower or the upper end to the point that `touching` gives, or the other end where it is not inside.

    `side` is −1 if `touching` is for upper ends, so that lower ones are mirrored, and 1 if it is for lower ones.
    """
    end, opposite = torch.where(from_low, at.low, at.high), torch.where(from_low, at.high, at.low)
    sign = torch.where(from_low, float(side), float(-side)).to(end.dtype)
    point = sign * touching(sign * end.detach())
    return _Chord(end, torch.where((point > at.low) & (point < at.high), point, opposite))


def _through(
    curve: ActivationCurve, at: CurveInterval, chord: _Chord, tangent: Tensor, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """Slope and point of the chord where it is allowed and spans the midpoint, else of the tangent at the midpoint.

    The gradient of a chord that touches the curve is taken as if its point were fixed.
    """
    chosen = allowed & ((at.middle - chord.end) * (at.middle - chord.point) < 0)
    run = torch.where(chosen, chord.point - chord.end, 1.0)
    slope = torch.where(chosen, (curve.value(chord.point) - curve.value(chord.end)) / run, tangent)
    return slope.clamp(*curve.slopes), torch.where(chosen, chord.point, at.middle)


# --- offsets ---------------------------------------------------------------------------------------------


def least_offset(curve: ActivationCurve, at: CurveInterval, slope: Tensor, touched: Tensor) -> Tensor:
    """A lower bound of f(x) − slope · x in the interval: from its ends, and from the convex part."""
    ends = torch.minimum(curve.value(at.low) - slope * at.low, curve.value(at.high) - slope * at.high)
    part = (at.low.clamp(curve.left, curve.right), at.high.clamp(curve.left, curve.right))
    inside = (at.low < curve.right) & (at.high > curve.left)
    return torch.where(inside, torch.minimum(ends, _by_tangent(curve, slope, touched, part, torch.minimum)), ends)


def largest_offset(curve: ActivationCurve, at: CurveInterval, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """An upper bound of f(x) − slope · x in the interval: from its ends, and from the concave parts."""
    found = torch.maximum(curve.value(at.low) - slope * at.low, curve.value(at.high) - slope * at.high)
    if curve.left > -inf:
        part = at.low, at.high.clamp(max=curve.left)
        bound = _by_tangent(curve, slope, left, part, torch.maximum)
        found = torch.where(at.low < curve.left, torch.maximum(found, bound), found)
    if curve.right < inf:
        part = at.low.clamp(min=curve.right), at.high
        bound = _by_tangent(curve, slope, right, part, torch.maximum)
        found = torch.where(at.high > curve.right, torch.maximum(found, bound), found)
    return found


def _by_tangent(
    curve: ActivationCurve, slope: Tensor, touched: Tensor, part: tuple[Tensor, Tensor], extreme: Callable[..., Tensor]
) -> Tensor:
    """A bound of f(x) − slope · x on a part, by the tangent at `touched` moved into the part.

    Its gradient is that of the value at this point: what the tangent adds is close to zero, and detached.
    """
    point = torch.minimum(torch.maximum(touched, part[0]), part[1])
    rest = curve.derivative(point) - slope
    added = extreme(*(rest * (end - point) for end in part))
    return curve.value(point) - slope * point + added.detach()


# --- points that lines touch -----------------------------------------------------------------------------


def touching_of(value: Pointwise, derivative: Pointwise, right: float) -> Touching:
    """Tables of touching points, for a curve that is x/2 plus an even function, and convex from −right to right.

    An error in a table makes a line slightly less tight, but it stays sound.
    """
    shares = torch.linspace(0, 1, ENTRIES, dtype=torch.float64)
    outer, inner = right + (FAR - right) * shares.square(), right * (2 * shares - 1)
    below = _bisected(value, derivative, outer, (torch.full_like(shares, right), torch.full_like(shares, -right)), 1)
    above = _bisected(value, derivative, inner, (torch.full_like(shares, right), torch.full_like(shares, FAR)), -1)
    return Touching(
        lambda end: _looked_up(below, ((end - right) / (FAR - right)).clamp(min=0).sqrt()),
        lambda end: _looked_up(above.where(above < FAR, NO_POINT), (end / right + 1) / 2),
    )


def touching_of_odd(value: Pointwise, derivative: Pointwise) -> Touching:
    """The same for a curve that is convex below zero, and odd around its value at zero."""
    ends = FAR * torch.linspace(0, 1, ENTRIES, dtype=torch.float64).square()
    table = _bisected(value, derivative, ends, (torch.zeros_like(ends), -ends), 1)

    def below(end: Tensor) -> Tensor:
        return _looked_up(table, (end / FAR).clamp(min=0).sqrt())

    return Touching(below, lambda end: -below(-end))


def _bisected(value: Pointwise, derivative: Pointwise, ends: Tensor, way: tuple[Tensor, Tensor], sign: int) -> Tensor:
    """The first point on the way whose tangent passes through the end, by bisection; the last one if there is none.

    At points before it the tangent passes above the end if `sign` is 1, and below it if `sign` is −1.
    """
    (near, far), heights = way, value(ends)
    for _ in range(BISECTIONS):
        middle = (near + far) / 2
        before = sign * (value(middle) + derivative(middle) * (ends - middle) - heights) > 0
        near, far = torch.where(before, middle, near), torch.where(before, far, middle)
    return far


def _looked_up(table: Tensor, share: Tensor) -> Tensor:
    """The table's value at that share of its length, from 0 to 1, by linear interpolation."""
    place = share.nan_to_num(0.0).clamp(0, 1) * (len(table) - 1)
    first, table = place.long().clamp(max=len(table) - 2), table.to(share)
    return torch.lerp(table[first], table[first + 1], place - first)
