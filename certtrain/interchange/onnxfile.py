"""An ONNX file of others read into layers: node by node, nothing run and nothing guessed.

What has no counterpart among the layers with a bound rule is an error that
names the node. Sums and products with constants are gathered to one affine
function and become a BatchNorm of fixed statistics, its numbers rounded once to
float32; a bias after a MatMul becomes the linear layer's own.
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

from certtrain.errors import CerttrainError, ModelFileError, NetworkError, UnsupportedLayer
from certtrain.interchange.onnxnodes import READERS
from certtrain.interchange.onnxvalues import Constant, Node, Value, array, extra, materialized
from certtrain.layers import SECTIONS, Graph, Layer
from certtrain.network.graphs import GraphNetwork, build_graph
from certtrain.network.modelfile import load_model
from certtrain.preset import explain
from certtrain.shapes import MOST_VALUES
from certtrain.shapes import RULES as SHAPES

FLOAT = 1  # TensorProto.FLOAT


@dataclass(frozen=True)
class Imported:
    """A network in evaluation mode that takes float32 inputs (B, *shape), channels first, and gives outputs (B, K)."""

    network: GraphNetwork
    shape: tuple[int, ...]
    outputs: int
    graph: Graph


def read_onnx(path: Path) -> Imported:
    """The network in that ONNX file.

    Raises MissingExtra, ModelFileError if it is missing, damaged, no ONNX or
    keeps its weights elsewhere, and UnsupportedLayer for a node that has no
    counterpart here.
    """
    proto = _load(path)
    try:
        return Reader(proto.graph).read()
    except CerttrainError as error:
        raise type(error)(f"{path}: {error}") from error


def open_network(path: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """The network in a file that ends in .onnx, or else in a model file of certtrain, and its input's shape.

    Raises as `read_onnx` and `load_model`.
    """
    if path.suffix == ".onnx":
        found = read_onnx(path)
        return found.network, found.shape
    model = load_model(path)
    return model, model.metadata.input_shape


def _load(path: Path) -> Any:
    onnx = extra("onnx")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"the network {path} cannot be read: {error.strerror or error}") from error
    try:
        proto = onnx.load_model_from_string(data)
        extra("onnx.checker").check_model(data)
    except Exception as error:  # protobuf's and onnx's own, which have no common base
        first = str(error).strip().partition("\n")[0]
        raise ModelFileError(f"{path} is not a whole ONNX file: {first}") from error
    return proto


class Reader:
    """Builds layers as data, with their tensors, from a GraphProto."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.values: dict[str, Value | Constant] = {}
        self.sections: list[Layer] = []
        self.state: dict[str, Tensor] = {}
        self.names: Counter[str] = Counter()
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(value.name for value in graph.output)
        self.origins: dict[str, str] = {}  # by layer, the node's result that it was made for
        self.input, self.shape = "", tuple[int, ...]()

    def read(self) -> Imported:
        if self.graph.sparse_initializer:
            raise UnsupportedLayer("it has sparse initializers; only dense ones are read")
        self.values |= {tensor.name: Constant(array(tensor)) for tensor in self.graph.initializer}
        self._read_input()
        for proto in self.graph.node:
            self._read_node(Node.of(proto, self.values))
        return self._finish()

    # --- what the readers of nodes use ---

    def add(self, node: Node, kind: str, inputs: Sequence[Value], state: dict[str, Tensor], **arguments: Any) -> Value:
        """Append a layer of that kind, which takes the results of earlier ones; gives back its own result."""
        self.names[kind] += 1
        name = f"{kind.lower()}{self.names[kind]}"
        wires = tuple(value.layer for value in inputs)
        try:
            section = SECTIONS[kind].model_validate({"name": name, "type": kind, "inputs": wires} | arguments)
            shape = SHAPES[type(section)](section, *(value.shape for value in inputs))
        except (ValidationError, ValueError) as error:
            what = explain(error) if isinstance(error, ValidationError) else str(error)
            raise node.error(f"it cannot be a {kind} of what it is given, {inputs[0].shape}: {what}") from error
        if prod(shape) > MOST_VALUES:
            raise node.error(f"it gives {prod(shape):,} values for one input; {MOST_VALUES:,} are the most")
        self.sections.append(section)
        self.origins[name] = node.outputs[0]
        for key, tensor in state.items():
            self.state[f"{name}.{key}"] = _rounded(tensor, node)
        return Value(name, shape)

    def set_bias(self, value: Value, bias: Tensor, node: Node) -> None:
        """Give the linear layer that `value` is the result of the bias that it does not have."""
        place = next(i for i, section in enumerate(self.sections) if section.name == value.layer)
        self.sections[place] = self.sections[place].model_copy(update={"bias": True})
        self.state[f"{value.layer}.bias"] = _rounded(bias, node)

    def takes_bias(self, value: Value, name: str) -> bool:
        """Whether the result `name` is that of a linear layer without bias, and nothing else uses it."""
        linear = any(section.name == value.layer and section.type == "Linear" for section in self.sections)
        bare = f"{value.layer}.bias" not in self.state
        return linear and bare and self.origins[value.layer] == name and self.uses[name] == 1

    def is_input_alone(self, name: str) -> bool:
        """Whether `name` is the network's own input, and one node alone takes it."""
        return name == self.input and self.uses[name] == 1

    def reshape_input(self, shape: tuple[int, ...]) -> Value:
        """Take inputs of that shape from the start: their order in memory is the same."""
        self.shape = shape
        return Value("input", shape)

    # --- input, nodes, output ---

    def _read_input(self) -> None:
        inputs = [value for value in self.graph.input if value.name not in self.values]
        if len(inputs) != 1:
            raise UnsupportedLayer(f"it takes {len(inputs)} inputs; networks of one input are read")
        (given,) = inputs
        kind = given.type.tensor_type
        if kind.elem_type != FLOAT or not kind.HasField("shape"):
            raise UnsupportedLayer(f"its input {given.name!r} must be a float32 tensor of known shape")
        sizes = [size.dim_value if size.HasField("dim_value") else 0 for size in kind.shape.dim]
        batch, shape = (sizes[0], sizes[1:]) if len(sizes) > 1 else (1, sizes)
        if batch not in (0, 1) or not shape or min(shape) < 1:
            raise UnsupportedLayer(
                f"its input {given.name!r} has shape {tuple(sizes)}; one batch dimension and then fixed sizes are read"
            )
        if prod(shape) > MOST_VALUES:
            raise UnsupportedLayer(f"its input has {prod(shape):,} values; {MOST_VALUES:,} are the most")
        self.input, self.shape = given.name, tuple(shape)
        self.values[given.name] = Value("input", self.shape)

    def _read_node(self, node: Node) -> None:
        if node.kind not in READERS or node.domain not in ("", "ai.onnx"):
            raise node.error(f"operator {node.domain or node.kind!r} is not read; those that are: {_known()}")
        results = READERS[node.kind](self, node)
        for name in node.outputs[1:]:
            if name and self.uses[name]:
                raise node.error(f"its result {name!r} is used; only the first one is read")
        self.values[node.outputs[0]] = results

    def _finish(self) -> Imported:
        if len(self.graph.output) != 1:
            raise UnsupportedLayer(f"it gives {len(self.graph.output)} outputs; networks of one output are read")
        name = self.graph.output[0].name
        end = self.values.get(name)
        if not isinstance(end, Value):
            raise UnsupportedLayer(f"its output {name!r} does not depend on its input")
        end = materialized(self, end, Node("the output", "", "", (name,), (name,), {}, {}))
        if len(end.shape) != 1 or not self.sections:
            raise UnsupportedLayer(f"its output {name!r} has shape {end.shape} for one input; logits (K,) are read")
        self._drop_unused(end)
        try:
            graph = Graph(name="graph", layers=tuple(self.sections))
            network = build_graph(graph, self.shape, prod(end.shape))
        except ValidationError as error:
            raise UnsupportedLayer(f"it cannot be written as layers:\n{explain(error)}") from error
        self._fill(network)
        return Imported(network.eval(), self.shape, end.shape[0], graph)

    def _drop_unused(self, end: Value) -> None:
        """Leave out the layers that the output does not depend on, and let the last be the one that gives it."""
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


def _rounded(tensor: Tensor, node: Node) -> Tensor:
    if not bool((result := tensor.to(torch.float32) if tensor.is_floating_point() else tensor).isfinite().all()):
        raise node.error("its numbers are NaN, infinite or too large for float32")
    return result.contiguous()


def _known() -> str:
    return ", ".join(sorted(READERS))
