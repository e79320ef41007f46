"""The initialisation of weights: the IBP initialisation, and the usual ones with which it is compared."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from certtrain.bounds.graph import Add, LayerGraph
from certtrain.bounds.reading import read_layers
from certtrain.errors import UnsupportedLayer
from certtrain.spec.preset import Scheme
from certtrain.spec.shapes import Shape

Weighted = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class InitRecord:
    """The initialisation of one layer: its name, the scheme, fan-in, standard deviation of the weights, if halved."""

    name: str
    scheme: str
    fan_in: int
    std: float
    halved: bool


@torch.no_grad()
def ibp_init_(model: nn.Module, generator: Generator | None = None, *, shape: Shape | None = None) -> list[InitRecord]:
    """Draw each weight tensor but the last from N(0, 2π/fan_in²), and set its bias to zero.

    This keeps the mean radius of the bounds constant from layer to layer. If the
    input of a layer is a residual sum, directly or through layers without weights,
    its weights are halved (Shi et al. 2021, section 3.1). That keeps the radius
    constant if both summands come from a layer with weights; if one summand is x
    itself, the radius still grows with each block, but less. The last layer is not
    changed.

    shape: the shape of one input, without the batch dimension, if the network's forward pass depends on it.

    Raises UnsupportedLayer as `read_layers`, or if the network has no weights.
    """
    return _initialize(read_layers(model, shape), "ibp", generator)


@torch.no_grad()
def initialize_(model: nn.Module, scheme: Scheme, generator: Generator | None = None) -> list[InitRecord]:
    """Initialise all layers of `model` by `scheme`, but the last layer by PyTorch's default.

    kaiming: N(0, 2/fan_in) (He et al. 2015). xavier: N(0, 2/(fan_in + fan_out))
    (Glorot and Bengio 2010). orthogonal: Saxe et al. 2014. Biases are zero.
    """
    graph = read_layers(model)
    records = _initialize(graph, scheme, generator)
    _default_(_weighted(graph)[-1][1], generator)
    return records


def _initialize(graph: LayerGraph, scheme: Scheme, generator: Generator | None) -> list[InitRecord]:
    records = []
    for name, layer, summed in _weighted(graph)[:-1]:
        halved = summed and scheme == "ibp"
        SCHEMES[scheme](layer.weight, generator)
        layer.weight.mul_(0.5 if halved else 1.0)
        if layer.bias is not None:
            layer.bias.zero_()
        records.append(InitRecord(name, scheme, layer.weight[0].numel(), layer.weight.std().item(), halved))
    return records


def _weighted(graph: LayerGraph) -> list[tuple[str, Weighted, bool]]:
    """Each layer with weights, once: its name, the layer, and whether its input is a residual sum."""
    found: dict[Weighted, tuple[str, bool]] = {}
    for call in graph.calls:
        if isinstance(call.layer, (nn.Linear, nn.Conv2d)):
            found.setdefault(call.layer, (call.name, _fed_by_sum(graph, call.inputs[0])))
    if not found:
        raise UnsupportedLayer("the network has no linear or convolutional layer to initialise")
    return [(name, layer, summed) for layer, (name, summed) in found.items()]


def _fed_by_sum(graph: LayerGraph, value: int) -> bool:
    if value == 0:
        return False
    call = graph.calls[value - 1]
    if isinstance(call.layer, Add):
        return True
    return not isinstance(call.layer, (nn.Linear, nn.Conv2d)) and any(_fed_by_sum(graph, i) for i in call.inputs)


def _ibp_(weight: Tensor, generator: Generator | None) -> None:
    nn.init.normal_(weight, 0.0, math.sqrt(2 * math.pi) / weight[0].numel(), generator=generator)


def _kaiming_(weight: Tensor, generator: Generator | None) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)


def _xavier_(weight: Tensor, generator: Generator | None) -> None:
    nn.init.xavier_normal_(weight, generator=generator)


def _orthogonal_(weight: Tensor, generator: Generator | None) -> None:
    nn.init.orthogonal_(weight, generator=generator)


def _default_(layer: Weighted, generator: Generator | None) -> None:
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


SCHEMES: dict[Scheme, Callable[[Tensor, Generator | None], None]] = {
    "ibp": _ibp_,
    "kaiming": _kaiming_,
    "xavier": _xavier_,
    "orthogonal": _orthogonal_,
}
