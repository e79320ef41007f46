"""Networks of torch's layers, built from layers as data, and converted to data."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, count
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor, nn

from certtrain.bounds.graph import LayerCall, LayerGraph
from certtrain.bounds.interval import INTERVAL_RULES
from certtrain.bounds.reading import read_layers
from certtrain.errors import NetworkError, UnsupportedLayer
from certtrain.spec.layer_section import MOST_NAME_PARTS, LayerSection
from certtrain.spec.layers import NETWORK_INPUT, SECTIONS, Graph, SharedSection
from certtrain.spec.preset import explain
from certtrain.spec.shapes import graph_shapes

TYPES = {layer.__name__: layer for layer in INTERVAL_RULES}
CONSTRUCTOR_ERRORS = (RuntimeError, ValueError, TypeError, OverflowError)  # which torch raises for wrong arguments


class GraphNetwork(nn.Module):
    """A network made from data, which maps normalised images (B, C, H, W) to logits (B, K).

    Its layers have the names in the data, in which dots separate groups. So its
    tensors have the names of those in the module from which the data were read.

    Raises NetworkError if torch does not accept the arguments or the name of a layer.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = LayerGraph(())  # so that no layer can have this name
        layers: dict[str, nn.Module] = {}
        groups: dict[str, nn.Module] = {"": self}
        for section in graph.layers:
            if isinstance(section, SharedSection):
                layers[section.name] = layers[section.layer]
            else:
                layers[section.name] = _make(section)
                _put(groups, section.name, layers[section.name])
        values = {name: number for number, name in enumerate([NETWORK_INPUT, *layers])}
        calls = (LayerCall(s.name, layers[s.name], tuple(values[i] for i in s.inputs)) for s in graph.layers)
        self._graph = LayerGraph(tuple(calls))

    def forward(self, x: Tensor) -> Tensor:
        for result in self._graph.results(x):
            x = result
        return x


def layers_of(network: nn.Module) -> LayerGraph:
    """The layers of a network: those of a GraphNetwork with the names in its data, those of any other as traced.

    Raises UnsupportedLayer as `read_layers`.
    """
    return network._graph if isinstance(network, GraphNetwork) else read_layers(network)


def build_graph(graph: Graph, shape: tuple[int, ...], classes: int) -> GraphNetwork:
    """The network of these layers, not initialised, for inputs of `shape`, which for images is (C, H, W).

    Raises NetworkError, before anything is built, if a layer does not fit its
    input, or the result is not one logit for each of the classes.
    """
    result = graph_shapes(graph, shape)[graph.layers[-1].name]
    check_logits("the network", (2, *result), shape, classes)
    return GraphNetwork(graph)


class NetworkData(NamedTuple):
    """Layers as data, and their tensors by their names in the network that is built from the data."""

    graph: Graph
    state: dict[str, Tensor]


def graph_of(layers: LayerGraph) -> NetworkData:
    """The data from which a network with the same layers can be built. Unused layers are left out.

    Raises UnsupportedLayer if a layer cannot be written as data.
    """
    calls = dict(enumerate(layers.up_to(len(layers.calls)).calls, start=1))
    names = dict(zip(calls, _names(call.name for call in calls.values()), strict=True))
    owners: dict[nn.Module, str] = {}  # the name of each layer's first call
    sections, state = list[LayerSection](), dict[str, Tensor]()
    for value, call in calls.items():
        place: dict[str, Any] = {"name": names[value], "inputs": [names.get(i, NETWORK_INPUT) for i in call.inputs]}
        tensors = call.layer.state_dict()
        owner = owners.setdefault(call.layer, names[value])
        if owner != names[value] and tensors:
            sections.append(SharedSection(type="Shared", layer=owner, **place))
            continue
        sections.append(_section(call, place))
        state |= {f"{owner}.{key}": tensor for key, tensor in tensors.items()}
    _check_shared_weights(owners)
    try:
        return NetworkData(Graph(name="graph", layers=tuple(sections)), state)
    except ValidationError as error:
        raise UnsupportedLayer(f"the network cannot be written to a file:\n{explain(error)}") from error


# --- from data -------------------------------------------------------------------------------------------


def _make(section: LayerSection) -> nn.Module:
    arguments = section.model_dump(exclude=set(LayerSection.model_fields))
    try:
        return TYPES[section.type](**arguments)
    except CONSTRUCTOR_ERRORS as error:
        raise NetworkError(f"layer {section.name!r} cannot be made: {error}") from error


def _put(groups: dict[str, nn.Module], name: str, layer: nn.Module) -> None:
    """Add a layer to its group, which is made if it does not exist; `groups` has all groups by name."""
    group, _, last = name.rpartition(".")
    if group not in groups:
        groups[group] = nn.Module()
        _put(groups, group, groups[group])
    try:
        groups[group].add_module(last, layer)
    except KeyError as error:
        raise NetworkError(f"a layer cannot have the name {name!r}, which torch's modules use themselves") from error


def check_logits(title: str, found: tuple[int, ...], shape: tuple[int, ...], classes: int) -> None:
    """Raise NetworkError unless `found` is the shape of logits for two images of `shape` (C, H, W)."""
    if found != (2, classes):
        raise NetworkError(
            f"{title} returns values of shape {found} for two images of shape {shape} (channels, height, width); "
            f"logits for {classes} classes have shape (2, {classes})"
        )


# --- to data ---------------------------------------------------------------------------------------------


def _section(call: LayerCall, place: dict[str, Any]) -> LayerSection:
    layer, kind = call.layer, type(call.layer).__name__
    section = SECTIONS[kind]
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and not layer.track_running_stats:
        raise UnsupportedLayer(f"layer {call.name!r} keeps no running statistics: its bounds would depend on the batch")
    fields = section.model_fields.keys() - LayerSection.model_fields.keys()
    try:
        return section(**place, type=kind, **{field: _plain(layer, field) for field in fields})
    except ValidationError as error:
        raise UnsupportedLayer(f"layer {call.name!r} cannot be written to a file:\n{explain(error)}") from error


def _plain(layer: nn.Module, field: str) -> Any:
    """An argument of a layer's constructor, from the attribute in which the layer keeps it."""
    value = getattr(layer, field)
    if field == "bias":
        return value is not None
    return value.flatten().tolist() if isinstance(value, Tensor) else value


def _names(names: Iterable[str]) -> Iterator[str]:
    """Names that are allowed in a file and in a module, as similar to the given ones as possible."""
    taken, groups = {NETWORK_INPUT}, set[str]()
    for name in map(_clean, names):
        name = name.replace(".", "_") if taken & _groups(name) else name
        tries = chain([name], (f"{name}_{number}" for number in count(1)))
        free = next(t for t in tries if t not in taken and t not in groups)
        taken.add(free)
        groups |= _groups(free)
        yield free


def _clean(name: str) -> str:
    parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in name.split(".")]
    parts = [f"{part}_" if part in RESERVED else part for part in parts]
    return ".".join(
        [*parts[: MOST_NAME_PARTS - 1], "_".join(parts[MOST_NAME_PARTS - 1 :])]
        if len(parts) > MOST_NAME_PARTS
        else parts
    )


def _groups(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:length]) for length in range(1, len(parts))}


def _check_shared_weights(names: dict[nn.Module, str]) -> None:
    """Raise UnsupportedLayer if two layers share a weight: in the network from the data they would not."""
    owners: dict[int, str] = {}
    for layer, name in names.items():
        for parameter in layer.parameters():
            owner = owners.setdefault(id(parameter), name)
            if owner != name:
                raise UnsupportedLayer(f"layers {owner!r} and {name!r} share a weight; call one layer twice instead")


RESERVED = frozenset(dir(nn.Module())) | {"_graph"}
