"""The lower and the upper line of least area for a curve that is concave, then convex, then concave again.

The area under a line over [l, u] is the line's height at the midpoint times the
width. So the best line below a curve touches the curve's convex hull at the
midpoint, and the best line above touches the concave hull there. Where the hull
is the curve, this line is the tangent at the midpoint. Elsewhere it is the chord
between both ends, or the line through one end that touches the curve at some point.

That point is found by bisection, so it is not exact. But a line of any slope k
is sound with the right offset: the least or the largest value of g(x) = f(x) − kx
in the interval. Any point p of a convex part of the curve bounds g on that part:

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
FAR = 40.0  # distance from zero beyond which each of these curves is a line in float64
BISECTIONS = 30


class ActivationCurve(NamedTuple):
    """A function and its derivative: convex from `left` to `right`, concave outside.

    At a kink, the derivative is that of the convex part, or between the derivatives of both sides.
    `slopes` are the least and the largest derivative.
    """

    value: Pointwise
    derivative: Pointwise
    left: float
    right: float
    slopes: tuple[float, float]


class _Interval(NamedTuple):
    """Intervals (B, …): their ends and midpoints, and which of them are wide enough for a chord."""

    low: Tensor
    high: Tensor
    middle: Tensor
    wide: Tensor


def curve_lines(curve: ActivationCurve, box: Box) -> Lines:
    """The lines of `curve` over `box` (B, …). Rounding on the way to them is harmless, but for that of their terms."""
    low, high, middle = box.lower, box.upper, box.centre
    at = _Interval(low, high, middle, high - low > NARROW_CURVE * (1 + middle.detach().abs()))
    lower_slope, touched = _slope_below(curve, at)
    upper_slope, left, right = _slope_above(curve, at)
    lower_offset = _least(curve, at, lower_slope, touched)
    return Lines(lower_slope, lower_offset, upper_slope, _largest(curve, at, upper_slope, left, right))


# --- slopes ----------------------------------------------------------------------------------------------


class _Chord(NamedTuple):
    """The line through one end of the interval and a point (B, …): the other end, or where it touches the curve."""

    end: Tensor
    point: Tensor


class _Search(NamedTuple):
    """The search for the point that a line through `end` touches: the first from `near` to `far`, else `opposite`."""

    end: Tensor
    opposite: Tensor
    near: Tensor
    far: Tensor

    def touching(self, curve: ActivationCurve, sign: int) -> _Chord:
        """The chord. Before its point tangents pass above the end for a sign of 1, below it for −1."""
        end, near, far = (part.detach().double() for part in (self.end, self.near, self.far))
        with torch.no_grad():
            last, height = far, curve.value(end)
            for _ in range(BISECTIONS):
                middle = (near + far) / 2
                tangent = curve.value(middle) + curve.derivative(middle) * (end - middle)
                before = sign * (tangent - height) > 0
                near, far = torch.where(before, middle, near), torch.where(before, far, middle)
        found = far.to(self.end.dtype)
        return _Chord(self.end, torch.where(far == last, self.opposite, found))


def _slope_below(curve: ActivationCurve, at: _Interval) -> tuple[Tensor, Tensor]:
    """The slope of the lower line, and the point where it should touch the convex part.

    Where both ends are in concave parts, it is the line through the nearer end, or the tangent at the midpoint.
    """
    tangent, (low, high, middle, wide) = curve.derivative(at.middle), at
    if _convex(curve):
        return tangent, middle
    from_low = (low < curve.left) & ((middle <= (curve.left + curve.right) / 2) | (high <= curve.right))
    first, last = low.clamp(curve.left, curve.right), high.clamp(curve.left, curve.right)
    search = _Search(*_ordered(from_low, low, high), *_ordered(from_low, first, last))
    return _through(curve, at, search.touching(curve, 1), tangent, wide & (from_low | (high > curve.right)))


def _slope_above(curve: ActivationCurve, at: _Interval) -> tuple[Tensor, Tensor, Tensor]:
    """The slope of the upper line, and the points where it should touch the left and the right concave part.

    Where both ends are in concave parts, it is the chord: all these curves are nearly linear there.
    """
    tangent, (low, high, _, wide) = curve.derivative(at.middle), at
    from_low, both = low >= curve.left, (low < curve.left) & (high > curve.right)
    end, opposite = _ordered(from_low, low, high)
    point = opposite
    if not _convex(curve):
        near = torch.where(from_low, low.clamp(min=curve.right), high.clamp(max=curve.left))
        far = torch.where(from_low, high.clamp(max=FAR), low.clamp(min=-FAR))
        found = _Search(end, opposite, near, far).touching(curve, -1).point
        point = torch.where(torch.where(from_low, high > curve.right, low < curve.left) & ~both, found, point)
        point = torch.where(torch.where(from_low, low >= curve.right, high <= curve.left), end, point)
    slope, touched = _through(curve, at, _Chord(end, point), tangent, wide)
    return slope, torch.where(both, low, touched), torch.where(both, high, touched)


def _through(
    curve: ActivationCurve, at: _Interval, chord: _Chord, tangent: Tensor, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """Slope and point of the chord where it is allowed and spans the midpoint, else of the tangent at the midpoint.

    The gradient of a chord that touches the curve is taken as if its point were fixed.
    """
    chosen = allowed & ((at.middle - chord.end) * (at.middle - chord.point) < 0)
    run = torch.where(chosen, chord.point - chord.end, 1.0)
    slope = torch.where(chosen, (curve.value(chord.point) - curve.value(chord.end)) / run, tangent)
    return slope.clamp(*curve.slopes), torch.where(chosen, chord.point, at.middle)


def _ordered(first: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """(one, other) where `first` is true, (other, one) elsewhere."""
    return torch.where(first, one, other), torch.where(first, other, one)


def _convex(curve: ActivationCurve) -> bool:
    return (curve.left, curve.right) == (-inf, inf)


# --- offsets ---------------------------------------------------------------------------------------------


def _least(curve: ActivationCurve, at: _Interval, slope: Tensor, touched: Tensor) -> Tensor:
    """A lower bound of f(x) − slope · x in the interval: from its ends, and from the convex part."""
    ends = torch.minimum(curve.value(at.low) - slope * at.low, curve.value(at.high) - slope * at.high)
    part = (at.low.clamp(curve.left, curve.right), at.high.clamp(curve.left, curve.right))
    inside = (at.low < curve.right) & (at.high > curve.left)
    return torch.where(inside, torch.minimum(ends, _by_tangent(curve, slope, touched, part, torch.minimum)), ends)


def _largest(curve: ActivationCurve, at: _Interval, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
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
