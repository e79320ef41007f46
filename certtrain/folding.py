"""BatchNorm folded into the layer before it, so that a network is affine layers and ReLUs alone.

In evaluation mode BatchNorm is affine per channel: with s = γ/√(var + eps),
BN(Wx + b) = (sW)x + s(b − mean) + β. The products are taken in float64 and
rounded once to float32, so a folded network differs from its original by no
more than rounding.
"""

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from certtrain.bounds.graph import LayerCall, LayerGraph, trace_layers
from certtrain.errors import UnsupportedLayer
from certtrain.modelfile import Classifier, Metadata
from certtrain.models import InputSpec, build_model

NOTE = "BatchNorm folded; the results were measured before that"
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold_batch_norm(model: Classifier) -> Classifier:
    """The same function of pixels (B, C, H, W) without BatchNorm: a new network on the CPU, in evaluation mode.

    Its metadata names the architecture without BatchNorm and says what was
    done. A network that has no BatchNorm is copied as it is. Raises
    UnsupportedLayer if a BatchNorm does not follow a convolution or linear
    layer, or another layer uses that one's result too.
    """
    exact = copy.deepcopy(model).cpu().eval()
    if not model.metadata.architecture.batch_norm:
        return exact
    folded = _fold(trace_layers(exact.double()))
    state = {name: tensor for name, tensor in exact.state_dict().items() if name.rpartition(".")[0] not in folded}
    return _build(_folded_metadata(model.metadata), state)


def _fold(graph: LayerGraph) -> set[str]:
    """Change the layers before each BatchNorm in place; return the names of those that are now of no use."""
    pairs = list(_pairs(graph))
    for layer, norm in pairs:
        layer.weight, layer.bias = _fuse(layer, norm.layer, norm.name)
    return {norm.name for _, norm in pairs}


def _pairs(graph: LayerGraph) -> Iterator[tuple[nn.Conv2d | nn.Linear, LayerCall]]:
    """Each BatchNorm's call, after the layer that it follows."""
    users = Counter(value for call in graph.calls for value in call.inputs)
    calls = Counter(id(call.layer) for call in graph.calls)
    for call in graph.calls:
        if not isinstance(call.layer, BATCH_NORMS):
            continue
        value = call.inputs[0]
        before = graph.calls[value - 1].layer if value else None
        if not isinstance(before, (nn.Conv2d, nn.Linear)) or users[value] > 1 or calls[id(before)] > 1:
            raise UnsupportedLayer(
                f"{call.name!r} cannot be folded: a BatchNorm must follow a convolution or a linear layer "
                "whose result nothing else uses"
            )
        yield before, call


def _fuse(layer: nn.Conv2d | nn.Linear, norm: nn.Module, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    assert isinstance(norm, BATCH_NORMS)
    if norm.running_mean is None or norm.running_var is None:
        raise UnsupportedLayer(f"{name!r} cannot be folded: it keeps no running statistics")
    # What torch calls a convolution's weights may have two dimensions: the formula is the same.
    return fuse_conv_bn_weights(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _folded_metadata(metadata: Metadata) -> Metadata:
    architecture = metadata.architecture.model_copy(update={"batch_norm": False})
    note = f"{metadata.note}; {NOTE}" if metadata.note else NOTE
    return metadata.model_copy(update={"architecture": architecture, "note": note})


def _build(metadata: Metadata, state: dict[str, Tensor]) -> Classifier:
    channels = metadata.input_shape[0]
    spec = InputSpec(metadata.input_shape, len(metadata.class_names), (0.0,) * channels, (1.0,) * channels)
    with torch.device("meta"):  # no memory and no random numbers: every tensor comes from `state`
        network = build_model(metadata.architecture, spec)
    network.load_state_dict(state, assign=True)
    return Classifier(network, metadata).float().eval()
