"""A pass of plain inputs alone: what the network computes, with the BatchNorm statistics that it is given."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.checks import check_not_random
from certtrain.bounds.graph import LayerCall, LayerGraph
from certtrain.bounds.interval import scale_and_shift
from certtrain.bounds.statistics import (
    BatchNorm,
    Statistics,
    StatisticsSource,
    TakenStatistics,
    running_statistics,
    taken_by,
)


class PlainPass(NamedTuple):
    """The network's output (B, …), and what each BatchNorm normalised by, by its call's name."""

    output: Tensor
    statistics: TakenStatistics


def plain_pass(graph: LayerGraph, x: Tensor, *, statistics: StatisticsSource = running_statistics) -> PlainPass:
    """Carry the inputs `x` (B, …) through the network, just as an interval pass carries a clean batch.

    `statistics` says by what BatchNorm normalises: so what an attack has found can go through under the statistics of
    the clean batch. Gradients flow through all of it, and nothing is updated. Raises DataError if the layers are not
    those for inputs of that shape.
    """
    graph.check_input(x.shape)
    taken: dict[str, Statistics] = {}
    output = x
    for result in graph.walk(x, partial(_result, statistics, taken)):
        output = result
    return PlainPass(output, taken)


def _result(source: StatisticsSource, taken: dict[str, Statistics], call: LayerCall, *inputs: Tensor) -> Tensor:
    layer = call.layer
    if isinstance(layer, BatchNorm):
        taken[call.name] = found = taken_by(call.name, layer, inputs[0], source)
        scale, shift = scale_and_shift(layer, found, inputs[0].dim())
        return torch.addcmul(shift, inputs[0], scale)
    if isinstance(layer, nn.Dropout):
        check_not_random(layer)
    # A layer that works in place would write over what a gradient needs.
    result: Tensor = layer(*(x.clone() for x in inputs) if vars(layer).get("inplace") else inputs)
    return result
