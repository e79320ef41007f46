"""Nodes, constants and values of an ONNX file while it is read."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from certtrain.errors import MissingExtra, ModelFileError, UnsupportedLayer
from certtrain.spec.shapes import Shape

FREE_BATCH = -(2**62)  # represents a free number of inputs in a tensor of sizes
DTYPES = {1: torch.float32, 11: torch.float64}  # TensorProto's FLOAT and DOUBLE


def optional_module(module: str) -> ModuleType:
    """A module of the optional packages for ONNX. Raises MissingExtra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f'reading ONNX needs more packages ({error}): pip install "certtrain[onnx]"') from error


def array(tensor: Any) -> Tensor:
    """The values of a TensorProto. Raises ModelFileError."""
    helper = optional_module("onnx.numpy_helper")
    try:
        return torch.from_numpy(helper.to_array(tensor).copy())
    except (ValueError, TypeError, OverflowError, KeyError, MemoryError) as error:
        raise ModelFileError(f"the tensor {tensor.name!r} cannot be read: {error}") from error


class Constant(NamedTuple):
    """A tensor that does not depend on the input; a tensor of sizes may contain `FREE_BATCH`."""

    tensor: Tensor


class Pending(NamedTuple):
    """The result of an operator that is not a layer but part of a pattern, for the value `given`.

    limit: the number that a Greater compares with.
    """

    kind: str
    given: OnnxValue
    limit: float = 0.0


# A BatchNorm's rounding (`bounds/rounded.py`) counts this many operations. Underflow may cost this many times the
# smallest normal number, and 8 times for each unit of the scale.
COUNTED_STEPS, MOST_LOST = 16, 12


class Steps(NamedTuple):
    """The file's sums and products that are combined in scale · v + shift, each of which rounds when they run.

    total: how many. added: the sum of the magnitudes of what they add, scaled as by the later ones. lost: how often a
    smallest normal number is lost if all of them underflow. Both have the value's shape, in float64.
    """

    total: int
    added: Tensor
    lost: Tensor

    def then(self, scale: Tensor, shift: Tensor) -> Steps:
        """These, and then a product with `scale` and a sum with `shift`, unless they do nothing."""
        more = int(bool((scale.abs() != 1).any())) + int(bool(shift.any()))
        return Steps(self.total + more, scale.abs() * self.added + shift.abs(), scale.abs() * self.lost + more)

    def mapped(self, move: Callable[[Tensor], Tensor]) -> Steps:
        return self._replace(added=move(self.added), lost=move(self.lost))

    def within(self, scale: Tensor | None, shift: Tensor | None) -> bool:
        """Whether they round no more than certificates add for a BatchNorm with that weight and bias.

        With S the scale, k steps are within γ_k(|S||v| + added) of exact (Higham 2002, lemma 3.1); rounding weight and
        bias costs u(|S||v| + |shift|). Where no BatchNorm is left, nothing is added.
        """
        if self.total == 0:
            return True
        if scale is None or shift is None:
            return False
        each = self.total + 3  # the weight, the bias, and the products of these small numbers
        few = each <= COUNTED_STEPS and bool((each * self.added <= COUNTED_STEPS * shift.abs()).all())
        return few and bool((self.lost <= MOST_LOST + 8 * scale.abs()).all())


class OnnxValue(NamedTuple):
    """scale · v + shift, where v is the result of the layer `layer`, or of "input".

    `shape` is without the batch. It may differ from the shape of v, in the same order
    in memory. Scale and shift have this shape and are float64, or None for 1 and 0.
    ONNX's tensor has the batch's dimension before `shape`, unless the value is
    `unbatched`: then `shape` is the whole shape. If the value is `pending`, v is the
    result of the pending operator, for a value of the same shape. `steps` are the file's operators that scale and
    shift combine; None for none.
    """

    layer: str
    shape: Shape
    scale: Tensor | None = None
    shift: Tensor | None = None
    unbatched: bool = False
    pending: Pending | None = None
    steps: Steps | None = None

    def affine(self, scale: Tensor, shift: Tensor) -> OnnxValue:
        """scale · self + shift."""
        own_scale = torch.ones(self.shape, dtype=torch.float64) if self.scale is None else self.scale
        own_shift = torch.zeros(self.shape, dtype=torch.float64) if self.shift is None else self.shift
        nothing = torch.zeros(self.shape, dtype=torch.float64)
        steps = (self.steps or Steps(0, nothing, nothing)).then(scale, shift)
        scale, shift = scale * own_scale, scale * own_shift + shift
        if bool((scale == 1).all()) and not bool(shift.any()):
            return self._replace(scale=None, shift=None, steps=steps)
        return self._replace(scale=scale.expand(self.shape), shift=shift.expand(self.shape), steps=steps)

    def layer_result(self) -> OnnxValue:
        """The value without scale and shift."""
        return self._replace(scale=None, shift=None, steps=None)

    def reshaped(self, shape: Shape, *, unbatched: bool) -> OnnxValue:
        """The same values in another shape."""
        pending = self.pending
        if pending is not None:
            pending = pending._replace(given=pending.given.reshaped(shape, unbatched=unbatched))
        found = self.mapped(lambda part: part.reshape(shape))
        return found._replace(shape=shape, unbatched=unbatched, pending=pending)

    def mapped(self, move: Callable[[Tensor], Tensor]) -> OnnxValue:
        """The value with scale and shift changed by `move`."""
        scale, shift = (None if part is None else move(part) for part in (self.scale, self.shift))
        steps = None if self.steps is None else self.steps.mapped(move)
        return self._replace(scale=scale, shift=shift, steps=steps)


class Node(NamedTuple):
    """A NodeProto, with its attributes as plain values, the known results, and the file's opset."""

    title: str
    kind: str
    domain: str
    names: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    known: Mapping[str, OnnxValue | Constant]
    opset: int

    @classmethod
    def of(cls, proto: Any, known: Mapping[str, OnnxValue | Constant], opset: int) -> Node:
        get_attribute_value = optional_module("onnx.helper").get_attribute_value
        title = proto.name or (proto.output[0] if proto.output else "")
        attributes = {entry.name: get_attribute_value(entry) for entry in proto.attribute}
        return cls(
            title, proto.op_type, proto.domain, tuple(proto.input), tuple(proto.output), attributes, known, opset
        )

    def error(self, message: str) -> UnsupportedLayer:
        return UnsupportedLayer(f"node {self.title!r} ({self.kind}): {message}")

    def given(self, place: int) -> OnnxValue | Constant | None:
        """The input at that place, None if it is omitted."""
        if place >= len(self.names) or not self.names[place]:
            return None
        name = self.names[place]
        if name not in self.known:
            raise self.error(f"{name!r} is not an earlier result")
        return self.known[name]

    def value(self, place: int = 0) -> OnnxValue:
        found = self.given(place)
        if not isinstance(found, OnnxValue):
            raise self.error(f"its input {place + 1} must depend on the network's input")
        return found

    def constant(self, place: int) -> Tensor | None:
        found = self.given(place)
        if isinstance(found, OnnxValue):
            raise self.error(f"its input {place + 1} must be a constant")
        return None if found is None else found.tensor

    def weights(self, place: int) -> Tensor:
        found = self.constant(place)
        if found is None or found.dtype not in DTYPES.values():
            raise self.error(f"its input {place + 1} must be a constant of type float32 or float64")
        return found

    def bias(self, place: int) -> Tensor | None:
        return None if self.given(place) is None else self.weights(place)

    def sizes(self, place: int, name: str) -> list[int] | None:
        """The integers at that input, called `name`, which may include `FREE_BATCH`; None if it is omitted."""
        found = self.constant(place)
        if found is None:
            return None
        if found.dtype not in (torch.int64, torch.int32) or found.dim() > 1:
            raise self.error(f"its {name} must be a constant list of integers")
        return [int(number) for number in found.reshape(-1).tolist()]

    def numbers(self, place: int, name: str) -> list[int] | None:
        """As `sizes`, without `FREE_BATCH`."""
        found = self.sizes(place, name)
        if found is not None and FREE_BATCH in found:
            raise self.error(f"its {name} must not depend on the number of inputs")
        return found

    def listed(self, name: str, place: int, since: int) -> list[int] | None:
        """Integers that are an attribute before opset `since`, and an input from then on; None if omitted."""
        if self.opset >= since:
            return self.numbers(place, name)
        return list(self.attributes[name]) if name in self.attributes else None

    def expect(self, **wanted: Any) -> None:
        """Raise UnsupportedLayer unless each of these attributes has that value or is omitted."""
        for name, value in wanted.items():
            found = self.attributes.get(name, value)
            if (list(found) if isinstance(found, Sequence) and not isinstance(found, bytes) else found) != value:
                raise self.error(f"{name} = {found!r} is not read")
