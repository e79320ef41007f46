"""Bounds of domains: linear relaxations with searched slopes, and the splits as Lagrange multipliers (β-CROWN).

Where a split says s·z ≥ 0 of a unit's input z, f ≥ f − β s z for any β ≥ 0: a
linear bound of the right side holds in the domain, and the best β close the gap
that the box of z alone leaves (Wang et al. 2021, theorem 3.1). Slopes α and
multipliers β are moved together along the gradient of the bound; the bound of
every step holds, and the best of them is kept.

z is what the network computes there, rounded as it may be, and a rectifier's
sign is that of its computed input: the splits leave no number out, in whatever
arithmetic, and the term needs no more than what this program itself rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certtrain.bounds.ascent import Ascent
from certtrain.bounds.linear import LinesOf, OnCoefficients, Prefix, backsubstitute
from certtrain.bounds.lines import Slopes
from certtrain.bounds.rounding import UNIT64
from certtrain.branching.domains import Domains
from certtrain.branching.problem import Problem
from certtrain.runtime.deadline import NEVER, Deadline

ALPHA_RATE, BETA_RATE, DECAY = 0.1, 1.0, 0.98
PART = 4  # when one of so many domains is closed, the search goes on without the closed ones


@dataclass(frozen=True)
class Relaxed:
    """Domains with their boxes and the lines of their relaxations, but for slopes and multipliers."""

    problem: Problem
    signs: Tensor
    prefix: Prefix
    free: dict[int, Slopes]

    @classmethod
    def of(cls, problem: Problem, domains: Domains) -> "Relaxed":
        prefix = problem.restricted(domains.signs)
        return cls(problem, domains.signs.to(prefix.start.radius.dtype), prefix, problem.slopes(prefix))

    def examples(self, chosen: Tensor) -> "Relaxed":
        """Some of the domains."""
        free = {number: slopes.examples(chosen) for number, slopes in self.free.items()}
        return Relaxed(self.problem, self.signs[chosen], self.prefix.examples(chosen), free)

    def bounds(
        self, alphas: Tensor, betas: Tensor, *, on_coefficients: OnCoefficients = lambda value, coefficients: None
    ) -> Tensor:
        """Lower bounds (D, S) of the functions, offsets and all; `on_coefficients` is called on the way back."""
        part, problem = self.problem.part, self.problem
        lines: LinesOf = {number: slopes.at(part(alphas, number)) for number, slopes in self.free.items()}
        forces = -betas * self.signs * problem.scale
        added = {number: part(forces, number) for number in problem.numbers}
        functions = problem.functions.expand(len(forces), -1, -1)
        found = backsubstitute(
            self.prefix,
            functions,
            lines=lines,
            added=added,
            rounding=problem.rounding,
            on_coefficients=on_coefficients,
        )
        bounds = found + problem.offsets
        if problem.rounding is not None:  # of this sum
            bounds = bounds - 4 * UNIT64 * (found.abs() + problem.offsets.abs())
        return bounds

    def project(self, alphas: Tensor, betas: Tensor) -> None:
        """Move slopes and multipliers to where they may be, in place."""
        for number, slopes in self.free.items():
            part = self.problem.part(alphas, number)
            torch.clamp(part, slopes.least, slopes.most, out=part)
        betas.clamp_(min=0).mul_(self.signs != 0)


@torch.no_grad()
def improved(problem: Problem, domains: Domains, steps: int, deadline: Deadline = NEVER) -> Domains:
    """The domains with the best bounds of so many steps of ascent, or fewer where the deadline comes before.

    One that is closed is searched no more.
    """
    relaxed = Relaxed.of(problem, domains)
    variables = [domains.alphas.clone(), domains.betas.clone()]
    relaxed.project(*variables)
    nothing = variables[0].new_full((domains.total,), -torch.inf)
    best = domains._replace(alphas=variables[0].clone(), betas=variables[1].clone(), bounds=nothing)
    ascent = Ascent(variables, [ALPHA_RATE, BETA_RATE], DECAY)
    left = torch.arange(domains.total, device=best.nodes.device)
    for _ in range(steps):
        if deadline.over():
            break
        before = [value.clone() for value in ascent.values]
        bounds, gradients = _gradients(relaxed, *before)
        _keep_better(best, left, bounds, before)
        going = ~(best.bounds[left] > 0)
        if not bool(going.any()):
            return best
        ascent.step(gradients)
        if int((~going).sum()) * PART >= len(left):
            relaxed, left = relaxed.examples(going), left[going]
            ascent.keep(going)
        relaxed.project(*ascent.values)
    _keep_better(best, left, relaxed.bounds(*ascent.values).amax(1), ascent.values)
    return best


@torch.no_grad()
def bounded(problem: Problem, domains: Domains) -> Tensor:
    """The bounds (D,) with the slopes and multipliers as they are, in the precision of the problem."""
    relaxed, like = Relaxed.of(problem, domains), problem.prefix.start.radius
    values = [value.to(like.dtype, copy=True) for value in (domains.alphas, domains.betas)]
    relaxed.project(*values)
    return relaxed.bounds(*values).amax(1)


def _gradients(relaxed: Relaxed, *values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The bounds (D,), each of the best of its functions, and how they rise with slopes and multipliers."""
    with torch.enable_grad():
        variables = [value.detach().requires_grad_() for value in values]
        bounds = relaxed.bounds(*variables).amax(1)
        if not bounds.requires_grad:  # no slope is free to choose, as without ReLU
            return bounds, tuple(map(torch.zeros_like, values))
        gradients = torch.autograd.grad(bounds.sum(), variables, materialize_grads=True)
    return bounds.detach(), gradients


def _keep_better(best: Domains, rows: Tensor, bounds: Tensor, values: Sequence[Tensor]) -> None:
    """Keep what is better than the best so far, in place; the bound that closed a domain is not replaced by another."""
    before = best.bounds[rows]
    better = (bounds > before) & ~(before > 0)
    chosen = rows[better]
    best.bounds[chosen] = bounds[better]
    for kept, value in zip((best.alphas, best.betas), values, strict=True):
        kept[chosen] = value[better]
