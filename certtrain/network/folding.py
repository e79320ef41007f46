"""BatchNorm folded into the layer before it, so that a network is affine layers and ReLUs alone.

In evaluation mode BatchNorm is affine per channel: with s = γ/√(var + eps),
BN(Wx + b) = (sW)x + s(b − mean) + β. The products are taken in float64 and
rounded once to float32, so a folded network differs from its original by no
more than rounding. A BatchNorm that no such layer comes before, as after a
residual sum, stays.
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
NOTE_OF_SOME = "BatchNorm folded where it follows a layer with weights; the results were measured before that"
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold_batch_norm(model: Classifier) -> Classifier:
    """The same function of pixels (B, C, H, W), its BatchNorm folded: a new network on the CPU, in evaluation mode.

    A BatchNorm is folded if it follows a convolution or linear layer whose
    outputs are its channels and whose result nothing else uses. A network
    where there is none is copied as it is. The metadata say what was done: they name the architecture without
    BatchNorm, or list the layers where it has no such name. Raises
    UnsupportedLayer if a BatchNorm has no running statistics.
    """
    exact = copy.deepcopy(model).cpu().eval().double()
    graph = layers_of(_body(exact))
    folded = _fold(graph, model.metadata.input_shape)
    if not folded:
        return exact.float()
    rest = _without(graph, folded)
    whole = not any(isinstance(call.layer, BATCH_NORMS) for call in rest.calls)
    if whole and not isinstance(model.metadata.architecture, Graph):
        return _named(model.metadata, exact.state_dict(), folded)
    return _listed(model.metadata, exact.state_dict(), rest, NOTE if whole else NOTE_OF_SOME)


def _named(metadata: Metadata, state: dict[str, Tensor], folded: set[str]) -> Classifier:
    """The architecture of the same name without BatchNorm."""
    architecture = metadata.architecture.model_copy(update={"batch_norm": False})
    state = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in folded}
    return _build(_noted(metadata, architecture, NOTE), state)


def _listed(metadata: Metadata, state: dict[str, Tensor], rest: LayerGraph, note: str) -> Classifier:
    """The network of the layers that are left."""
    found = graph_of(rest)
    origin = metadata.architecture.origin if isinstance(metadata.architecture, Graph) else None
    state = {name: tensor for name, tensor in state.items() if name.startswith("normalize.")}
    state |= {f"network.{name}": tensor for name, tensor in found.state.items()}
    return _build(_noted(metadata, found.graph.model_copy(update={"origin": origin}), note), state)


def _body(model: Classifier) -> nn.Module:
    """What comes after the normalisation."""
    if isinstance(model.metadata.architecture, Graph):
        return model.get_submodule("network")
    return nn.Sequential(OrderedDict(list(model.named_children())[1:]))


def _flat_values(graph: LayerGraph, image: tuple[int, ...]) -> set[int]:
    """The values of shape (B, F), for images (C, H, W); of others a linear layer's outputs are no channels."""
    shapes = [torch.Size((1, *image))]
    for call in graph.calls:
        shapes.append(result_shape(call, [shapes[value] for value in call.inputs]))
    return {value for value, shape in enumerate(shapes) if len(shape) == 2}


def _fold(graph: LayerGraph, image: tuple[int, ...]) -> set[str]:
    """Change the layers before each BatchNorm in place; return the names of those that are now of no use."""
    pairs = list(_pairs(graph, _flat_values(graph, image)))
    for layer, norm in pairs:
        layer.weight, layer.bias = _fuse(layer, norm.layer, norm.name)
    return {norm.name for _, norm in pairs}


def _without(graph: LayerGraph, folded: set[str]) -> LayerGraph:
    """The other calls: what took a folded one's result takes what that was given."""
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
    """Each BatchNorm's call that can be folded, after the layer that it follows."""
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
    # What torch calls a convolution's weights may have two dimensions: the formula is the same.
    return fuse_conv_bn_weights(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _noted(metadata: Metadata, architecture: Architecture, note: str) -> Metadata:
    note = f"{metadata.note}; {note}" if metadata.note else note
    return metadata.model_copy(update={"architecture": architecture, "note": note})


def _build(metadata: Metadata, state: dict[str, Tensor]) -> Classifier:
    channels = metadata.input_shape[0]
    spec = InputSpec(metadata.input_shape, len(metadata.class_names), (0.0,) * channels, (1.0,) * channels)
    with torch.device("meta"):  # no memory and no random numbers: every tensor comes from `state`
        network = build_model(metadata.architecture, spec)
    network.load_state_dict(state, assign=True)
    return Classifier(network, metadata).float().eval()
