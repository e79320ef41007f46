"""Bounds of domains: linear relaxations with optimised slopes, and a Lagrange multiplier for each split (β-CROWN).

If a split requires s·z ≥ 0 for a neuron's input z, then f ≥ f − β s z for any β ≥ 0.
So a lower bound of the right-hand side holds in the domain, and the best β make it
tighter than the box of z alone would (Wang et al. 2021, theorem 3.1). Gradient ascent
of the bound optimises slopes α and multipliers β together, the weights of the
functions where there are several, and the shares of upper planes (`hull`). The bound of every step
is sound, and the best is kept.

z is the value that the network computes, rounding included, and the split is on
the sign of this computed value. So the two sides of a split cover all values in any
arithmetic, and the added term needs only the verifier's own rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certtrain.bounds.ascent import Ascent
from certtrain.bounds.linear import NO_PLANES, LinesOf, OnCoefficients, PlaneRule, Prefix, backsubstitute
from certtrain.bounds.lines import FreeLines
from certtrain.bounds.rounding import UNIT64
from certtrain.branching.domains import Domains
from certtrain.branching.problem import Problem
from certtrain.runtime.deadline import NEVER, Deadline

RATES = (0.1, 1.0, 0.1, 0.03)  # the length of the first step in slopes, multipliers, weights and shares
DECAY = 0.98
LEAST_WEIGHT = 1e-12  # their sum must not be zero
COMPACT_SHARE = 4  # closed domains are removed from the ascent once at least one in this many is closed


@dataclass(frozen=True)
class RelaxedDomains:
    """Domains with their boxes and relaxations; slopes, multipliers, weights and shares are still to be chosen."""

    problem: Problem
    signs: Tensor
    prefix: Prefix
    free: dict[int, FreeLines]

    @classmethod
    def of(cls, problem: Problem, domains: Domains) -> "RelaxedDomains":
        prefix = problem.restricted(domains)
        signs = problem.known_signs(domains).to(prefix.start.radius.dtype)
        return cls(problem, signs, prefix, problem.free_lines(prefix))

    def examples(self, chosen: Tensor) -> "RelaxedDomains":
        """Some of the domains."""
        free = {number: lines.examples(chosen) for number, lines in self.free.items()}
        return RelaxedDomains(self.problem, self.signs[chosen], self.prefix.examples(chosen), free)

    def bounds(
        self,
        alphas: Tensor,
        betas: Tensor,
        weights: Tensor,
        shares: Tensor,
        *,
        on_coefficients: OnCoefficients = lambda value, coefficients: None,
    ) -> Tensor:
        """Lower bounds (D,) of the weighted sums of functions and offsets; `on_coefficients` as in `backsubstitute`."""
        part, problem = self.problem.part, self.problem
        lines: LinesOf = {n: free.at(problem.alpha(alphas, n)) for n, free in self.free.items()}
        multipliers = -betas * self.signs * problem.scale
        added = {number: part(multipliers, number) for number in problem.numbers}
        functions, offsets = problem.weighted(weights)
        found = backsubstitute(
            self.prefix,
            functions,
            lines=lines,
            added=added,
            planes=self._planes(shares),
            rounding=problem.rounding,
            on_coefficients=on_coefficients,
        )
        bounds = found + offsets
        if problem.rounding is not None:  # the rounding of this sum
            bounds = bounds - 4 * UNIT64 * (found.abs() + offsets.abs())
        return bounds.squeeze(1)

    def _planes(self, shares: Tensor) -> Mapping[int, PlaneRule]:
        hull = self.problem.hull
        if hull is None or not shares.shape[1]:
            return NO_PLANES
        box = self.prefix.records[hull.record].box
        assert box is not None  # it is a nonlinear layer
        return {hull.record: hull.planes(shares, box)}

    def project(self, alphas: Tensor, betas: Tensor, weights: Tensor, shares: Tensor) -> None:
        """Project slopes, multipliers, weights and shares onto their sound values, in place."""
        for number, free in self.free.items():
            part = self.problem.alpha(alphas, number)
            torch.clamp(part, free.least, free.most, out=part)
        betas.clamp_(min=0).mul_(self.signs != 0)
        weights.clamp_(min=LEAST_WEIGHT)
        if self.problem.hull is not None:
            shares.clamp_(self.problem.hull.slope, 1.0)


@torch.no_grad()
def optimised(problem: Problem, domains: Domains, steps: int, deadline: Deadline = NEVER) -> Domains:
    """The domains with the best bounds of `steps` steps of ascent, or of fewer if the deadline comes first.

    A closed domain is not optimised further.
    """
    relaxed = RelaxedDomains.of(problem, domains)
    variables = [value.clone() for value in domains.variables]
    relaxed.project(*variables)
    no_bounds = variables[0].new_full((domains.total,), -torch.inf)
    alphas, betas, weights, shares = (value.clone() for value in variables)
    best = domains._replace(alphas=alphas, betas=betas, weights=weights, shares=shares, bounds=no_bounds)
    ascent = Ascent(variables, RATES, DECAY)
    left = torch.arange(domains.total, device=best.nodes.device)
    for _ in range(steps):
        if deadline.over():
            break
        before = [value.clone() for value in ascent.values]
        bounds, gradients = _gradients(relaxed, *before)
        _keep_better(best, left, bounds, before)
        unproved = ~(best.bounds[left] > 0)
        if not bool(unproved.any()):
            return best
        ascent.step(gradients)
        if int((~unproved).sum()) * COMPACT_SHARE >= len(left):
            relaxed, left = relaxed.examples(unproved), left[unproved]
            ascent.keep(unproved)
        relaxed.project(*ascent.values)
    _keep_better(best, left, relaxed.bounds(*ascent.values), ascent.values)
    return best


@torch.no_grad()
def domain_bounds(problem: Problem, domains: Domains) -> Tensor:
    """The bounds (D,) with the domains' slopes, multipliers, weights and shares, in the precision of the problem."""
    relaxed, variables = relaxed_domains(problem, domains)
    return relaxed.bounds(*variables)


def relaxed_domains(problem: Problem, domains: Domains) -> tuple[RelaxedDomains, list[Tensor]]:
    """The domains relaxed in the precision of the problem, with their slopes, multipliers, weights and shares."""
    relaxed, like = RelaxedDomains.of(problem, domains), problem.prefix.start.radius
    variables = [value.to(like.dtype, copy=True) for value in domains.variables]
    relaxed.project(*variables)
    return relaxed, variables


def _gradients(relaxed: RelaxedDomains, *values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The bounds (D,), and their gradients in slopes, multipliers, weights and shares."""
    with torch.enable_grad():
        variables = [value.detach().requires_grad_() for value in values]
        bounds = relaxed.bounds(*variables)
        if not bounds.requires_grad:  # there is no slope to choose, as in a network without ReLU
            return bounds, tuple(map(torch.zeros_like, values))
        gradients = torch.autograd.grad(bounds.sum(), variables, materialize_grads=True)
    return bounds.detach(), gradients


def _keep_better(best: Domains, rows: Tensor, bounds: Tensor, values: Sequence[Tensor]) -> None:
    """Keep bounds that are better than the best so far, in place. The bound that closed a domain is not replaced."""
    before = best.bounds[rows]
    better = (bounds > before) & ~(before > 0)
    chosen = rows[better]
    best.bounds[chosen] = bounds[better]
    for kept, value in zip(best.variables, values, strict=True):
        kept[chosen] = value[better]
