"""Exact methods for one case of a property, and the inputs that count as counterexamples."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.box import box_between
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.settings import VERDICTS_ALONE
from certtrain.branching.boxes import tight_prefix
from certtrain.branching.problem import Problem
from certtrain.branching.search import branch_and_bound
from certtrain.properties.cases import REAL, Case
from certtrain.runtime.deadline import Deadline


class Subject(NamedTuple):
    """A network, its float64 copy, that copy's layers, the shape of its inputs, and bytes that bounds may take."""

    network: nn.Module
    exact: nn.Module
    graph: LayerGraph
    shape: Sequence[int]
    memory: int = VERDICTS_ALONE.memory

    def confirmed(self, case: Case, point: Tensor) -> Tensor | None:
        """As the function `confirmed`."""
        return confirmed(self.network, self.exact, self.shape, case, point)


class Answer(NamedTuple):
    """A lower bound of a case's largest function, and an input (N,) that reaches the case; None if none was found."""

    bound: float
    point: Tensor | None


@torch.no_grad()
def confirmed(network: nn.Module, exact: nn.Module, shape: Sequence[int], case: Case, point: Tensor) -> Tensor | None:
    """The float64 input (N,) nearest to `point` inside the case's box, if it reaches the case by plain inference.

    It must do so in float64, and once more in the network's own precision at
    the nearest input of that precision.
    """
    inside = torch.clamp(point.double(), case.lower, case.upper)
    own = inside.to(dtype_of(network))
    outputs = torch.stack([run_at(exact, shape, inside), run_at(network, shape, own).double()])
    return inside if bool(case.reached(outputs).all()) else None


def _solve(subject: Subject, case: Case, deadline: Deadline) -> Answer:
    from certtrain.properties.milp import minimum

    least = minimum(subject.exact, subject.shape, case, deadline=deadline)
    return Answer(least.proved, None if least.point is None else subject.confirmed(case, least.point))


def _complete(subject: Subject, case: Case, deadline: Deadline) -> Answer:
    hits = list[Tensor]()
    settings = replace(VERDICTS_ALONE, rounding=REAL, memory=subject.memory, deadline=deadline)
    lower, upper = (end.view(1, *subject.shape) for end in (case.lower, case.upper))
    prefix = tight_prefix(subject.graph, box_between(lower, upper, REAL), settings)
    if deadline.over():
        return Answer(-torch.inf, None)

    def falsifies(inputs: Tensor) -> bool:
        inputs = inputs.double()  # the search itself is in float32
        reached = case.reached(subject.exact(inputs)).nonzero().flatten().tolist()
        found = (subject.confirmed(case, inputs[row].flatten()) for row in reached)
        hits.extend(hit for hit in found if hit is not None)
        return bool(hits)

    outcome = branch_and_bound(Problem(prefix, case.functions, case.offsets, REAL), settings, falsifies=falsifies)
    return Answer(outcome.bound if outcome.proved else -torch.inf, hits[0] if hits else None)


# What decides a case that bounds and attack leave open.
EXACT_METHODS: dict[str, Callable[[Subject, Case, Deadline], Answer]] = {"complete": _complete, "milp": _solve}


@torch.no_grad()
def run_at(network: nn.Module, shape: Sequence[int], point: Tensor) -> Tensor:
    outputs: Tensor = network(point.view(1, *shape))[0]
    return outputs


def dtype_of(network: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in network.parameters()), torch.float32)
