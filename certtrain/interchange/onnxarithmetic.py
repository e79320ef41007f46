"""ONNX's sums, differences, products and quotients, with constants and between values, and what is made of them."""

from collections.abc import Callable
from math import isnan

import torch
from torch import Tensor

from certtrain.bounds.forms import OnnxReading
from certtrain.interchange.onnxbuilder import Builder
from certtrain.interchange.onnxpatterns import ONE, ZERO, add_activation, product
from certtrain.interchange.onnxshaping import (
    full_shape,
    lifted,
    materialized,
    of_full_shape,
    settled,
    shown,
    whole,
)
from certtrain.interchange.onnxvalues import FREE_BATCH, Constant, Node, OnnxValue
from certtrain.spec.shapes import Shape

MOST_ADDED = 1000.0  # the most that is added to values and taken away again: float32 keeps four decimals beside it
NUMPYS_RULE = 7  # the opset from which on shapes are stretched by numpy's rule


def add(reader: Builder, node: Node) -> OnnxValue:
    return _sum(reader, node, ONE)


def subtract(reader: Builder, node: Node) -> OnnxValue:
    return _sum(reader, node, -ONE)


def _sum(reader: Builder, node: Node, sign: Tensor) -> OnnxValue:
    """left + sign · right."""
    match _operands(reader, node):
        case OnnxValue() as left, OnnxValue() as right:
            return _sum_of_values(reader, node, left, right.affine(sign, ZERO))
        case OnnxValue() as left, Constant(number):
            value, shift = constant_for(reader, left, node, number)
            return plus(reader, value, node, shift * sign, node.names[0])
        case Constant(number), OnnxValue() as right:
            value, shift = constant_for(reader, right, node, number)
            return plus(reader, value.affine(sign, ZERO), node, shift, node.names[1])
    raise node.error("it is given constants alone")


def plus(reader: Builder, value: OnnxValue, node: Node, shift: Tensor, name: str) -> OnnxValue:
    """A value, called `name`, and a constant of its shape; a linear layer without bias gets it as its own."""
    if reader.takes_bias(value, name):
        reader.set_bias(value, shift, node)
        return value
    return settled(_gathered(reader, node, value, ONE, shift))


def _sum_of_values(reader: Builder, node: Node, left: OnnxValue, right: OnnxValue) -> OnnxValue:
    count = max(len(full_shape(reader, left)), len(full_shape(reader, right)))
    left, right = (lifted(reader, value, node, count) for value in (left, right))
    if left.alone != right.alone:
        left, right = (whole(reader, value, node) for value in (left, right))
    return settled(reader.add(node, "Add", [materialized(reader, value, node) for value in (left, right)], {}))


def multiply(reader: Builder, node: Node) -> OnnxValue:
    match _operands(reader, node):
        case (OnnxValue() as value, Constant(number)) | (Constant(number), OnnxValue() as value):
            return _scaled(reader, node, value, number)
        case OnnxValue() as left, OnnxValue() as right:
            return product(reader, node, left, right)
    raise node.error("it is given constants alone")


def divide(reader: Builder, node: Node) -> OnnxValue:
    match _operands(reader, node):
        case OnnxValue() as value, Constant(number):
            if not bool(number.all()):
                raise node.error("it divides by zero")
            return _scaled(reader, node, value, 1 / number.double())
    raise node.error("its input 2 must be a constant")


def _scaled(reader: Builder, node: Node, value: OnnxValue, number: Tensor) -> OnnxValue:
    value, scale = constant_for(reader, value, node, number)
    return settled(_gathered(reader, node, value, scale, ZERO))


def _gathered(reader: Builder, node: Node, value: OnnxValue, scale: Tensor, shift: Tensor) -> OnnxValue:
    """scale · value + shift as one affine function, if the file's steps one by one lose no more than it does."""
    found, before = value.affine(scale, shift), ZERO if value.shift is None else value.shift * scale
    factor = ONE if found.scale is None else torch.where(found.scale == 0, ONE, found.scale.abs())
    left = ZERO if found.shift is None else found.shift.abs()
    _check_range(reader, node, factor, before, left)
    added = torch.maximum(before.abs(), shift.abs())
    if bool((added > MOST_ADDED * torch.maximum(factor, left)).any()):
        raise node.error(f"it takes away again what was added, up to {float(added.max()):g}, in which values are lost")
    return found


def _check_range(reader: Builder, node: Node, factor: Tensor, *shifts: Tensor) -> None:
    """Raise where the file's own steps would overflow or underflow, and one affine function would not."""
    limits = torch.finfo(reader.dtype)
    if not all(bool((part.abs() <= limits.max).all()) for part in (factor, *shifts)):
        raise node.error("its numbers, with those that it is combined with, are NaN, infinite or too large")
    if bool((factor < limits.tiny).any()):
        raise node.error("its factors, with those that they are combined with, are too small")


def negate(reader: Builder, node: Node) -> OnnxValue:
    return node.value().affine(-ONE, ZERO)


# --- shapes that are stretched ---------------------------------------------------------------------------


def constant_for(reader: Builder, value: OnnxValue, node: Node, tensor: Tensor) -> tuple[OnnxValue, Tensor]:
    """The value, with as many dimensions as the constant, and the constant in its shape and float64.

    Constants are stretched by numpy's rule, values are not.
    """
    misfit = f"a constant of shape {tuple(tensor.shape)} does not fit values of shape {value.shape}"
    if tensor.dim() > len(full_shape(reader, value)) and not reader.single:
        raise node.error(misfit)
    value = lifted(reader, value, node, tensor.dim())
    missing = len(full_shape(reader, value)) - tensor.dim()
    tensor = tensor.double().reshape((1,) * missing + tuple(tensor.shape))
    if not value.alone and tensor.shape[0] != 1:
        raise node.error(misfit)
    try:
        return value, (tensor if value.alone else tensor[0]).expand(value.shape)
    except RuntimeError as error:
        raise node.error(misfit) from error


def _operands(reader: Builder, node: Node) -> tuple[OnnxValue | Constant, OnnxValue | Constant]:
    """Both that it is given, such that numpy's rule says how they are stretched."""
    left, right = (_operand(node, place) for place in (0, 1))
    if node.opset < NUMPYS_RULE:
        shapes = [_shape(reader, found) for found in (left, right)]
        aligned = old_shape(node, *shapes)
        if isinstance(right, Constant):
            right = Constant(right.tensor.reshape(aligned))
        else:
            right = right if aligned == shapes[1] else of_full_shape(reader, right, node, aligned)
    return left, right


def _operand(node: Node, place: int) -> OnnxValue | Constant:
    found = node.given(place)
    return found if isinstance(found, OnnxValue) else Constant(node.weights(place))


def _shape(reader: Builder, found: OnnxValue | Constant) -> Shape:
    return full_shape(reader, found) if isinstance(found, OnnxValue) else tuple(found.tensor.shape)


def old_shape(node: Node, left: Shape, right: Shape) -> Shape:
    """The right operand's shape, with sides of 1 behind it so that numpy's rule does what opsets before 7 say.

    They stretch nothing, or with broadcast = 1 the right operand alone, whose
    sides are those of the left one from `axis` on, by default its last.
    """
    axis = node.attributes.get("axis", len(left) - len(right)) if node.attributes.get("broadcast", 0) else 0
    behind = len(left) - len(right) - axis
    several = any(side != 1 for side in right)
    sides = left[axis : axis + len(right)]
    stretched = node.attributes.get("broadcast", 0) or not behind
    if axis < 0 or behind < 0 or not stretched or (several and not all(map(_same, sides, right))):
        rule = "with broadcast = 1 the second's shape must be a part of the first's, and without the same"
        raise node.error(f"it combines shapes {shown(left)} and {shown(right)}: in opset {node.opset}, {rule}")
    return (*right, *[1] * behind)


def _same(left: int, right: int) -> bool:
    """A batch of free size takes constants of one row, as what the file was written for is one input."""
    return left == right or {left, right} == {FREE_BATCH, 1}


# --- activations -----------------------------------------------------------------------------------------


def activation(kind: str, reading: OnnxReading) -> Callable[[Builder, Node], OnnxValue]:
    """An operator that is one layer, as the layer's record describes it."""

    def read(reader: Builder, node: Node) -> OnnxValue:
        node.expect(**reading.fixed)
        fields = {field: node.attributes.get(name, default) for field, (name, default) in reading.fields.items()}
        return add_activation(reader, node, kind, node.value(), **fields, **reading.arguments)

    return read


def clip(reader: Builder, node: Node) -> OnnxValue:
    """min(max(x, a), b)."""
    if node.opset < 11:
        given = [node.attributes.get(name) for name in ("min", "max")]
    else:
        given = [_number(node, place) for place in (1, 2)]
    return _clipped(reader, node, node.value(), *_limits(reader, node, *given))


def extreme(largest: bool) -> Callable[[Builder, Node], OnnxValue]:
    """Max or Min of values and one number: a Clip at one end."""

    def read(reader: Builder, node: Node) -> OnnxValue:
        places = [place for place in range(len(node.names)) if isinstance(node.given(place), Constant)]
        if len(node.names) != 2 or len(places) != 1:
            raise node.error("it must be given one value and one constant")
        value, number = node.value(1 - places[0]), _number(node, places[0])
        if node.weights(places[0]).dim() > len(value.shape):
            raise node.error("its constant has more dimensions than its value")
        limits = (number, None) if largest else (None, number)
        return _clipped(reader, node, value, *_limits(reader, node, *limits))

    return read


def _clipped(reader: Builder, node: Node, value: OnnxValue, least: Tensor | None, most: Tensor | None) -> OnnxValue:
    """min(max(x, a), b) as b − relu((b − a) − relu(x − a)), whose intervals are exact."""
    if least is not None:
        value = _relu(reader, node, value.affine(ONE, -least))
        if most is None:
            return value.affine(ONE, least)
    if most is not None:
        rest = most if least is None else most - least
        return _relu(reader, node, value.affine(-ONE, rest)).affine(-ONE, most)
    return value


def _relu(reader: Builder, node: Node, value: OnnxValue) -> OnnxValue:
    return reader.add(node, "ReLU", [materialized(reader, value, node)], {})


def _limits(reader: Builder, node: Node, *given: float | None) -> tuple[Tensor | None, Tensor | None]:
    """The least and the largest value of a Clip; None for none."""
    least, most = (None if end is None else float(end) for end in given)
    largest = torch.finfo(reader.dtype).max
    lacking = any(end is not None and isnan(end) for end in (least, most))
    if lacking or (least or 0) >= largest or (most or 0) <= -largest:
        raise node.error(f"limits of {least} and {most} are not read")
    return _end(node, least, largest), _end(node, most, largest)


def _end(node: Node, end: float | None, largest: float) -> Tensor | None:
    """One limit; None where it limits nothing."""
    if end is None or abs(end) >= largest:
        return None
    if abs(end) > MOST_ADDED:
        raise node.error(
            f"a limit of {end:g} is not read: it is added to values and taken away again, so it must be between "
            f"{-MOST_ADDED:g} and {MOST_ADDED:g}, or infinite; leave out a limit that values do not reach"
        )
    return torch.tensor(end, dtype=torch.float64)


def _number(node: Node, place: int) -> float | None:
    found = node.bias(place)
    if found is not None and found.numel() != 1:
        raise node.error(f"its input {place + 1} must be one number")
    return None if found is None else float(found)
