"""Exact methods for one case of a property, and the inputs that count as counterexamples."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.box import box_between
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.branching.boxes import tightened_prefix
from certtrain.branching.problem import Problem
from certtrain.branching.search import branch_and_bound
from certtrain.properties.cases import REAL, Case
from certtrain.runtime.deadline import Deadline


class PreparedNetwork(NamedTuple):
    """A network, its float64 copy, the copy's layers, the shape of one input, and the bytes that bounds may take."""

    network: nn.Module
    exact: nn.Module
    graph: LayerGraph
    shape: Sequence[int]
    memory: int = VERDICT_SETTINGS.memory

    def confirmed(self, case: Case, point: Tensor) -> Tensor | None:
        """As the function `confirmed`."""
        return confirmed(self.network, self.exact, self.shape, case, point)


class Answer(NamedTuple):
    """A lower bound of a case's largest function, and a counterexample (N,), or None."""

    bound: float
    point: Tensor | None


@torch.no_grad()
def confirmed(network: nn.Module, exact: nn.Module, shape: Sequence[int], case: Case, point: Tensor) -> Tensor | None:
    """The float64 input (N,) nearest to `point` inside the case's box, if it is a counterexample; else None.

    It must be one by inference in float64, and in the network's own precision at the
    nearest input of that precision.
    """
    inside = case.nearest(point)
    if inside is None:
        return None
    own = inside.to(dtype_of(network))
    outputs = torch.stack([run_at(exact, shape, inside), run_at(network, shape, own).double()])
    return inside if bool(case.violated_by(outputs).all()) else None


def _solve(prepared: PreparedNetwork, case: Case, deadline: Deadline) -> Answer:
    from certtrain.properties.milp import minimum

    least = minimum(prepared.exact, prepared.shape, case, deadline=deadline)
    return Answer(least.proved, None if least.point is None else prepared.confirmed(case, least.point))


def _complete(prepared: PreparedNetwork, case: Case, deadline: Deadline) -> Answer:
    counterexamples = list[Tensor]()
    settings = replace(VERDICT_SETTINGS, rounding=REAL, memory=prepared.memory, deadline=deadline)
    lower, upper = (end.view(1, *prepared.shape) for end in (case.lower, case.upper))
    prefix = tightened_prefix(prepared.graph, box_between(lower, upper), settings)
    if deadline.over():
        return Answer(-torch.inf, None)

    def falsifies(inputs: Tensor) -> bool:
        inputs = inputs.double()  # the search is in float32
        rows = case.violated_by(prepared.exact(inputs)).nonzero().flatten().tolist()
        found = (prepared.confirmed(case, inputs[row].flatten()) for row in rows)
        counterexamples.extend(point for point in found if point is not None)
        return bool(counterexamples)

    outcome = branch_and_bound(Problem(prefix, case.functions, case.offsets, REAL), settings, falsifies=falsifies)
    bound = outcome.bound if outcome.proved else -torch.inf
    return Answer(bound, counterexamples[0] if counterexamples else None)


# Methods for the cases that the bounds and the attack leave open.
EXACT_METHODS: dict[str, Callable[[PreparedNetwork, Case, Deadline], Answer]] = {"complete": _complete, "milp": _solve}


@torch.no_grad()
def run_at(network: nn.Module, shape: Sequence[int], point: Tensor) -> Tensor:
    outputs: Tensor = network(point.view(1, *shape))[0]
    return outputs


def dtype_of(network: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in network.parameters()), torch.float32)
