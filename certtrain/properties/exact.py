"""A network that is prepared for properties, and the inputs that count as counterexamples."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.properties.cases import Case


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


class Answers(NamedTuple):
    """For some cases, a lower bound of each one's largest function, and a counterexample (N,) of one, or None."""

    bounds: list[float]
    point: Tensor | None


@torch.no_grad()
def confirmed(network: nn.Module, exact: nn.Module, shape: Sequence[int], case: Case, point: Tensor) -> Tensor | None:
    """The float64 input (N,) nearest to `point` inside the case's box, if it is a counterexample; else None.

    It must be one by inference in float64, and in the network's own precision at the
    nearest input of that precision. Infinite outputs in float64 are an overflow, and
    say nothing about the network in real numbers.
    """
    inside = case.nearest(point)
    if inside is None:
        return None
    own = inside.to(dtype_of(network))
    outputs = torch.stack([run_at(exact, shape, inside), run_at(network, shape, own).double()])
    return inside if bool(outputs[0].isfinite().all() & case.violated_by(outputs).all()) else None


@torch.no_grad()
def run_at(network: nn.Module, shape: Sequence[int], point: Tensor) -> Tensor:
    outputs: Tensor = network(point.view(1, *shape))[0]
    return outputs


def dtype_of(network: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in network.parameters()), torch.float32)
