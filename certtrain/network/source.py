"""A user's own network: the user's code is run once, here, and its layers are read into the preset as data.

After that the run does not need the code: neither loading the model file nor
resuming the run executes any of it, or depends on later changes of it.
"""

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certtrain.bounds.supported import checked_graph
from certtrain.data import ImageSet
from certtrain.errors import NetworkError, UnsupportedLayer
from certtrain.network.graphs import GraphNetwork, NetworkData, check_logits, graph_of
from certtrain.runtime.user_code import USER_ERRORS, UserCallable, call, callable_from, error_text, user_code
from certtrain.spec.layers import DropoutSection, Graph, ModuleSection, Origin
from certtrain.spec.preset import Preset
from certtrain.spec.shapes import ImageShape


def resolve_module(preset: Preset, train: ImageSet) -> Preset:
    """The preset with its network as layers: those of the module that the user's code makes for these images.

    A preset without such code is returned as it is. Raises NetworkError, which says
    what is wrong with the code or its network, or UnsupportedLayer, which names a
    layer without a bound rule.
    """
    if not isinstance(preset.model, ModuleSection):
        return preset
    graph = read_network(preset.model, train.input_shape, len(train.class_names))
    return preset.model_copy(update={"model": graph})


def read_network(module: ModuleSection, shape: ImageShape, classes: int) -> Graph:
    """The layers of a user's network for images of `shape` (C, H, W). Raises as `resolve_module`."""
    with user_code():
        maker = callable_from(module.source, NetworkError)
        network = _call(maker, module.arguments, shape, classes)
        _check_parameters(maker.title, network)
        x = torch.randn(2, *shape)
        expected = _logits(maker.title, network, x)
        check_logits(maker.title, tuple(expected.shape), shape, classes)
        found = _layers(maker.title, network, shape)
        _check_same(maker.title, found, x, expected)
    origin = Origin(source=maker.title, arguments=module.arguments, sha256=maker.sha256)
    return found.graph.model_copy(update={"origin": origin})


def make_network_from(source: str, shape: ImageShape, classes: int) -> nn.Module:
    """The module that the user's code, like "my.py:MyNet", makes for images of `shape`, on the CPU in float32.

    Raises NetworkError.
    """
    with user_code():
        maker = callable_from(source, NetworkError)
        network = _call(maker, {}, shape, classes)
        check_logits(maker.title, tuple(_logits(maker.title, network, torch.randn(2, *shape)).shape), shape, classes)
    return network


def changed_source(preset: Preset) -> str | None:
    """The file from which a run's layers were read, if it exists and has changed since."""
    origin = preset.model.origin if isinstance(preset.model, Graph) else None
    if origin is None or origin.sha256 is None:
        return None
    file = origin.source.rpartition(":")[0]
    try:
        return file if hashlib.sha256(Path(file).read_bytes()).hexdigest() != origin.sha256 else None
    except OSError:  # the file is not needed any more
        return None


# --- the user's network ----------------------------------------------------------------------------------


def _call(maker: UserCallable, arguments: dict[str, Any], shape: ImageShape, classes: int) -> nn.Module:
    make, title, _ = maker
    if isinstance(make, nn.Module):
        raise NetworkError(f"{title} is a network already; give the class or function that makes it")
    known = {"input_shape": shape, "classes": classes}
    given = {name: value for name, value in known.items() if name in _parameters(make)} | arguments
    network = call(maker, given, NetworkError)
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{title} returns {network!r}, which is not a torch.nn.Module")
    return network


def _parameters(make: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(make).parameters)
    except (ValueError, TypeError):  # a callable that is written in C may have no signature
        return set()


def _check_parameters(title: str, network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if parameter.device.type != "cpu":
            raise NetworkError(f"{title}: {name!r} is on {parameter.device}; make the network on the CPU")
        if parameter.dtype != torch.float32:
            raise NetworkError(f"{title}: {name!r} is {parameter.dtype}; certtrain trains in torch.float32")
        if not parameter.requires_grad:
            raise NetworkError(f"{title}: {name!r} is frozen (requires_grad=False); certtrain trains all weights")


@torch.no_grad()
def _logits(title: str, network: nn.Module, x: Tensor) -> Tensor:
    try:
        logits = network.eval()(x.clone())
    except USER_ERRORS as error:
        raise NetworkError(f"{title} does not take images of shape {tuple(x.shape)}: {error_text(error)}") from error
    if not isinstance(logits, Tensor):
        raise NetworkError(f"{title} returns {type(logits).__name__}, not a tensor of logits")
    return logits


def _layers(title: str, network: nn.Module, shape: ImageShape) -> NetworkData:
    """The layers of the network, which must be the same in training and in evaluation."""
    try:
        trained, found = (graph_of(checked_graph(network.train(mode), shape)) for mode in (True, False))
    except UnsupportedLayer as error:
        raise UnsupportedLayer(f"{title}: {error}") from error
    except USER_ERRORS as error:
        raise UnsupportedLayer(f"{title}: its forward pass cannot be traced: {error_text(error)}") from error
    if trained.graph != found.graph:
        raise UnsupportedLayer(f"{title} has other layers in training than in evaluation; they must be the same")
    for layer in found.graph.layers:
        if isinstance(layer, DropoutSection) and layer.p > 0:
            raise UnsupportedLayer(
                f"{title}: layer {layer.name!r} is random in training; bounds need a Dropout of p = 0"
            )
    return found


@torch.no_grad()
def _check_same(title: str, found: NetworkData, x: Tensor, expected: Tensor) -> None:
    """Raise UnsupportedLayer unless the layers compute what the module does: a layer's forward may be replaced."""
    network = GraphNetwork(found.graph)
    network.load_state_dict(found.state)
    if not torch.allclose(network.eval()(x), expected, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise UnsupportedLayer(f"{title} computes something other than its layers do")
