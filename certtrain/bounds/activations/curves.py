"""Single lines below and above a curve that is concave, then convex, then concave again, with the least area.

The area between a line and the axis over [l, u] is the line's height at the
middle times the width. So of all lines below a curve the best one touches its
convex hull at the middle, and of those above its concave hull. Where the hull is
the curve itself that is the tangent at the middle, elsewhere the chord between
both ends, or the line through one end that touches the curve at some point.

That point is found by bisection, and so not exactly. But a line of any slope k
is right with the right offset, the least or the largest value of g(x) = f(x) − kx
in the interval, and any point p of a convex part of the curve bounds it there:

    g(x) ≥ g(p) + g′(p)(x − p);

of a concave part the other way round. Where p is close to the point at which the
line should touch, g′(p) is close to zero and the offset close to the best one,
and it is on the right side wherever p lies.
"""

from collections.abc import Callable
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.box import Box, Pointwise
from certtrain.bounds.lines import Lines

NARROW_CURVE = 1e-3  # an interval no wider than this, relative to its middle and 1, has no chord: it would be rounding
FAR = 40.0  # from zero: behind it each of these curves is a line, in float64
BISECTIONS = 30


class BentCurve(NamedTuple):
    """A function and its derivative: convex from `left` to `right`, concave before and behind.

    Where it bends in one point, the derivative there is that of the convex part, or between those of both sides.
    `slopes` are the least and the largest derivative.
    """

    value: Pointwise
    derivative: Pointwise
    left: float
    right: float
    slopes: tuple[float, float]


class _Interval(NamedTuple):
    """Intervals (B, …): their ends and middle, and which are wide enough for a chord."""

    low: Tensor
    high: Tensor
    middle: Tensor
    wide: Tensor


def curve_lines(curve: BentCurve, box: Box) -> Lines:
    """The lines of `curve` over `box` (B, …); they hold whatever rounds, but for what rounds in their own terms."""
    low, high, middle = box.lower, box.upper, box.centre
    at = _Interval(low, high, middle, high - low > NARROW_CURVE * (1 + middle.detach().abs()))
    lower_slope, touched = _slope_below(curve, at)
    upper_slope, left, right = _slope_above(curve, at)
    lower_offset = _least(curve, at, lower_slope, touched)
    return Lines(lower_slope, lower_offset, upper_slope, _largest(curve, at, upper_slope, left, right))


# --- slopes ----------------------------------------------------------------------------------------------


class _Chord(NamedTuple):
    """The line through an end of the interval and a point of the curve that it touches, or the other end (B, …)."""

    end: Tensor
    point: Tensor


class _Search(NamedTuple):
    """For the point that a line through `end` touches: the first from `near` to `far`, and if none the other end."""

    end: Tensor
    opposite: Tensor
    near: Tensor
    far: Tensor

    def touching(self, curve: BentCurve, sign: int) -> _Chord:
        """The point from which on the tangent passes the end on the other side; before it, above for a sign of 1."""
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


def _slope_below(curve: BentCurve, at: _Interval) -> tuple[Tensor, Tensor]:
    """The slope of the line below, and the point where it should touch the convex part.

    Where both ends are in concave parts, the line at the middle is the one through the nearer end, or the tangent.
    """
    tangent, (low, high, middle, wide) = curve.derivative(at.middle), at
    if _convex(curve):
        return tangent, middle
    from_low = (low < curve.left) & ((middle <= (curve.left + curve.right) / 2) | (high <= curve.right))
    first, last = low.clamp(curve.left, curve.right), high.clamp(curve.left, curve.right)
    search = _Search(*_ordered(from_low, low, high), *_ordered(from_low, first, last))
    return _through(curve, at, search.touching(curve, 1), tangent, wide & (from_low | (high > curve.right)))


def _slope_above(curve: BentCurve, at: _Interval) -> tuple[Tensor, Tensor, Tensor]:
    """The slope of the line above, and the points where it should touch the left and the right concave part.

    Where both ends are in concave parts it is the chord: all these curves come close to a line there.
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


def _through(curve: BentCurve, at: _Interval, chord: _Chord, tangent: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """The chord's slope and its point where the middle lies on it and it is allowed, else the tangent's at the middle.

    A chord that touches the curve turns with its end as if the point stood still.
    """
    chosen = allowed & ((at.middle - chord.end) * (at.middle - chord.point) < 0)
    run = torch.where(chosen, chord.point - chord.end, 1.0)
    slope = torch.where(chosen, (curve.value(chord.point) - curve.value(chord.end)) / run, tangent)
    return slope.clamp(*curve.slopes), torch.where(chosen, chord.point, at.middle)


def _ordered(first: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both, and in the other order where `first` is false."""
    return torch.where(first, one, other), torch.where(first, other, one)


def _convex(curve: BentCurve) -> bool:
    return (curve.left, curve.right) == (-inf, inf)


# --- offsets ---------------------------------------------------------------------------------------------


def _least(curve: BentCurve, at: _Interval, slope: Tensor, touched: Tensor) -> Tensor:
    """No more than the least f(x) − slope · x in the interval: at its ends, or in the convex part."""
    ends = torch.minimum(curve.value(at.low) - slope * at.low, curve.value(at.high) - slope * at.high)
    part = (at.low.clamp(curve.left, curve.right), at.high.clamp(curve.left, curve.right))
    inside = (at.low < curve.right) & (at.high > curve.left)
    return torch.where(inside, torch.minimum(ends, _by_tangent(curve, slope, touched, part, torch.minimum)), ends)


def _largest(curve: BentCurve, at: _Interval, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """No less than the largest f(x) − slope · x in the interval: at its ends, or in a concave part."""
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
    curve: BentCurve, slope: Tensor, touched: Tensor, part: tuple[Tensor, Tensor], extreme: Callable[..., Tensor]
) -> Tensor:
    """What the tangent at `touched`, moved into the part, says of f(x) − slope · x there.

    Its gradient is that of the value there: what the tangent adds is close to zero, and none of it.
    """
    point = torch.minimum(torch.maximum(touched, part[0]), part[1])
    rest = curve.derivative(point) - slope
    added = extreme(*(rest * (end - point) for end in part))
    return curve.value(point) - slope * point + added.detach()
