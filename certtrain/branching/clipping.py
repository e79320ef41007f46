"""Tighter boxes of the neurons' inputs, because only inputs with small margins matter: complete clipping.

To prove f > 0 in a domain it is enough to look at its inputs x with f(x) ≤ c, for a small c > 0. If a lower bound of f
over these inputs is above c, there are none, and f > c in the whole domain.

A linear lower bound has the form f(x) ≥ h + g·t, with the distance t of x from the centre of the input box, |tᵢ| ≤ rᵢ.
Where f(x) ≤ c, the sum h + g·t − c is not positive. So for a neuron's input z(x) ≥ p + a·t and any μ ≥ 0,

    z(x) ≥ p + a·t + μ (h + g·t − c) ≥ p + μ (h − c) − Σᵢ |aᵢ + μ gᵢ| rᵢ,

the dual of a linear program with one constraint (Zhou et al. 2025, Clip-and-Verify; Kotha et al. 2023, INVPROP, tighten
boxes by conditions on the output). The upper bound is that of −z. The best of a few μ is taken.

Rounding: the coefficients are kept as float32, in units of their sum. Conversion, and the sum of N sizes in float32,
change |aᵢ + μ gᵢ| rᵢ by less than `_slack` in these units; powers of two as μ add nothing.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.chunks import rows_at_once, signed_coordinates
from certtrain.bounds.linear import Prefix, backsubstitute
from certtrain.bounds.rounding import UNIT64
from certtrain.bounds.settings import Settings
from certtrain.branching.bounds import relaxed_domains
from certtrain.branching.domains import Domains
from certtrain.branching.problem import Problem
from certtrain.branching.selection import reductions
from certtrain.runtime.deadline import Deadline

UNIT32 = 2.0**-24
MOST_INPUTS = 2**20  # the slack is proved for fewer
SMALLEST = 2.0**-900  # a smaller sum of coefficients may have lost some to underflow
MOST_NEURONS = 100  # of a domain that are clipped: those whose relaxations reduce its bound the most
MULTIPLIERS = (0.5, 1.0, 2.0, 4.0, 16.0)  # μ, in units of the sums of a and g; powers of two
COEFFICIENT_BYTES = 2**28  # of all neurons; whatever the memory is, so that it changes no tree
GATHERED = 2**22  # bytes of coefficients that are gathered at once


class CentredBounds(NamedTuple):
    """Linear lower bounds of U values over the input box of a problem.

    coefficients: (U, N) of float32, gᵢ rᵢ in units of the sum of their sizes. sums: (U,), these sums.
    constants: (U,), h; −∞ for a bound that is not finite.
    """

    coefficients: Tensor
    sums: Tensor
    constants: Tensor

    @classmethod
    def of(cls, bounds: Tensor, coefficients: Tensor, radius: Tensor) -> "CentredBounds":
        """From lower bounds (U,) over the whole box, their coefficients (U, N), and the box's radius (N,)."""
        scaled = coefficients * radius
        sums = scaled.abs().sum(1)
        known = bounds.isfinite() & sums.isfinite() & (sums > SMALLEST)
        sums = sums.where(known, 1.0)
        lost = 2 * (scaled.shape[1] + 8) * UNIT64 * (sums + bounds.abs())
        shares = (scaled / sums.unsqueeze(1)).where(known.unsqueeze(1), 0.0)
        return cls(shares.float(), sums, (bounds + sums - lost).where(known, -torch.inf))

    def take(self, chosen: Tensor) -> "CentredBounds":
        """Some of the bounds; the result has the shape of `chosen` in place of U."""
        return CentredBounds(*(part[chosen] for part in self))


class NeuronBounds(NamedTuple):
    """Linear bounds of the inputs z of some neurons of a problem, and of −z.

    places: (T,), the place of each neuron in `lower` and `negated`; −1 for the others.
    """

    places: Tensor
    lower: CentredBounds
    negated: CentredBounds


@torch.no_grad()
def neuron_bounds(problem: Problem, settings: Settings) -> NeuronBounds | None:
    """The bounds of the relaxed neurons, or of fewer if the memory or the time is short; None if there are none."""
    start = problem.prefix.start
    if start.radius.numel() >= MOST_INPUTS:
        return None
    chosen = _chosen(problem, COEFFICIENT_BYTES // (8 * start.radius.numel()))
    parts = list(_parts(problem, chosen, settings))
    if not parts:
        return None
    neurons = torch.cat([part for part, _ in parts])
    places = torch.full((problem.neurons,), -1, device=neurons.device)
    places[neurons] = torch.arange(len(neurons), device=neurons.device)
    lower, negated = zip(*(both for _, both in parts), strict=True)
    return NeuronBounds(places, _concatenated(lower), _concatenated(negated))


def _chosen(problem: Problem, most: int) -> Tensor:
    """Which relaxed neurons (T,) are bounded, at most so many: those with the largest relaxations."""
    if int(problem.relaxed.sum()) <= most:
        return problem.relaxed
    lower, upper = problem.ends
    size = torch.where(problem.unstable, lower * upper / (lower - upper), (upper - lower) / 4)
    worth = (problem.scale * size).where(problem.relaxed, 0.0)
    chosen = torch.zeros_like(problem.relaxed)
    chosen[worth.topk(most).indices] = True
    return chosen & problem.relaxed


def _parts(
    problem: Problem, chosen: Tensor, settings: Settings
) -> Iterator[tuple[Tensor, tuple[CentredBounds, CentredBounds]]]:
    """The numbers of the chosen neurons among the T, and both bounds, in parts that fit the memory."""
    for number in problem.numbers:
        own, record = problem.parts[number], problem.prefix.records[number]
        value, index = record.call.inputs[0], chosen[own].nonzero().flatten()
        if value == 0 or record.box is None or not len(index):  # a neuron of the network's input has its box only
            continue
        prefix = Prefix(problem.prefix.records[:value], problem.prefix.start)
        rows = rows_at_once(prefix, own.stop - own.start, settings)
        for part in torch.split(index, max(1, rows)):
            if settings.deadline.over():
                return
            lower, negated = (_linear_bounds(problem, prefix, part, record.box.radius, sign) for sign in (1.0, -1.0))
            yield own.start + part, (lower, negated)


def _linear_bounds(problem: Problem, prefix: Prefix, index: Tensor, like: Tensor, sign: float) -> CentredBounds:
    """The bounds of sign · z for some neurons of a layer, by flat index; its inputs have the shape of `like`."""
    every, found = slice(None), dict[int, Tensor]()
    functions = signed_coordinates(index.unsqueeze(0), sign, like)(every, every)
    bounds = backsubstitute(prefix, functions, rounding=problem.rounding, on_coefficients=found.__setitem__)
    return CentredBounds.of(bounds[0], found[0][0].flatten(1), prefix.start.radius.flatten())


def _concatenated(parts: Sequence[CentredBounds]) -> CentredBounds:
    return CentredBounds(*(torch.cat(each) for each in zip(*parts, strict=True)))


@torch.no_grad()
def clipped(problem: Problem, known: NeuronBounds, domains: Domains, threshold: float, deadline: Deadline) -> Domains:
    """The domains with tighter boxes, which hold where all functions are at most `threshold`."""
    relaxed, variables = relaxed_domains(problem, domains)
    found = dict[int, Tensor]()
    bounds = relaxed.bounds(*variables, on_coefficients=found.__setitem__)
    margins = CentredBounds.of(bounds, found[0][:, 0].flatten(1), problem.prefix.start.radius.flatten())
    worth = reductions(problem, relaxed.prefix, found).where(known.places >= 0, -1.0)
    neurons = worth.topk(min(MOST_NEURONS, problem.neurons), 1).indices
    lower, upper = domains.lower.clone(), domains.upper.clone()
    for rows in _domains_at_once(margins, neurons):
        if deadline.over():
            break
        each, own = neurons[rows], margins.take(rows)
        own = own._replace(constants=own.constants - threshold)
        above = _tighter(problem.ends[0][each], _least(known.lower, known.places[each], own))
        below = _tighter(-problem.ends[1][each], _least(known.negated, known.places[each], own))
        lower[rows] = lower[rows].scatter_reduce(1, each, above, "amax")
        upper[rows] = upper[rows].scatter_reduce(1, each, -below, "amin")
    return domains._replace(lower=lower, upper=upper, thresholds=torch.full_like(domains.thresholds, threshold))


def _domains_at_once(margins: CentredBounds, neurons: Tensor) -> tuple[Tensor, ...]:
    """The numbers of all domains, in parts."""
    size = margins.coefficients.shape[1] * margins.coefficients.element_size() * neurons.shape[1]
    return torch.split(torch.arange(len(neurons), device=neurons.device), max(1, GATHERED // size))


def _least(known: CentredBounds, places: Tensor, margins: CentredBounds) -> Tensor:
    """Lower bounds (D, C) of the values at `places` (D, C) where the margin of each of D domains is not positive.

    −∞ where the place is −1.
    """
    values = known.take(places.clamp(min=0))
    ratios = (margins.constants / margins.sums).unsqueeze(1)
    best, both = torch.full_like(values.constants, -torch.inf), torch.empty_like(values.coefficients)
    for multiplier in MULTIPLIERS:
        torch.add(values.coefficients, margins.coefficients.unsqueeze(1), alpha=multiplier, out=both)
        distances = both.abs_().sum(2).double() + _slack(both.shape[2], multiplier)
        moved = multiplier * ratios
        found = values.constants + values.sums * (moved - distances)
        lost = 8 * UNIT64 * (values.constants.abs() + values.sums * (moved.abs() + distances))
        best = torch.fmax(best, found - lost)
    return best.where((places >= 0) & (best < torch.inf), -torch.inf)


def _tighter(least: Tensor, found: Tensor) -> Tensor:
    """The lower bounds `found` in float32 where they are above the ones before, else −∞."""
    return _rounded_down(found.where(found > least, -torch.inf))


def _slack(count: int, multiplier: float) -> float:
    """More than the rounding of the sum of `count` sizes in float32, for coefficients whose sizes have the sum 1."""
    return 4 * (count + 8) * UNIT32 * (1 + multiplier)


def _rounded_down(values: Tensor) -> Tensor:
    """The largest float32 numbers that are at most the values."""
    rounded = values.float()
    return torch.where(rounded.double() > values, rounded.nextafter(torch.full_like(rounded, -torch.inf)), rounded)
