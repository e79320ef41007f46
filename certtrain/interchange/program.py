"""Programs that torch.export saved (.pt2), read from their JSON and raw weights; nothing in them is unpickled or run.

`torch.export.load` unpickles the sample inputs of a file, and evaluates its expressions. Here the operators are read
node by node into layers. One without a counterpart is an error that names it.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.contract import result_shape
from certtrain.bounds.graph import LayerCall, LayerGraph
from certtrain.bounds.reading import SHARING
from certtrain.errors import DataError, ModelFileError, UnsupportedLayer
from certtrain.interchange.programoperators import Call, Unread, Value, layers_of_call
from certtrain.network.graphs import NetworkData, graph_of
from certtrain.spec.messages import readable
from certtrain.spec.shapes import MOST_VALUES, Shape

SCHEMA = 8  # the major version of torch's description of programs
TENSOR_TYPES = {5: torch.int64, 7: torch.float32}  # by their number there
MOST_JSON, MOST_BYTES = 2**26, 2**31
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError, OverflowError)
SIZE_OF = "torch.ops.aten.sym_size.int"
POSITIONAL = 1  # the kind of an argument that torch gives an operator by its place
GUARDS = ("torch.ops.aten._assert_tensor_metadata.default",)  # they compute nothing


class ExportedNetwork(NamedTuple):
    """A network as data, which takes inputs (B, *shape) in float32 and gives logits (B, outputs)."""

    data: NetworkData
    shape: Shape
    outputs: int


def read_program(path: Path) -> ExportedNetwork:
    """The network in a file of `torch.export.save`, in the form in which weights are raw bytes.

    Raises ModelFileError if the file is missing, damaged or of another kind, and UnsupportedLayer for an operator
    without a counterpart here.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return _Reader(_Archive(path, file)).read()
    except (UnsupportedLayer, DataError) as error:
        raise UnsupportedLayer(f"{path}: {readable(str(error))}") from error
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ModelFileError(f"{path} is not a complete file of torch.export.save: {error}") from error
    except DAMAGED as error:
        what = readable(f"{type(error).__name__}: {error}")[:300]
        raise ModelFileError(f"{path} is not a program of torch.export.save, or is damaged: {what}") from error


class _Archive:
    """The entries of the file: JSON, and tensors as the bytes of their storage."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self.file = path, file
        names = file.namelist()
        if len(set(names)) < len(names):
            raise ValueError("it has two entries of one name")
        roots = {name.partition("/")[0] for name in names}
        if len(roots) != 1:
            raise ValueError("it is not an archive with one folder; save it again with a newer torch")
        (self.root,) = roots
        if self._bytes("archive_format", 16) != b"pt2" or self._bytes("byteorder", 16) != b"little":
            raise ValueError("its format is not pt2 in little-endian order")
        self.program = self._json("models/model.json")
        self.configs = {kind: self._json(f"data/{kind}/model_{kind}_config.json") for kind in ("weights", "constants")}

    def tensor(self, kind: str, name: str) -> Tensor:
        """The tensor of that name among the "weights" or "constants"."""
        entry = self.configs[kind]["config"][name]
        if entry["use_pickle"]:
            raise UnsupportedLayer(f"the tensor {name!r} is pickled, and is not read")
        about = entry["tensor_meta"]
        if about["dtype"] not in TENSOR_TYPES:
            raise UnsupportedLayer(f"the tensor {name!r} is not float32; convert the network: network.float()")
        sizes, strides = (tuple(map(_whole, about[part])) for part in ("sizes", "strides"))
        offset = _whole(about["storage_offset"])
        if prod(sizes) > MOST_VALUES or len(sizes) > 8 or len(sizes) != len(strides):
            raise ValueError(f"{name} has the shape {sizes} with strides {strides}")
        storage = torch.frombuffer(
            bytearray(self._weights(kind, entry["path_name"])), dtype=TENSOR_TYPES[about["dtype"]]
        )
        last = offset + sum(stride * (size - 1) for size, stride in zip(sizes, strides, strict=True))
        if prod(sizes) < 1 or last >= len(storage):
            raise ValueError(f"{name} does not fit its {len(storage):,} numbers")
        tensor = storage.as_strided(sizes, strides, offset).clone(memory_format=torch.contiguous_format)
        if not bool(tensor.isfinite().all()):
            raise ModelFileError(f"{self.path}: {name} holds NaN or infinity")
        return tensor

    def _weights(self, kind: str, name: str) -> bytes:
        if not isinstance(name, str) or "/" in name:
            raise ValueError(f"{name!r} is no entry of weights")
        return self._bytes(f"data/{kind}/{name}", MOST_BYTES)

    def _json(self, name: str) -> Any:
        found = json.loads(self._bytes(name, MOST_JSON))
        if not isinstance(found, dict):
            raise ValueError(f"{name} is no JSON object")
        return found

    def _bytes(self, name: str, most: int) -> bytes:
        with self.file.open(f"{self.root}/{name}") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise ValueError(f"{name} has more than {most:,} bytes, the limit")
        return data


def _names(argument: Mapping[str, Any]) -> list[str]:
    """The names of the values in an argument of a node."""
    ((kind, value),) = argument.items()
    return {"as_tensor": lambda: [value["name"]], "as_tensors": lambda: [part["name"] for part in value]}.get(
        kind, list
    )()


def _check_interface(signature: Mapping[str, Any], graph: Mapping[str, Any], result: str) -> None:
    """Raise ValueError unless the graph takes and gives the values that the signature names, which is what is read."""
    specs = [about["arg"] for spec in signature["input_specs"] for about in spec.values()]
    named = [about.get("as_tensor", about)["name"] for about in specs]
    taken, given = ([name for part in graph[end] for name in _names(part)] for end in ("inputs", "outputs"))
    if (taken, given) != (named, [result]):
        raise ValueError("its graph has other inputs or outputs than its signature")


def _single(outputs: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The kind and the description of a node's only output; "several" for another number."""
    if len(outputs) != 1:
        return "several", {}
    (found,) = outputs[0].items()
    return found


def _whole(size: Any) -> int:
    """A size that is a number, not an expression."""
    number = size["as_int"]
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} is no size")
    return number


@dataclass
class _Reader:
    """Turns the nodes into layer calls. `values` are results by their names; `sizes` names the batch's size."""

    archive: _Archive
    calls: list[LayerCall] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)  # (2, …), by the number of the value
    values: dict[str, int | Tensor | None] = field(default_factory=dict)
    sizes: set[str] = field(default_factory=set)
    batch: int | None = None
    given: str = ""

    def read(self) -> ExportedNetwork:
        program = self.archive.program
        if program["schema_version"]["major"] != SCHEMA:
            raise UnsupportedLayer(f"its description has the version {program['schema_version']}; {SCHEMA} is read")
        module = program["graph_module"]
        graph, signature = module["graph"], module["signature"]
        uses = Counter(name for node in graph["nodes"] for entry in node["inputs"] for name in _names(entry["arg"]))
        self._inputs(signature, graph, uses)
        result = self._output(signature)
        uses[result] += 1
        _check_interface(signature, graph, result)
        for node in graph["nodes"]:
            self._node(node, uses)
        end = self._value(result)
        layers = LayerGraph(tuple(self.calls)).up_to(end)
        logits = self.shapes[end]
        if not layers.calls or len(logits) != 2:
            raise UnsupportedLayer(f"it gives values of shape {tuple(logits[1:])} for one input; only logits are read")
        return ExportedNetwork(graph_of(layers), tuple(self.shapes[0][1:]), logits[1])

    # --- inputs and outputs ---

    def _inputs(self, signature: Mapping[str, Any], graph: Mapping[str, Any], uses: Mapping[str, int]) -> None:
        for spec in signature["input_specs"]:
            ((kind, about),) = spec.items()
            if kind == "user_input":
                self._user_input(about["arg"]["as_tensor"]["name"], graph["tensor_values"])
            elif kind in ("parameter", "buffer", "tensor_constant"):
                constant = kind == "tensor_constant" or about.get("persistent") is False
                name, where = about["arg"]["name"], "constants" if constant else "weights"
                self.values[name] = self.archive.tensor(where, about[f"{kind}_name"]) if uses[name] else None
            else:
                raise UnsupportedLayer(f"it takes an input of kind {kind!r}, which is not read")
        if not self.given:
            raise UnsupportedLayer("it takes no input")

    def _user_input(self, name: str, described: Mapping[str, Any]) -> None:
        if self.given:
            raise UnsupportedLayer("it takes several inputs; only programs with one input are read")
        about = described[name]
        if about["dtype"] != 7:
            raise UnsupportedLayer(f"its input {name!r} is not float32")
        first, *sides = about["sizes"]
        self.batch = _whole(first) if "as_int" in first else None
        if not all("as_int" in side for side in sides):
            raise UnsupportedLayer(f"its input {name!r} has free sizes beside the batch's")
        shape = tuple(map(_whole, sides))
        if not shape or not 0 < prod(shape) <= MOST_VALUES or len(shape) > 8:
            raise UnsupportedLayer(f"its input {name!r} has the shape {shape} without the batch")
        self.given, self.values[name] = name, 0
        self.shapes = [torch.Size((2, *shape))]

    def _output(self, signature: Mapping[str, Any]) -> str:
        kinds = [kind for spec in signature["output_specs"] for kind in spec]
        if kinds != ["user_output"]:
            raise UnsupportedLayer(f"it gives {kinds}; only programs that give one tensor are read")
        return str(signature["output_specs"][0]["user_output"]["arg"]["as_tensor"]["name"])

    # --- nodes ---

    def _node(self, node: Mapping[str, Any], uses: Mapping[str, int]) -> None:
        target = str(node["target"])
        arguments = {entry["name"]: self._argument(entry["arg"]) for entry in node["inputs"]}
        if len(arguments) < len(node["inputs"]):
            raise ValueError(f"a node {target!r} has two arguments of one name")
        if target in GUARDS:
            return
        kind, about = _single(node["outputs"])
        if target == SIZE_OF and isinstance(arguments.get("self"), Value) and arguments.get("dim") == 0:
            self.sizes.add(str(about["as_name"]))
            return
        if kind != "as_tensor":
            raise UnsupportedLayer(f"operator {target!r} gives something other than one tensor, which is not read")
        name = str(about["name"])
        if name in self.values:
            raise ValueError(f"two nodes give {name!r}")
        positional = frozenset(entry["name"] for entry in node["inputs"] if entry.get("kind") == POSITIONAL)
        operation = Call(target, name, arguments, positional, self.batch, frozenset(self.sizes))
        if operation.in_place:
            self._check_overwritten(node, uses)
        self.values[name] = self._append(operation)

    def _append(self, operation: Call) -> int:
        inputs, layers = layers_of_call(operation)
        for number, layer in enumerate(layers):
            call = LayerCall(f"{operation.name}_{number}" if number else operation.name, layer, inputs)
            self.shapes.append(result_shape(call, [self.shapes[value] for value in inputs]))
            if prod(self.shapes[-1]) > 2 * MOST_VALUES:
                raise UnsupportedLayer(f"{operation.name} has {prod(self.shapes[-1]) // 2:,} values for one input")
            self.calls.append(call)
            inputs = (len(self.calls),)
        return inputs[0]

    def _check_overwritten(self, node: Mapping[str, Any], uses: Mapping[str, int]) -> None:
        """Raise UnsupportedLayer if an operator overwrites a value that something else may read.

        Nothing does if the value is used once, and comes from an operator that makes a new tensor.
        """
        name = node["inputs"][0]["arg"]["as_tensor"]["name"]
        number = self.values[name]
        layer = self.calls[number - 1].layer if isinstance(number, int) and number else None
        if uses[name] != 1 or layer is None or isinstance(layer, SHARING):
            raise UnsupportedLayer(f"{node['target']!r} overwrites a value that is used elsewhere; use inplace=False")

    def _argument(self, argument: Mapping[str, Any]) -> Any:
        ((kind, value),) = argument.items()
        if kind == "as_tensor":
            return self._known(value["name"])
        if kind == "as_tensors":
            return [self._known(part["name"]) for part in value]
        if kind == "as_none":
            return None
        if kind == "as_sym_ints":
            return [part["as_int"] if "as_int" in part else str(part["as_name"]) for part in value]
        if kind in ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_string"):
            return value
        return Unread(kind)

    def _known(self, name: str) -> Any:
        if name not in self.values:
            raise ValueError(f"{name!r} is not an earlier result")
        found = self.values[name]
        return Value(found, tuple(self.shapes[found][1:])) if isinstance(found, int) else found

    def _value(self, name: str) -> int:
        found = self.values.get(name)
        if not isinstance(found, int):
            raise UnsupportedLayer(f"its output {name!r} does not depend on its input")
        return found
