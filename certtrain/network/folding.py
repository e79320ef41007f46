"""BatchNorm folded into the layer before it.

In evaluation mode BatchNorm is affine per channel: with s = γ/√(var + eps),
BN(Wx + b) = (sW)x + s(b − mean) + β. The products are computed in float64 and
rounded once to float32, so a folded network differs from the original only by
rounding. A BatchNorm that does not follow a linear layer or a convolution, but
for example a residual sum, is kept.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from certtrain.bounds.contract import result_shape
from certtrain.bounds.graph import LayerCall, LayerGraph
from certtrain.errors import UnsupportedLayer
from certtrain.network.graphs import graph_of, layers_of
from certtrain.network.modelfile import Classifier, Metadata
from certtrain.network.models import InputSpec, build_model
from certtrain.spec.architecture import Architecture
from certtrain.spec.layers import Graph

NOTE = "BatchNorm folded; the results were measured before that"
NOTE_IF_SOME_REMAIN = "BatchNorm folded where it follows a layer with weights; the results were measured before that"
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold_batch_norm(model: Classifier) -> Classifier:
    """The same function of pixels (B, C, H, W) with BatchNorm folded: a new network on the CPU, in evaluation mode.

    A BatchNorm is folded if it follows a convolution or linear layer whose outputs
    are its channels, and whose result no other layer uses. A network without such a
    BatchNorm is copied. The metadata describe the new network: by the architecture's
    name without BatchNorm, or by a list of layers if it has no such name. Raises
    UnsupportedLayer if a BatchNorm has no running statistics.
    """
    exact = copy.deepcopy(model).cpu().eval().double()
    graph = layers_of(_body(exact))
    folded = _fold(graph, model.metadata.input_shape)
    if not folded:
        return exact.float()
    rest = _without(graph, folded)
    all_folded = not any(isinstance(call.layer, BATCH_NORMS) for call in rest.calls)
    if all_folded and not isinstance(model.metadata.architecture, Graph):
        return _named(model.metadata, exact.state_dict(), folded)
    return _listed(model.metadata, exact.state_dict(), rest, NOTE if all_folded else NOTE_IF_SOME_REMAIN)


def _named(metadata: Metadata, state: dict[str, Tensor], folded: set[str]) -> Classifier:
    """The folded network as the architecture of the same name without BatchNorm."""
    architecture = metadata.architecture.model_copy(update={"batch_norm": False})
    state = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in folded}
    return _build(_noted(metadata, architecture, NOTE), state)


def _listed(metadata: Metadata, state: dict[str, Tensor], rest: LayerGraph, note: str) -> Classifier:
    """The folded network as a list of the remaining layers."""
    data = graph_of(rest)
    origin = metadata.architecture.origin if isinstance(metadata.architecture, Graph) else None
    state = {name: tensor for name, tensor in state.items() if name.startswith("normalize.")}
    state |= {f"network.{name}": tensor for name, tensor in data.state.items()}
    return _build(_noted(metadata, data.graph.model_copy(update={"origin": origin}), note), state)


def _body(model: Classifier) -> nn.Module:
    """The layers after the normalisation."""
    if isinstance(model.metadata.architecture, Graph):
        return model.get_submodule("network")
    return nn.Sequential(OrderedDict(list(model.named_children())[1:]))


def _flat_values(graph: LayerGraph, image: tuple[int, ...]) -> set[int]:
    """The values of shape (B, F), for images (C, H, W); otherwise the outputs of a linear layer are not channels."""
    shapes = [torch.Size((1, *image))]
    for call in graph.calls:
        shapes.append(result_shape(call, [shapes[value] for value in call.inputs]))
    return {value for value, shape in enumerate(shapes) if len(shape) == 2}


def _fold(graph: LayerGraph, image: tuple[int, ...]) -> set[str]:
    """Fold each BatchNorm into the layer before it, in place; return the names of the folded BatchNorms."""
    pairs = list(_pairs(graph, _flat_values(graph, image)))
    for layer, norm in pairs:
        layer.weight, layer.bias = _fuse(layer, norm.layer, norm.name)
    return {norm.name for _, norm in pairs}


def _without(graph: LayerGraph, folded: set[str]) -> LayerGraph:
    """The graph without the folded BatchNorms: their inputs take the place of their results."""
    calls: list[LayerCall] = []
    new = {0: 0}
    for value, call in enumerate(graph.calls, start=1):
        inputs = tuple(new[i] for i in call.inputs)
        if call.name in folded:
            new[value] = inputs[0]
        else:
            calls.append(call._replace(inputs=inputs))
            new[value] = len(calls)
    return LayerGraph(tuple(calls))


def _pairs(graph: LayerGraph, flat: set[int]) -> Iterator[tuple[nn.Conv2d | nn.Linear, LayerCall]]:
    """Each layer that a BatchNorm can be folded into, with the call of that BatchNorm."""
    users = Counter(value for call in graph.calls for value in call.inputs)
    calls = Counter(id(call.layer) for call in graph.calls)
    for call in graph.calls:
        if not isinstance(call.layer, BATCH_NORMS):
            continue
        value = call.inputs[0]
        before = graph.calls[value - 1].layer if value else None
        fits = isinstance(before, nn.Conv2d) or value in flat
        if fits and isinstance(before, (nn.Conv2d, nn.Linear)) and users[value] == 1 and calls[id(before)] == 1:
            yield before, call


def _fuse(layer: nn.Conv2d | nn.Linear, norm: nn.Module, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    assert isinstance(norm, BATCH_NORMS)
    if norm.running_mean is None or norm.running_var is None:
        raise UnsupportedLayer(f"{name!r} cannot be folded: it keeps no running statistics")
    # torch's function is named for convolutions, but the formula is the same for weights with two dimensions.
    return fuse_conv_bn_weights(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _noted(metadata: Metadata, architecture: Architecture, note: str) -> Metadata:
    note = f"{metadata.note}; {note}" if metadata.note else note
    return metadata.model_copy(update={"architecture": architecture, "note": note})


def _build(metadata: Metadata, state: dict[str, Tensor]) -> Classifier:
    channels = metadata.input_shape[0]
    spec = InputSpec(metadata.input_shape, len(metadata.class_names), (0.0,) * channels, (1.0,) * channels)
    with torch.device("meta"):  # without memory and random numbers, since every tensor comes from `state`
        network = build_model(metadata.architecture, spec)
    network.load_state_dict(state, assign=True)
    return Classifier(network, metadata).float().eval()
