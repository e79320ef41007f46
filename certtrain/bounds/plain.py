"""A pass of inputs without boxes: what the network computes, with given BatchNorm statistics."""

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
    StatisticsByCall,
    StatisticsSource,
    running_statistics,
    statistics_for,
)


class PlainPass(NamedTuple):
    """The network's output (B, …), and the statistics of each BatchNorm, by the name of its call."""

    output: Tensor
    statistics: StatisticsByCall


def plain_pass(graph: LayerGraph, x: Tensor, *, statistics: StatisticsSource = running_statistics) -> PlainPass:
    """Propagate the inputs `x` (B, …) through the network, as an interval pass does with a clean batch.

    `statistics` says by what BatchNorm normalises, so that adversarial inputs can be normalised by the statistics of
    the clean batch. Gradients flow through the whole pass, and nothing is updated. Raises DataError if the layers are
    for inputs of another shape.
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
        taken[call.name] = found = statistics_for(call.name, layer, inputs[0], source)
        scale, shift = scale_and_shift(layer, found, inputs[0].dim())
        return torch.addcmul(shift, inputs[0], scale)
    if isinstance(layer, nn.Dropout):
        check_not_random(layer)
    # A layer that works in place would overwrite values that the gradient needs.
    result: Tensor = layer(*(x.clone() for x in inputs) if vars(layer).get("inplace") else inputs)
    return result
