"""Upper planes of the first rectifiers, linear in the network's inputs: tighter than chords, which see z alone.

Let z(x) ≤ u − Σ aᵢ τᵢ be an upper bound of a rectifier's input that is linear in the network's inputs: τᵢ ∈ [0, 1] is
the distance of xᵢ from the end of its interval where z is largest, in units of the interval's width, and aᵢ ≥ 0. For a
slope s ∈ [0, 1) and any shares pᵢ ∈ [s, 1],

    max(z, s z) ≤ e − Σ pᵢ aᵢ τᵢ    with    e = max(u, s u + Σ (pᵢ − s) aᵢ),

since z ≤ u − Σ pᵢ aᵢ τᵢ, and s z ≤ s u − s Σ aᵢ τᵢ. These planes contain the facets of the convex hull of all
(x, max(z, s z)) over the box (Anderson et al. 2020, strong mixed-integer programming formulations), which are
exponentially many. De Palma et al. 2021, scaling the convex barrier, add facets one by one; here the shares are found
by gradient ascent of the bound, like α. If they all are the chord's slope, the plane is the chord.

Where z ∈ [l, v] is known besides, and p is the largest share, pᵢ aᵢ τᵢ ≤ p aᵢ τᵢ gives the smaller

    e = max(u − (1 − p)(u − v), s u + min(Σ (pᵢ − s) aᵢ, (p − s)(u − l))).

Rounding: u, Σ aᵢ and Σ |wᵢ xᵢ| bound all terms, so each sum loses less than its length times these. What underflows is
far less than COEFFICIENTS_UNDERFLOW, by which the bounds are lower than they could be.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from certtrain.bounds.activations import RECTIFIERS, slope_of
from certtrain.bounds.box import Box
from certtrain.bounds.chunks import rows_at_once, signed_coordinates
from certtrain.bounds.interval import LayerRecord
from certtrain.bounds.linear import Prefix, Substitution, backsubstitute
from certtrain.bounds.rounding import Rounding, backsubstitution_error
from certtrain.bounds.settings import Settings
from certtrain.bounds.trace import NONLINEAR

MOST_COEFFICIENTS = 2**15  # of all planes of a domain
ROWS = 128  # neurons that are bounded at once
# What a coefficient costs in a step of ascent: its products, their gradients and the moments, in multiplications and in
# bytes.
PLANE_WORK, PLANE_BYTES = 64, 64


@dataclass(frozen=True)
class Hull:
    """Upper bounds of J inputs z of one rectifier, each linear in K of the network's inputs.

    record: the rectifier's number. slope: s. neurons: (J,), their flat indices. upper: (J,), u. inputs: (J, K), the
    inputs' flat indices. weights: (J, K), wᵢ. corners: (J, K), xᵢ where z is largest. spans: (J, K), aᵢ. shape: that of
    the network's input. error: (J,), what rounding costs a plane at most.
    """

    record: int
    slope: float
    neurons: Tensor
    upper: Tensor
    inputs: Tensor
    weights: Tensor
    corners: Tensor
    spans: Tensor
    shape: torch.Size
    error: Tensor | float = 0.0

    @property
    def bytes(self) -> int:
        """The memory that the shares of a domain take, in float32."""
        return 4 * self.inputs.numel()

    def in_float32(self) -> "Hull":
        """The same in float32 and without rounding: for the search, not for proofs."""
        names = ("upper", "weights", "corners", "spans")
        return replace(self, error=0.0, **{name: getattr(self, name).float() for name in names})

    def chords(self, box: Box) -> Tensor:
        """The shares (B, J, K) of the chords over the boxes (B, …) at the rectifier."""
        lower, upper = (end.flatten(1)[:, self.neurons] for end in (box.lower, box.upper))
        above, below = upper.relu(), (-lower).relu()
        share = above / (above + below).clamp(min=torch.finfo(above.dtype).tiny)
        slopes = self.slope + (1 - self.slope) * share
        return slopes.unsqueeze(2).expand(-1, -1, self.inputs.shape[1]).clamp(self.slope, 1.0)

    def planes(self, shares: Tensor, box: Box) -> "Planes":
        """The planes with shares p (B, J, K) over the boxes (B, …) at the rectifier."""
        lower, upper = (end.flatten(1)[:, self.neurons] for end in (box.lower, box.upper))
        most = shares.amax(2)
        rises = self.upper - (1 - most) * (self.upper - upper).relu()
        falls = torch.minimum(((shares - self.slope) * self.spans).sum(2), (most - self.slope) * (self.upper - lower))
        weights = shares * self.weights
        offsets = torch.maximum(rises, self.slope * self.upper + falls) - (weights * self.corners).sum(2)
        return Planes(self, (lower < 0) & (upper > 0), weights, offsets + self.error)


@dataclass(frozen=True)
class Planes:
    """Planes max(z, s z) ≤ weights · x + offsets, which hold in B boxes.

    unstable: (B, J), where they are used. weights: (B, J, K). offsets: (B, J).
    """

    hull: Hull
    unstable: Tensor
    weights: Tensor
    offsets: Tensor

    def __call__(self, coefficients: Tensor) -> tuple[Tensor, Substitution]:
        """As `linear.PlaneRule`."""
        hull, flat = self.hull, coefficients.flatten(2)
        taken = -(-flat[:, :, hull.neurons]).relu() * self.unstable.unsqueeze(1)
        rest = flat.index_add(2, hull.neurons, -taken).view_as(coefficients)
        terms = (taken.unsqueeze(3) * self.weights.unsqueeze(1)).flatten(2)
        zeros = terms.new_zeros(*flat.shape[:2], hull.shape.numel())
        at_input = zeros.index_add(2, hull.inputs.flatten(), terms).view(*flat.shape[:2], *hull.shape)
        return rest, Substitution((at_input,), (taken * self.offsets.unsqueeze(1)).sum(2))


@torch.no_grad()
def hull_of(prefix: Prefix, rounding: Rounding | None, settings: Settings) -> Hull | None:
    """The bounds of the unstable neurons in the first rectifier of a prefix (1, …) that is affine in the inputs.

    rounding: that of the prefix. The neurons with the largest relaxations are first; the others are left out where
    there are too many, or where the settings' deadline comes. None if there are none.
    """
    for number, record in enumerate(prefix.records):
        if not isinstance(record.call.layer, RECTIFIERS) or not 0 <= slope_of(record.call.layer) < 1:
            continue
        before = Prefix(prefix.records[: record.call.inputs[0]], prefix.start)
        affine = not any(isinstance(before.records[each].call.layer, NONLINEAR) for each in before.used())
        if before.records and affine and record.box is not None:
            neurons, like = _by_relaxation(record.box), record.box.radius
            rows = list(_enough(_rows(before, part, like, rounding) for part in _parts(before, neurons, settings)))
            return _hull(number, record, Rows.joined(rows), before.start, rounding) if rows else None
    return None


class Rows(NamedTuple):
    """Some neurons of a hull: their indices (J,), u (J,), inputs (J, K) and weights (J, K)."""

    neurons: Tensor
    upper: Tensor
    inputs: Tensor
    weights: Tensor

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """All neurons of the parts, as many as may have planes."""
        count = max(part.inputs.shape[1] for part in parts)
        padded = (part._each(lambda each: F.pad(each, (0, count - each.shape[1]))) for part in parts)
        most = max(1, MOST_COEFFICIENTS // count)
        return cls(*(torch.cat(each)[:most] for each in zip(*padded, strict=True)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        return self._replace(inputs=change(self.inputs), weights=change(self.weights))


def _by_relaxation(box: Box) -> Tensor:
    """The flat indices of the unstable neurons of a box (1, …), those with the largest relaxations first."""
    above, below = box.upper.flatten().relu(), (-box.lower).flatten().relu()
    sizes = above * below / (above + below).clamp(min=torch.finfo(above.dtype).tiny)
    order = sizes.argsort(descending=True, stable=True)
    return order[: int((sizes > 0).sum())]


def _parts(before: Prefix, neurons: Tensor, settings: Settings) -> Iterator[Tensor]:
    """The neurons in parts that fit the memory, until the deadline comes."""
    size = max(before.start.radius.numel(), before.records[-1].result[1:].numel())
    for part in torch.split(neurons, max(1, min(ROWS, rows_at_once(before, size, settings)))):
        if settings.deadline.over():
            return
        if len(part):
            yield part


def _rows(before: Prefix, neurons: Tensor, like: Tensor, rounding: Rounding | None) -> Rows:
    """The linear upper bounds of some neurons of a layer, by flat index; its inputs have the shape of `like`."""
    every, found = slice(None), dict[int, Tensor]()
    functions = signed_coordinates(neurons.unsqueeze(0), -1.0, like)(every, every)
    least = backsubstitute(before, functions, rounding=rounding, on_coefficients=found.__setitem__)
    upper, weights = -least[0], -found[0][0].flatten(1)
    known = upper.isfinite() & weights.isfinite().all(1) & (weights != 0).any(1)
    weights = weights[known]
    count = max(1, int((weights != 0).sum(1).max())) if len(weights) else 1
    inputs = weights.abs().topk(count, 1).indices
    return Rows(neurons[known], upper[known], inputs, weights.gather(1, inputs))


def _enough(parts: Iterator[Rows]) -> Iterator[Rows]:
    """The first parts that are not empty, until they have all coefficients that a domain may have."""
    neurons, count = 0, 1
    for part in parts:
        if len(part.neurons):
            yield part
            neurons, count = neurons + len(part.neurons), max(count, part.inputs.shape[1])
        if neurons * count >= MOST_COEFFICIENTS:
            return


def _hull(number: int, record: LayerRecord, rows: Rows, start: Box, rounding: Rounding | None) -> Hull:
    centre, radius = (part.flatten()[rows.inputs] for part in (start.centre, start.radius))
    corners = torch.where(rows.weights > 0, centre + radius, centre - radius)
    spans, shape = 2 * rows.weights.abs() * radius, start.radius.shape[1:]
    hull = Hull(number, slope_of(record.call.layer), *rows, corners, spans, shape)
    return hull if rounding is None else replace(hull, error=_error(hull))


def _error(hull: Hull) -> Tensor:
    """What rounding costs a plane at most (J,): |x| is at most |corner| + width."""
    terms = hull.upper.abs() + (2 * hull.spans + hull.weights.abs() * hull.corners.abs()).sum(1)
    return 4 * backsubstitution_error(hull.inputs.numel()) * terms
