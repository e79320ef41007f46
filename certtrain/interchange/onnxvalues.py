"""What an ONNX file is read by: nodes, constants, and values with what has been gathered on them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from certtrain.errors import MissingExtra, ModelFileError, UnsupportedLayer

if TYPE_CHECKING:
    from certtrain.interchange.onnxfile import Reader

Shape = tuple[int, ...]


def extra(module: str) -> ModuleType:
    """A module of the packages for ONNX. Raises MissingExtra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f'reading ONNX needs more packages ({error}): pip install "certtrain[onnx]"') from error


def array(tensor: Any) -> Tensor:
    """A TensorProto's values. Raises ModelFileError."""
    helper = extra("onnx.numpy_helper")
    if tensor.data_location == 1 or tensor.external_data:
        raise ModelFileError(f"the tensor {tensor.name!r} is kept in another file; save the network as one file")
    try:
        return torch.from_numpy(helper.to_array(tensor).copy())
    except (ValueError, TypeError, OverflowError, KeyError, MemoryError) as error:
        raise ModelFileError(f"the tensor {tensor.name!r} cannot be read: {error}") from error


class Constant(NamedTuple):
    """A tensor that does not depend on the input."""

    tensor: Tensor


class Value(NamedTuple):
    """scale · v + shift, v being the result of a layer, or "input".

    `shape` is without the batch; scale and shift have that shape and float64,
    or are None for 1 and 0.
    """

    layer: str
    shape: Shape
    scale: Tensor | None = None
    shift: Tensor | None = None

    def affine(self, scale: Tensor, shift: Tensor) -> Value:
        """scale · self + shift."""
        own_scale = torch.ones(self.shape, dtype=torch.float64) if self.scale is None else self.scale
        own_shift = torch.zeros(self.shape, dtype=torch.float64) if self.shift is None else self.shift
        return self._replace(scale=scale * own_scale, shift=scale * own_shift + shift)


class Node(NamedTuple):
    """A NodeProto, its attributes as plain values."""

    title: str
    kind: str
    domain: str
    names: Shape | tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    known: Mapping[str, Value | Constant]

    @classmethod
    def of(cls, proto: Any, known: Mapping[str, Value | Constant]) -> Node:
        get_attribute_value = extra("onnx.helper").get_attribute_value
        title = proto.name or (proto.output[0] if proto.output else "")
        attributes = {entry.name: get_attribute_value(entry) for entry in proto.attribute}
        return cls(title, proto.op_type, proto.domain, tuple(proto.input), tuple(proto.output), attributes, known)

    def error(self, message: str) -> UnsupportedLayer:
        return UnsupportedLayer(f"node {self.title!r} ({self.kind}): {message}")

    def given(self, place: int) -> Value | Constant | None:
        """What it is given there, None where it is left out."""
        if place >= len(self.names) or not self.names[place]:
            return None
        name = str(self.names[place])
        if name not in self.known:
            raise self.error(f"{name!r} is no earlier result")
        return self.known[name]

    def value(self, place: int = 0) -> Value:
        found = self.given(place)
        if not isinstance(found, Value):
            raise self.error(f"its input {place + 1} must depend on the network's input")
        return found

    def constant(self, place: int) -> Tensor | None:
        found = self.given(place)
        if isinstance(found, Value):
            raise self.error(f"its input {place + 1} must be a constant")
        return None if found is None else found.tensor

    def weights(self, place: int) -> Tensor:
        found = self.constant(place)
        if found is None or found.dtype != torch.float32:
            raise self.error(f"its input {place + 1} must be a float32 constant")
        return found

    def bias(self, place: int) -> Tensor | None:
        return None if self.given(place) is None else self.weights(place)

    def expect(self, **wanted: Any) -> None:
        """Raise unless each of these attributes is left out or has that value."""
        for name, value in wanted.items():
            found = self.attributes.get(name, value)
            if (list(found) if isinstance(found, Sequence) and not isinstance(found, bytes) else found) != value:
                raise self.error(f"{name} = {found!r} is not read")


def materialized(reader: Reader, value: Value, node: Node) -> Value:
    """The value as the result of a layer: what is gathered on it becomes a BatchNorm of fixed statistics."""
    if value.scale is None or value.shift is None:
        return value
    if len(value.shape) not in (1, 3):
        raise node.error(f"constants for values of shape {value.shape} are read only before a Flatten")
    scale, shift = (_per_channel(tensor, value.shape, node) for tensor in (value.scale, value.shift))
    kind = "BatchNorm1d" if len(value.shape) == 1 else "BatchNorm2d"
    zeros, ones = torch.zeros(value.shape[0]), torch.ones(value.shape[0])
    state = {"weight": scale, "bias": shift, "running_mean": zeros, "running_var": ones}
    state["num_batches_tracked"] = torch.tensor(0)
    return reader.add(node, kind, [value], state, num_features=value.shape[0], eps=0.0)


def _per_channel(tensor: Tensor, shape: Shape, node: Node) -> Tensor:
    rows = tensor.expand(shape).reshape(shape[0], -1)
    if not bool((rows == rows[:, :1]).all()):
        raise node.error("constants that differ within a channel are read only before a Flatten, not before this")
    return rows[:, 0]
