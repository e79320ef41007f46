"""Domains without unstable neurons: the network is affine there, and a linear program finds the best multipliers.

No proof depends on the solver: its multipliers are used in the same sound bound as
all others, and its input is checked by inference. Without SciPy, a domain that
ascent leaves open stays open.
"""

import importlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.activations import RECTIFIERS
from certtrain.bounds.chunks import between_checks, row_work
from certtrain.bounds.trace import NONLINEAR
from certtrain.branching.bounds import domain_bounds
from certtrain.branching.domains import Domains
from certtrain.branching.problem import Problem
from certtrain.runtime.deadline import NEVER, Deadline

ELASTIC = 1e4  # limit of the multipliers' sum, in multiples of Λ's size: without it an empty domain has no solution


class LeafSolution(NamedTuple):
    """The bound by the best multipliers, and the input (1, …) at which the solver found the least value."""

    bound: float
    inputs: Tensor


def affine(problem: Problem) -> bool:
    """Whether the network is affine wherever the signs of all rectifiers' inputs are fixed."""
    layers = [record.call.layer for record in problem.prefix.records]
    return not any(isinstance(layer, NONLINEAR) and not isinstance(layer, RECTIFIERS) for layer in layers)


@torch.no_grad()
def leaf_solution(problem: Problem, domain: Domains, deadline: Deadline = NEVER) -> LeafSolution | None:
    """The solution for one domain without unstable neurons.

    None without SciPy, where values overflow, or if none is found in time.
    """
    optimize = _scipy()
    if optimize is None or not affine(problem):
        return None
    split = domain.signs[0].nonzero().squeeze(1)
    parts = _affine_parts(problem, domain, split, deadline)
    if parts is None:
        return None
    matrix, constant = parts
    count, start = len(problem.functions), problem.prefix.start
    lower, upper = start.lower.flatten().tolist(), start.upper.flatten().tolist()
    scale = max(problem.scale.tolist(), default=1.0)
    if not (bool(matrix.isfinite().all() & constant.isfinite().all()) and math.isfinite(ELASTIC * scale)):
        return None  # the solver takes no values that overflow
    # The variables are the inputs, t above all functions, and e, by which the signs may be violated.
    auxiliary = torch.zeros(len(matrix), 2, dtype=matrix.dtype)
    auxiliary[:count, 0], auxiliary[count:, 1] = -1.0, -1.0
    found = optimize.linprog(
        [0.0] * len(lower) + [1.0, ELASTIC * scale],
        A_ub=torch.cat([matrix, auxiliary], 1).numpy(),
        b_ub=(-constant).numpy(),
        bounds=[*zip(lower, upper, strict=True), (None, None), (0, None)],
        options={"time_limit": deadline.left},
    )
    if found.status != 0:
        return None
    duals = -torch.tensor(found.ineqlin.marginals, dtype=matrix.dtype)
    inputs = torch.tensor(found.x[: len(lower)], dtype=matrix.dtype).view_as(start.centre).to(start.centre)
    duals = duals.clamp(min=0).to(start.centre)
    weights = duals[:count] / duals[:count].sum()
    weighted = domain._replace(weights=weights.unsqueeze(0))
    return LeafSolution(_bound(problem, weighted, split, duals[count:] / duals[:count].sum()), inputs)


def _bound(problem: Problem, domain: Domains, split: Tensor, multipliers: Tensor) -> float:
    betas = torch.zeros_like(domain.betas, dtype=multipliers.dtype)
    betas[0, split] = multipliers / problem.scale[split]
    return float(domain_bounds(problem, domain._replace(betas=betas)))


def _affine_parts(problem: Problem, domain: Domains, split: Tensor, deadline: Deadline) -> tuple[Tensor, Tensor] | None:
    """A and b of A x + b: the functions, and then −s·z of each split neuron, which is at most zero in the domain.

    None if the deadline comes before they are computed.
    """
    signs = torch.where(domain.signs == 0, problem.stable.to(domain.signs.dtype), domain.signs)
    start = problem.prefix.start.centre
    each = torch.eye(start.numel(), dtype=start.dtype, device=start.device).view(-1, *start.shape[1:])
    size = between_checks(len(each) + 1, row_work(problem.prefix), deadline)
    found = []
    for part in torch.split(torch.cat([torch.zeros_like(start), each]), size):
        if deadline.over():
            return None
        logits, inputs = problem.run(part, signs)
        functions = logits @ problem.functions.T + problem.offsets
        found.append(torch.cat([functions, -inputs[:, split] * domain.signs[0, split]], 1).cpu())
    values = torch.cat(found)
    return (values[1:] - values[0]).T.contiguous(), values[0]


def _scipy() -> Any:
    try:
        return importlib.import_module("scipy.optimize")
    except ImportError:
        return None
