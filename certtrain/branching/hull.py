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

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certtrain.bounds.activations import RECTIFIERS, slope_of
from certtrain.bounds.box import Box
from certtrain.bounds.chunks import rows_at_once, signed_coordinates
from certtrain.bounds.interval import LayerRecord
from certtrain.bounds.linear import Prefix, Substitution, backsubstitute
from certtrain.bounds.rounding import backsubstitution_error
from certtrain.bounds.settings import Settings
from certtrain.bounds.trace import NONLINEAR

MOST_HELD, MOST_COEFFICIENTS = 2**24, 2**17  # of all inputs while a hull is made, and of all planes of a domain
# What a coefficient costs in a step of ascent: its products, their gradients and the moments, in multiplications and in
# bytes.
PLANE_WORK, PLANE_BYTES = 64, 64


@dataclass(frozen=True)
class Hull:
    """Upper bounds of J inputs z of one rectifier, each linear in K of the network's inputs.

    record: the rectifier's number. slope: s. neurons: (J,), their flat indices. upper: (J,), u. inputs: (J, K), the
    inputs' flat indices. weights: (J, K), wᵢ. corners: (J, K), xᵢ where z is largest. spans: (J, K), aᵢ. shape: that of
    an input. error: (J,), what rounding costs a plane at most.
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
        """As `linear.Planes`."""
        hull, flat = self.hull, coefficients.flatten(2)
        taken = -(-flat[:, :, hull.neurons]).relu() * self.unstable.unsqueeze(1)
        rest = flat.index_add(2, hull.neurons, -taken).view_as(coefficients)
        terms = (taken.unsqueeze(3) * self.weights.unsqueeze(1)).flatten(2)
        zeros = terms.new_zeros(*flat.shape[:2], hull.shape.numel())
        at_input = zeros.index_add(2, hull.inputs.flatten(), terms).view(*flat.shape[:2], *hull.shape)
        return rest, Substitution((at_input,), (taken * self.offsets.unsqueeze(1)).sum(2))


@torch.no_grad()
def hull_of(prefix: Prefix, settings: Settings) -> Hull | None:
    """The bounds of the unstable neurons in the first rectifier of a prefix (1, …) that is affine in the inputs.

    Of those whose relaxations are the largest, if there are too many. None if there is no such rectifier.
    """
    for number, record in enumerate(prefix.records):
        if not isinstance(record.call.layer, RECTIFIERS) or record.box is None:
            continue
        before = Prefix(prefix.records[: record.call.inputs[0]], prefix.start)
        affine = not any(isinstance(before.records[each].call.layer, NONLINEAR) for each in before.used())
        neurons = _by_relaxation(record.box)
        if before.records and affine and 0 <= slope_of(record.call.layer) < 1 and len(neurons):
            return _hull(number, before, neurons, record, settings)
    return None


def _by_relaxation(box: Box) -> Tensor:
    """The flat indices of the unstable neurons of a box (1, …), those with the largest relaxations first."""
    above, below = box.upper.flatten().relu(), (-box.lower).flatten().relu()
    sizes = above * below / (above + below).clamp(min=torch.finfo(above.dtype).tiny)
    order = sizes.argsort(descending=True, stable=True)
    return order[: int((sizes > 0).sum())]


def _hull(number: int, before: Prefix, neurons: Tensor, record: LayerRecord, settings: Settings) -> Hull | None:
    assert record.box is not None
    neurons = neurons[: max(1, MOST_HELD // before.start.radius.numel())]
    upper, coefficients = _upper_bounds(before, neurons, record.box.radius, settings)
    known = upper.isfinite() & coefficients.isfinite().all(1) & (coefficients != 0).any(1)
    neurons, upper, coefficients = neurons[known], upper[known], coefficients[known]
    if not len(neurons):
        return None
    count = int((coefficients != 0).sum(1).max())
    chosen = slice(0, max(1, MOST_COEFFICIENTS // count))
    inputs = coefficients[chosen].abs().topk(count, 1).indices
    slope, weights = slope_of(record.call.layer), coefficients[chosen].gather(1, inputs)
    ends, shape = _ends(inputs, weights, before.start), before.start.radius.shape[1:]
    hull = Hull(number, slope, neurons[chosen], upper[chosen], inputs, weights, *ends, shape)
    return hull if settings.rounding is None else replace(hull, error=_error(hull))


def _ends(inputs: Tensor, weights: Tensor, start: Box) -> tuple[Tensor, Tensor]:
    """The corners and spans of a hull."""
    centre, radius = (part.flatten()[inputs] for part in (start.centre, start.radius))
    return torch.where(weights > 0, centre + radius, centre - radius), 2 * weights.abs() * radius


def _error(hull: Hull) -> Tensor:
    """What rounding costs a plane at most (J,): |x| is at most |corner| + width."""
    terms = hull.upper.abs() + (2 * hull.spans + hull.weights.abs() * hull.corners.abs()).sum(1)
    return 4 * backsubstitution_error(hull.inputs.numel()) * terms


def _upper_bounds(before: Prefix, neurons: Tensor, like: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """u (J,) of some of the results of `before`, and their coefficients (J, N)."""
    bounds, coefficients = [], []
    for part in torch.split(neurons, max(1, rows_at_once(before, like.numel(), settings))):
        found, every = dict[int, Tensor](), slice(None)
        functions = signed_coordinates(part.unsqueeze(0), -1.0, like)(every, every)
        least = backsubstitute(before, functions, rounding=settings.rounding, on_coefficients=found.__setitem__)
        bounds.append(-least[0])
        coefficients.append(-found[0][0].flatten(1))
    return torch.cat(bounds), torch.cat(coefficients)
