"""ONNX files of other programs, read node by node into layers, without running anything.

A node without a counterpart among the layers with a bound rule is an error that
names it. Sums and products with constants are combined into one affine function,
which becomes a BatchNorm with fixed statistics, rounded once to the network's dtype.
A bias after a MatMul becomes the bias of the linear layer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from certtrain.errors import CerttrainError, NetworkError, UnsupportedLayer
from certtrain.interchange.onnxbuilder import ActivationLayer
from certtrain.interchange.onnxconstants import FOLDED, computed
from certtrain.interchange.onnxload import load_proto
from certtrain.interchange.onnxoperators import READERS, checked
from certtrain.interchange.onnxshaping import materialized
from certtrain.interchange.onnxvalues import DTYPES, Constant, Node, OnnxValue, array, optional_module
from certtrain.interchange.packed import ending
from certtrain.network.graphs import GraphNetwork, build_graph
from certtrain.network.modelfile import read_model
from certtrain.spec.layer_section import LayerSection
from certtrain.spec.layers import NETWORK_INPUT, SECTIONS, Graph
from certtrain.spec.messages import readable
from certtrain.spec.preset import explain
from certtrain.spec.shapes import MOST_VALUES, SHAPE_RULES, Shape

DOMAINS = ("", "ai.onnx")  # two names of the standard's own operators


@dataclass(frozen=True)
class Imported:
    """A network in evaluation mode that takes inputs (B, *shape), channels first, and gives outputs (B, K).

    Inputs and weights have the file's dtype, float32 or float64. A file for a fixed
    batch of several inputs is read as the network for each of them. `combined` names nodes at which
    the file's operators, run one by one, may round more than certificates add for the layers that they are read as.
    """

    network: GraphNetwork
    shape: tuple[int, ...]
    outputs: int
    graph: Graph
    combined: tuple[str, ...] = ()


def read_onnx(path: Path) -> Imported:
    """The network in that ONNX file, which may be gzipped and keep its weights in files in the same folder.

    Raises MissingExtra, ModelFileError if the file is missing, damaged, not ONNX or
    lacks some of its weights, and UnsupportedLayer for a node without a counterpart
    here.
    """
    proto = load_proto(path)
    try:
        return _read(proto)
    except CerttrainError as error:
        raise type(error)(f"{path}: {readable(str(error))}") from error


def open_network(path: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """The network in an .onnx or .onnx.gz file, or in a model file of certtrain, and the shape of its input.

    Raises what `read_onnx` and `read_model` raise.
    """
    if ending(path) == ".onnx":
        found = read_onnx(path)
        return found.network, found.shape
    model = read_model(path)
    return model, model.metadata.input_shape


def _read(proto: Any) -> Imported:
    """The network. If it cannot be read with the first dimension as its batch of 1, the whole shape is one input."""
    opset = _opset(proto)
    reader = Reader(proto.graph, opset)
    try:
        return reader.read()
    except UnsupportedLayer:
        if reader.single_input or reader.batch is None:
            raise
        again = Reader(proto.graph, opset, unbatched=True)
        try:
            return again.read()
        except UnsupportedLayer:
            pass  # the first error is the more helpful one
        raise


def _opset(proto: Any) -> int:
    """The version of the standard's operators that the file declares."""
    newest = optional_module("onnx.defs").onnx_opset_version()
    declared = {entry.version for entry in proto.opset_import if entry.domain in DOMAINS} or {1}
    if len(declared) > 1 or not 1 <= max(declared) <= newest:
        raise UnsupportedLayer(
            f"it declares the opset {sorted(declared)}; one from 1 to {newest}, the newest that the installed "
            "package onnx knows, is read"
        )
    if own := [function.name for function in proto.functions if function.domain in DOMAINS]:
        raise UnsupportedLayer(f"it redefines the operator {own[0]!r}")
    return int(max(declared))


class Reader:
    """Builds layers as data, with their tensors, from a GraphProto.

    `batch` and `single_input` are as in `Builder`. With `unbatched`, the whole tensor
    of fixed shape is one input, its first dimension included.
    """

    def __init__(self, graph: Any, opset: int, *, unbatched: bool = False) -> None:
        self.graph, self.opset = graph, opset
        self.values: dict[str, OnnxValue | Constant] = {}
        self.sections: list[LayerSection] = []
        self.state: dict[str, Tensor] = {}
        self.names: Counter[str] = Counter()
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(value.name for value in graph.output)
        self.origins: dict[str, str] = {}  # by layer, the result of its node
        self.shapes: dict[str, Shape] = {}  # by layer, of its result
        self.activated: dict[str, ActivationLayer] = {}
        self.combined: list[str] = []
        self.single_input, self.unbatched = unbatched, unbatched
        self.batch: int | None = None
        self.input_asked, self.dtype = False, torch.float32

    def read(self) -> Imported:
        if self.graph.sparse_initializer:
            raise UnsupportedLayer("it has sparse initializers; only dense ones are read")
        self.values |= {tensor.name: Constant(array(tensor)) for tensor in self.graph.initializer}
        self._read_input()
        for proto in self.graph.node:
            self._read_node(Node.of(proto, self.values, self.opset))
        return self._finish()

    # --- the interface `Builder` ---

    def add(
        self, node: Node, kind: str, inputs: Sequence[OnnxValue], state: dict[str, Tensor], **arguments: Any
    ) -> OnnxValue:
        """As `Builder.add`."""
        self.names[kind] += 1
        name = f"{kind.lower()}{self.names[kind]}"
        wires = tuple(value.layer for value in inputs)
        try:
            section = SECTIONS[kind].model_validate({"name": name, "type": kind, "inputs": wires} | arguments)
            shape = SHAPE_RULES[type(section)](section, *(value.shape for value in inputs))
        except (ValidationError, ValueError) as error:
            what = explain(error) if isinstance(error, ValidationError) else str(error)
            raise node.error(f"it cannot be read as a {kind} of values of shape {inputs[0].shape}: {what}") from error
        if prod(shape) > MOST_VALUES:
            raise node.error(f"it gives {prod(shape):,} values for one input; at most {MOST_VALUES:,} are allowed")
        self.sections.append(section)
        self.origins[name], self.shapes[name] = node.outputs[0], shape
        for key, tensor in state.items():
            self.state[f"{name}.{key}"] = self._rounded(tensor, node)
        return OnnxValue(name, shape, unbatched=inputs[0].unbatched)

    def set_bias(self, value: OnnxValue, bias: Tensor, node: Node) -> None:
        """As `Builder.set_bias`."""
        place = next(i for i, section in enumerate(self.sections) if section.name == value.layer)
        self.sections[place] = self.sections[place].model_copy(update={"bias": True})
        self.state[f"{value.layer}.bias"] = self._rounded(bias, node)

    def takes_bias(self, value: OnnxValue, name: str) -> bool:
        """As `Builder.takes_bias`."""
        linear = any(section.name == value.layer and section.type == "Linear" for section in self.sections)
        unchanged = value.scale is None and len(value.shape) == 1 and value.shape == self.shapes[value.layer]
        has_no_bias = f"{value.layer}.bias" not in self.state
        return linear and unchanged and has_no_bias and self.origins[value.layer] == name and self.uses[name] == 1

    def takes_input_as(self, shape: Shape) -> bool:
        """As `Builder.takes_input_as`; the order in memory is the same."""
        if not self.input_asked and len(shape) > 1 and prod(shape) == max(self.shapes[NETWORK_INPUT]):
            self.shapes[NETWORK_INPUT] = shape
        self.input_asked = True
        return self.shapes[NETWORK_INPUT] == shape

    def _rounded(self, tensor: Tensor, node: Node) -> Tensor:
        if not bool((result := tensor.to(self.dtype) if tensor.is_floating_point() else tensor).isfinite().all()):
            raise node.error(f"its numbers are NaN, infinite or too large for {str(self.dtype).removeprefix('torch.')}")
        return result.contiguous()

    # --- input, nodes, output ---

    def _read_input(self) -> None:
        inputs = [value for value in self.graph.input if value.name not in self.values]
        if len(inputs) != 1:
            raise UnsupportedLayer(f"it takes {len(inputs)} inputs; only networks with one input are read")
        (given,) = inputs
        kind = given.type.tensor_type
        if kind.elem_type not in DTYPES or not kind.HasField("shape"):
            raise UnsupportedLayer(f"its input {given.name!r} must be a float32 or float64 tensor of known shape")
        sizes = tuple(size.dim_value if size.HasField("dim_value") else 0 for size in kind.shape.dim)
        unbatched = self.unbatched or len(sizes) == 1
        batch, *shape = (1, *sizes) if unbatched else sizes or (0,)
        if batch < 0 or not shape or min(shape) < 1:
            raise UnsupportedLayer(
                f"its input {given.name!r} has shape {sizes}; only one batch dimension followed by fixed sizes is read"
            )
        if prod(shape) > MOST_VALUES:
            raise UnsupportedLayer(f"its input has {prod(shape):,} values; {MOST_VALUES:,} are the most")
        self.shapes[NETWORK_INPUT], self.dtype = tuple(shape), DTYPES[kind.elem_type]
        self.batch, self.single_input = batch or None, batch == 1
        self.values[given.name] = OnnxValue(NETWORK_INPUT, tuple(shape), unbatched=unbatched)

    def _read_node(self, node: Node) -> None:
        if node.domain not in DOMAINS or node.kind not in READERS.keys() | FOLDED.keys():
            name = f"{node.domain}.{node.kind}" if node.domain not in DOMAINS else node.kind
            raise node.error(f"operator {name!r} is not supported; supported are: {', '.join(sorted(READERS))}")
        given = [node.given(place) for place in range(len(node.names))]
        if given and not any(isinstance(found, OnnxValue) for found in given):
            results: OnnxValue | Constant = computed(node)
        else:
            results = checked(node).read(self, node)
        for name in node.outputs[1:]:
            if name and self.uses[name]:
                raise node.error(f"its result {name!r} is used; only the first one is read")
        self.values[node.outputs[0]] = results

    def _finish(self) -> Imported:
        if len(self.graph.output) != 1:
            raise UnsupportedLayer(f"it gives {len(self.graph.output)} outputs; only networks with one output are read")
        name = self.graph.output[0].name
        end = self.values.get(name)
        if not isinstance(end, OnnxValue):
            raise UnsupportedLayer(f"its output {name!r} does not depend on its input")
        if prod(end.shape) != max(end.shape):
            raise UnsupportedLayer(
                f"its output {name!r} has shape {end.shape} for one input; only logits (K,) are read"
            )
        node = Node("the output", "", "", (name,), (name,), {}, {}, self.opset)
        end = materialized(self, end.reshaped((prod(end.shape),), unbatched=end.unbatched), node)
        if end.layer == NETWORK_INPUT:  # the network only moves values
            end = self.add(node, "Identity", [end], {})
        self._drop_unused(end)
        try:
            graph = Graph(name="graph", layers=tuple(self.sections))
            network = build_graph(graph, self.shapes[NETWORK_INPUT], prod(end.shape))
        except ValidationError as error:
            raise UnsupportedLayer(f"it cannot be written as layers:\n{explain(error)}") from error
        self._fill(network.to(self.dtype))
        combined = tuple(dict.fromkeys(self.combined))
        return Imported(network.eval(), self.shapes[NETWORK_INPUT], end.shape[0], graph, combined)

    def _drop_unused(self, end: OnnxValue) -> None:
        """Remove layers that the output does not depend on, so that the last layer gives the output."""
        wanted = {end.layer}
        for section in reversed(self.sections):
            if section.name in wanted:
                wanted.update(section.inputs)
        self.sections = [section for section in self.sections if section.name in wanted]

    def _fill(self, network: GraphNetwork) -> None:
        names = {section.name for section in self.sections}
        state = {key: tensor for key, tensor in self.state.items() if key.rpartition(".")[0] in names}
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise NetworkError(f"its tensors do not fit: {error}") from error
