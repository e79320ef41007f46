"""What "no function of a case is above zero" implies for the inputs of rectifiers, and these for the network's inputs.

Linear bounds replace a rectifier r(z) by a line a·z below it where its coefficient Λ is positive. So, with the bound L
of a function f over a domain, f(x) ≥ L + Λ (r(z) − a z) for every x in it, and f(x) ≤ 0 only where Λ (r(z) − a z) ≤ −L.
The difference is (1 − a) z above zero and (a − s)(−z) below it, where r has the slope s: each gives a limit of z.

Limits of values that are affine functions of the inputs cut off a part of the box. In integer programming this is bound
propagation, or feasibility-based bound tightening: from limits of a sum to those of its terms, and of their variables.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.activations import RECTIFIERS, slope_of
from certtrain.bounds.box import Box
from certtrain.bounds.interval import LayerRecord
from certtrain.bounds.linear import LinesOf, Prefix, backsubstitute
from certtrain.bounds.lines import Lines
from certtrain.bounds.relaxation import free_lines, relaxed
from certtrain.bounds.rounding import UNIT64, Rounding
from certtrain.bounds.trace import NONLINEAR
from certtrain.branching.halfspaces import OUTWARD
from certtrain.branching.input_domains import Ends
from certtrain.runtime.deadline import NEVER, Deadline

MOST_AFFINE, MOST_SLOPES = 2**11, 2**18  # neurons of a layer, and their coefficients, all of which a cut looks at
ENTRIES_AT_ONCE = 2**20  # entries of all domains that are in memory at once
LEAST_GAP = 2.0**-20  # of a neuron's width; with less on one side of zero it counts as stable
TINY = torch.finfo(torch.float64).tiny
LEAST_PRODUCT = 2.0**-900  # a smaller product of coefficients may have lost some to underflow


class Rectifier(NamedTuple):
    """A rectifier of slope below 1, with its place among the layers that have boxes."""

    place: int
    number: int
    record: LayerRecord
    box: Box


class NeuronLimits(NamedTuple):
    """Lower and upper limits (D, C, J) of a rectifier's inputs where each of C cases is violated."""

    lower: Tensor
    upper: Tensor

    def over(self, cases: Tensor) -> Ends:
        """The limits (D, J) where any of the cases `cases` (D, C) is violated."""
        other = ~cases.unsqueeze(2)
        return self.lower.masked_fill(other, torch.inf).amin(1), self.upper.masked_fill(other, -torch.inf).amax(1)


def rectifiers(prefix: Prefix) -> Iterator[Rectifier]:
    """The rectifiers of a prefix."""
    boxes = ((number, record, record.box) for number, record in enumerate(prefix.records) if record.box is not None)
    for place, (number, record, box) in enumerate(boxes):
        if isinstance(record.call.layer, RECTIFIERS) and slope_of(record.call.layer) < 1:
            yield Rectifier(place, number, record, box)


def neurons_of(prefix: Prefix) -> int:
    """How many neurons the rectifiers of a prefix have."""
    return sum(each.box.radius[0].numel() for each in rectifiers(prefix))


# --- limits of the inputs of rectifiers ------------------------------------------------------------------


def flat_lines(prefix: Prefix) -> dict[int, Lines]:
    """The lines of rectifiers with the least slope, by record, where any neuron has a choice."""
    found = {each.number: free_lines(each.record.call.layer, each.box) for each in rectifiers(prefix)}
    return {number: free.at(free.least) for number, free in found.items() if free is not None}


def limits(
    prefix: Prefix, lines: LinesOf, bounds: Tensor, coefficients: dict[int, Tensor], cases: Tensor
) -> dict[int, NeuronLimits]:
    """The limits at each rectifier by its place, from bounds (D, F) with coefficients Λ (D, F, …) by value.

    lines: those that the bounds were computed with in place of CROWN's. cases: (C, S), which functions each case has.
    """
    room, used = (-bounds).relu().unsqueeze(2), [each for each in rectifiers(prefix) if each.number + 1 in coefficients]
    found = {}
    for place, number, record, box in used:
        given = lines[number] if number in lines else relaxed(record.call.layer, box).for_functions()
        slope, weight = given.lower_slope.flatten(2), coefficients[number + 1].flatten(2)
        upper, lower = _reach(room, weight * (1 - slope)), -_reach(room, weight * (slope - slope_of(record.call.layer)))
        found[place] = NeuronLimits(lower[:, cases].amax(2), upper[:, cases].amin(2))
    return found


def _reach(room: Tensor, slope: Tensor) -> Tensor:
    """room / slope, rounded up; infinite where the slope is not positive, or either is not known."""
    reach = room / slope * OUTWARD + TINY
    return reach.where((slope > LEAST_PRODUCT) & reach.isfinite(), torch.inf)


def tighter_limits(first: NeuronLimits, second: NeuronLimits) -> NeuronLimits:
    """The limits that follow from both."""
    return NeuronLimits(torch.maximum(first.lower, second.lower), torch.minimum(first.upper, second.upper))


class Narrowed(NamedTuple):
    """Domains with tighter ends: lower, upper (D, N), and boxes at the layers. empty: (D,), which have no input."""

    lower: Tensor
    upper: Tensor
    boxes: tuple[Ends, ...]
    empty: Tensor


def narrowed(
    found: dict[int, NeuronLimits],
    cases: Tensor,
    boxes: tuple[Ends, ...],
    affine: list["AffineNeurons"],
    ends: Ends,
    deadline: Deadline = NEVER,
) -> Narrowed:
    """Domains with `ends` (D, N) and `boxes`, where one of the cases `cases` (D, C) is violated."""
    (lower, upper), tighter, empty = ends, list(boxes), torch.zeros_like(cases[:, 0])
    for place, each in found.items():
        tighter[place], nothing = _intersection(boxes[place], each.over(cases))
        empty = empty | nothing
    for neurons in affine:
        lower, upper, nothing = cut(neurons, tighter[neurons.place], lower, upper, deadline)
        empty = empty | nothing
    return Narrowed(lower, upper, tuple(tighter), empty)


def _intersection(ends: Ends, limits: Ends) -> tuple[Ends, Tensor]:
    """The intersection (D, …) with limits (D, J), and where it is empty (D,); there the ends stay."""
    lower, upper = (limit.view_as(end) for limit, end in zip(limits, ends, strict=True))
    lower, upper = torch.maximum(ends[0], lower), torch.minimum(ends[1], upper)
    empty = (lower > upper).flatten(1).any(1)
    rows = empty.view(-1, *[1] * (lower.dim() - 1))
    return (torch.where(rows, ends[0], lower), torch.where(rows, ends[1], upper)), empty


# --- and of the network's inputs -------------------------------------------------------------------------


class AffineNeurons(NamedTuple):
    """The inputs z (J) of a rectifier that are affine functions of the network's inputs, and their linear bounds.

    place: the rectifier's, among the layers with boxes. value: the number of its result. bounds: (2J,), lower bounds of
    z and of −z over the problem's box. coefficients: (2J, N). rising, falling: (N, 2J), their positive and negative
    parts. rising_inverse, falling_inverse: (2J, N), 1 / |coefficient| of that sign, rounded up, else infinite. lower,
    upper: (N,), the ends of the problem's box.
    """

    place: int
    value: int
    bounds: Tensor
    coefficients: Tensor
    rising: Tensor
    falling: Tensor
    rising_inverse: Tensor
    falling_inverse: Tensor
    lower: Tensor
    upper: Tensor

    def over(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Lower bounds (D, 2J) of z and −z over smaller boxes with these ends (D, N)."""
        added = (lower - self.lower) @ self.rising + (self.upper - upper) @ self.falling
        bounds = self.bounds + added * (1 - 4 * (len(self.lower) + 8) * UNIT64)
        return bounds - 4 * UNIT64 * (bounds.abs() + added + self.bounds.abs())


@torch.no_grad()
def affine_neurons(prefix: Prefix, ends: Ends, rounding: Rounding) -> list[AffineNeurons]:
    """Those of a prefix over one box with `ends` (1, …), of layers that are not too large."""
    found = []
    for each in rectifiers(prefix):
        before = Prefix(prefix.records[: each.record.call.inputs[0]], prefix.start)
        affine = not any(isinstance(before.records[number].call.layer, NONLINEAR) for number in before.used())
        neurons, inputs = each.box.radius.numel(), prefix.start.radius.numel()
        if before.records and affine and neurons <= MOST_AFFINE and neurons * inputs <= MOST_SLOPES:
            found.append(_affine(each, before, ends, rounding))
    return found


def _affine(rectifier: Rectifier, prefix: Prefix, ends: Ends, rounding: Rounding) -> AffineNeurons:
    radius, values = rectifier.box.radius, dict[int, Tensor]()
    each = torch.eye(radius.numel(), dtype=radius.dtype, device=radius.device).view(1, -1, *radius.shape[1:])
    both = torch.cat([each, -each], 1)
    bounds = backsubstitute(prefix, both, rounding=rounding, on_coefficients=values.__setitem__)
    coefficients = values[0].flatten(2)[0]
    parts = coefficients.relu(), (-coefficients).relu()
    signed = (part.T.contiguous() for part in parts)
    inverses = ((OUTWARD / part).where(part > 0, torch.inf) for part in parts)
    box = (end.flatten() for end in ends)
    return AffineNeurons(rectifier.place, rectifier.number + 1, bounds[0], coefficients, *signed, *inverses, *box)


def cut(
    neurons: AffineNeurons, ends: Ends, lower: Tensor, upper: Tensor, deadline: Deadline
) -> tuple[Tensor, Tensor, Tensor]:
    """The ends (D, N) of boxes without what puts a neuron outside `ends` (D, …), and which of them (D,) are empty.

    An empty box stays as it is; after the deadline nothing more is cut off.
    """
    limit = torch.cat([ends[1].flatten(1), -ends[0].flatten(1)], 1)  # of z and −z
    bounds = neurons.over(lower, upper)
    room = limit - bounds + 4 * UNIT64 * (limit.abs() + bounds.abs())
    empty = (room < 0).any(1)
    above, below = _reaches(neurons, room.relu() * OUTWARD + TINY, lower, upper, deadline)
    new_upper = torch.minimum(upper, lower + above + (4 * UNIT64 * (lower.abs() + above) + TINY))
    new_lower = torch.maximum(lower, upper - below - (4 * UNIT64 * (upper.abs() + below) + TINY))
    empty = empty | (new_lower > new_upper).any(1)
    rows = empty.unsqueeze(1)
    return torch.where(rows, lower, new_lower), torch.where(rows, upper, new_upper), empty


def _reaches(neurons: AffineNeurons, room: Tensor, lower: Tensor, upper: Tensor, deadline: Deadline) -> Ends:
    """How far (D, N) what is left of boxes reaches from their lower and upper ends; infinite if not known."""
    above, below = torch.full_like(lower, torch.inf), torch.full_like(lower, torch.inf)
    useful = _useful(neurons.coefficients, room, upper - lower)
    for part in torch.split(useful, max(1, ENTRIES_AT_ONCE // lower.numel())):
        if not len(part) or deadline.over():
            break
        for reach, inverse in ((above, neurons.rising_inverse), (below, neurons.falling_inverse)):
            torch.fmin(reach, (room[:, part].unsqueeze(2) * inverse[part]).amin(1), out=reach)
    return above, below


def _useful(coefficients: Tensor, room: Tensor, widths: Tensor) -> Tensor:
    """The numbers of the conditions that may cut something off in one of the boxes."""
    most = coefficients.abs().amax(1) * widths.amax(1, keepdim=True)
    return (room < most).any(0).nonzero().flatten()


def gap_shares(neurons: AffineNeurons, coefficients: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """What each input has to do with the relaxations' gaps in boxes [lower, upper] (D, N): (D, F, N).

    coefficients: Λ (D, F, …) of F functions after the rectifier. A gap of its mean size, if z is uniform in [l, u], is
    u² / 2(u − l) for the line of slope 0 below, and −lu / 2(u − l) for the chord above, as for ReLU. Each input has the
    share of it that its width has in that of z.
    """
    below, above = (-neurons.over(lower, upper)).relu().chunk(2, 1)
    width = below + above
    unstable = torch.minimum(below, above) > LEAST_GAP * width
    other = torch.where(coefficients.flatten(2) > 0, above.unsqueeze(1), below.unsqueeze(1))
    shares = ((above / width / width).unsqueeze(1) * other / 2).where(unstable.unsqueeze(1), 0.0)
    slopes = neurons.coefficients[: width.shape[1]].abs()
    return (coefficients.flatten(2).abs() * shares) @ slopes * (upper - lower).unsqueeze(1)
