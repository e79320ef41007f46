"""Which networks can be bounded: every layer needs a rule, and unsupported settings are refused before any pass."""

from collections.abc import Callable

import torch
from torch import nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.contract import result_shape
from certtrain.bounds.graph import LayerCall, LayerGraph
from certtrain.bounds.interval import INTERVAL_RULES
from certtrain.bounds.reading import read_forward
from certtrain.bounds.replay import check_replay
from certtrain.bounds.shape_layers import Pad
from certtrain.bounds.statistics import BatchNorm
from certtrain.errors import DataError, UnsupportedLayer
from certtrain.spec.shapes import Shape


def checked_graph(model: nn.Module, shape: Shape | None = None, *, everywhere: bool = True) -> LayerGraph:
    """The layers of `model` for inputs of `shape` (without the batch), after a check that each has a rule.

    Without a shape, the forward pass must not read any shape. With one it is replayed, `everywhere` or only as it
    runs here: without gradients. Raises UnsupportedLayer that names the first layer without a rule, or another reason.
    """
    traced = read_forward(model, shape)
    graph = traced.graph.up_to(traced.result)
    for call in graph.calls:
        _check(call)
    if shape is not None and _takes(graph, shape):
        check_replay(model, traced, shape, everywhere=everywhere)
    return graph


def checked_copy(copy: nn.Module, model: nn.Module, shape: Shape | None = None) -> LayerGraph:
    """The layers of `copy`, which is `model` in float64; with a `shape`, after a check that `model` has the same.

    Raises UnsupportedLayer where they differ, and what `checked_graph` raises.
    """
    with torch.no_grad():  # as inference is
        graph = checked_graph(copy, shape, everywhere=False)
        if shape is not None and checked_graph(model, shape).description() != graph.description():
            raise UnsupportedLayer("the network computes something different in float64 than in its own precision")
    return graph


def _takes(graph: LayerGraph, shape: Shape) -> bool:
    """Whether the layers take inputs of `shape` (without the batch). If not, a pass raises an error that says why."""
    found = [torch.Size((2, *shape))]
    try:
        for call in graph.calls:
            found.append(result_shape(call, [found[value] for value in call.inputs]))
    except DataError:
        return False
    return True


def _check(call: LayerCall) -> None:
    if type(call.layer) not in INTERVAL_RULES:
        raise UnsupportedLayer(
            f"layer {call.name!r} is a {type(call.layer).__name__}, for which there is no bound rule. "
            f"Layers that can be bounded: {', '.join(sorted(t.__name__ for t in INTERVAL_RULES))}."
        )
    if (problem := _PROBLEMS.get(type(call.layer), _none)(call.layer)) is not None:
        raise UnsupportedLayer(f"layer {call.name!r} {problem}")


# --- unsupported settings, by type of layer --------------------------------------------------------------


def _none(layer: nn.Module) -> None:
    return None


def _batch_norm(layer: BatchNorm) -> str | None:
    if layer.affine and layer.bias is None:
        return "has a weight and no bias; give it both, or neither (affine=False)"
    if (layer.running_mean is None) != (layer.running_var is None):
        return "keeps only one of its running statistics; it must keep both or none"
    return None


def _average(layer: nn.AvgPool2d) -> str | None:
    return "has a negative divisor, so it is not an average" if (layer.divisor_override or 1) < 0 else None


def _convolution(layer: nn.Conv2d) -> str | None:
    if layer.padding_mode == "zeros":
        return None
    return f"pads by {layer.padding_mode!r}; only 'zeros' has a rule"


def _max_pool(layer: nn.MaxPool2d) -> str | None:
    return "returns indices; use return_indices=False" if layer.return_indices else None


def _flatten(layer: nn.Flatten) -> str | None:
    if layer.start_dim >= 1:
        return None
    return f"flattens from dimension {layer.start_dim} on, which may include the batch; use start_dim=1 or more"


def _pad(layer: Pad) -> str | None:
    if abs(layer.value) <= Pad.LARGEST:
        return None
    return f"pads by {layer.value:g}; use a finite number that float32 can hold"


_PROBLEMS: dict[type[nn.Module], Callable[..., str | None]] = {
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.AvgPool2d: _average,
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _max_pool,
    nn.Flatten: _flatten,
    Pad: _pad,
    **{kind: record.refusal for kind, record in ACTIVATIONS.items()},
}
