"""Readers of ONNX's sums, differences, products, quotients and activations."""

from collections.abc import Callable
from math import isnan

import torch
from torch import Tensor

from certtrain.bounds.forms import OnnxReading
from certtrain.interchange.onnxbuilder import Builder
from certtrain.interchange.onnxpatterns import ONE, ZERO, add_activation, product
from certtrain.interchange.onnxshaping import (
    batch_included,
    batch_split_off,
    full_shape,
    materialized,
    of_full_shape,
    shape_text,
    with_dimensions,
)
from certtrain.interchange.onnxvalues import FREE_BATCH, Constant, Node, OnnxValue
from certtrain.spec.shapes import Shape

MOST_ADDED = (
    1000.0  # the largest constant that may be added and subtracted again: float32 keeps four decimals beside it
)
NUMPY_BROADCASTING = 7  # the first opset with numpy's broadcasting


def add(builder: Builder, node: Node) -> OnnxValue:
    return _sum(builder, node, ONE)


def subtract(builder: Builder, node: Node) -> OnnxValue:
    return _sum(builder, node, -ONE)


def _sum(builder: Builder, node: Node, sign: Tensor) -> OnnxValue:
    """left + sign · right."""
    match _operands(builder, node):
        case OnnxValue() as left, OnnxValue() as right:
            return _sum_of_values(builder, node, left, right.affine(sign, ZERO))
        case OnnxValue() as left, Constant(number):
            value, shift = constant_for(builder, left, node, number)
            return add_constant(builder, value, node, shift * sign, node.names[0])
        case Constant(number), OnnxValue() as right:
            value, shift = constant_for(builder, right, node, number)
            return add_constant(builder, value.affine(sign, ZERO), node, shift, node.names[1])
    raise node.error("it is given only constants")


def add_constant(builder: Builder, value: OnnxValue, node: Node, shift: Tensor, name: str) -> OnnxValue:
    """The value `name` plus a constant of its shape, which becomes the bias of a linear layer without one."""
    if builder.takes_bias(value, name):
        builder.set_bias(value, shift, node)
        return value
    return batch_split_off(_combined(builder, node, value, ONE, shift))


def _sum_of_values(builder: Builder, node: Node, left: OnnxValue, right: OnnxValue) -> OnnxValue:
    count = max(len(full_shape(builder, left)), len(full_shape(builder, right)))
    left, right = (with_dimensions(builder, value, node, count) for value in (left, right))
    if left.unbatched != right.unbatched:
        left, right = (batch_included(builder, value, node) for value in (left, right))
    return batch_split_off(
        builder.add(node, "Add", [materialized(builder, value, node) for value in (left, right)], {})
    )


def multiply(builder: Builder, node: Node) -> OnnxValue:
    match _operands(builder, node):
        case (OnnxValue() as value, Constant(number)) | (Constant(number), OnnxValue() as value):
            return _scaled(builder, node, value, number)
        case OnnxValue() as left, OnnxValue() as right:
            return product(builder, node, left, right)
    raise node.error("it is given only constants")


def divide(builder: Builder, node: Node) -> OnnxValue:
    match _operands(builder, node):
        case OnnxValue() as value, Constant(number):
            if not bool(number.all()):
                raise node.error("it divides by zero")
            return _scaled(builder, node, value, 1 / number.double())
    raise node.error("its input 2 must be a constant")


def _scaled(builder: Builder, node: Node, value: OnnxValue, number: Tensor) -> OnnxValue:
    value, scale = constant_for(builder, value, node, number)
    return batch_split_off(_combined(builder, node, value, scale, ZERO))


def _combined(builder: Builder, node: Node, value: OnnxValue, scale: Tensor, shift: Tensor) -> OnnxValue:
    """scale · value + shift as one affine function. Raises where the file's separate steps would lose more digits."""
    found, before = value.affine(scale, shift), ZERO if value.shift is None else value.shift * scale
    factor = ONE if found.scale is None else torch.where(found.scale == 0, ONE, found.scale.abs())
    left = ZERO if found.shift is None else found.shift.abs()
    _check_range(builder, node, factor, before, left)
    added = torch.maximum(before.abs(), shift.abs())
    if bool((added > MOST_ADDED * torch.maximum(factor, left)).any()):
        raise node.error(
            f"it adds and then subtracts up to {float(added.max()):g}: beside that, float32 would lose the values"
        )
    return found


def _check_range(builder: Builder, node: Node, factor: Tensor, *shifts: Tensor) -> None:
    """Raise where the file's separate steps would overflow or underflow, and one affine function would not."""
    limits = torch.finfo(builder.dtype)
    if not all(bool((part.abs() <= limits.max).all()) for part in (factor, *shifts)):
        raise node.error("its numbers, combined with those of the steps before it, are NaN, infinite or too large")
    if bool((factor < limits.tiny).any()):
        raise node.error("its factors, combined with those of the steps before it, are too small")


def negate(builder: Builder, node: Node) -> OnnxValue:
    return node.value().affine(-ONE, ZERO)


# --- broadcasting ----------------------------------------------------------------------------------------


def constant_for(builder: Builder, value: OnnxValue, node: Node, tensor: Tensor) -> tuple[OnnxValue, Tensor]:
    """The value, with at least as many dimensions as the constant, and the constant in its shape, in float64.

    The constant is broadcast by numpy's rule; the value is not.
    """
    misfit = f"a constant of shape {tuple(tensor.shape)} does not fit values of shape {value.shape}"
    if tensor.dim() > len(full_shape(builder, value)) and not builder.single_input:
        raise node.error(misfit)
    value = with_dimensions(builder, value, node, tensor.dim())
    missing = len(full_shape(builder, value)) - tensor.dim()
    tensor = tensor.double().reshape((1,) * missing + tuple(tensor.shape))
    if not value.unbatched and tensor.shape[0] != 1:
        raise node.error(misfit)
    try:
        return value, (tensor if value.unbatched else tensor[0]).expand(value.shape)
    except RuntimeError as error:
        raise node.error(misfit) from error


def _operands(builder: Builder, node: Node) -> tuple[OnnxValue | Constant, OnnxValue | Constant]:
    """Both operands, in shapes for numpy's broadcasting."""
    left, right = (_operand(node, place) for place in (0, 1))
    if node.opset < NUMPY_BROADCASTING:
        shapes = [_shape(builder, found) for found in (left, right)]
        aligned = old_shape(node, *shapes)
        if isinstance(right, Constant):
            right = Constant(right.tensor.reshape(aligned))
        else:
            right = right if aligned == shapes[1] else of_full_shape(builder, right, node, aligned)
    return left, right


def _operand(node: Node, place: int) -> OnnxValue | Constant:
    found = node.given(place)
    return found if isinstance(found, OnnxValue) else Constant(node.weights(place))


def _shape(builder: Builder, found: OnnxValue | Constant) -> Shape:
    return full_shape(builder, found) if isinstance(found, OnnxValue) else tuple(found.tensor.shape)


def old_shape(node: Node, left: Shape, right: Shape) -> Shape:
    """The right operand's shape, extended by sizes of 1 so that numpy's rule gives the meaning of opsets before 7.

    These broadcast nothing, or with broadcast = 1 only the right operand: its shape
    is the part of the left one's from `axis` on, by default the last part.
    """
    axis = node.attributes.get("axis", len(left) - len(right)) if node.attributes.get("broadcast", 0) else 0
    behind = len(left) - len(right) - axis
    several = any(side != 1 for side in right)
    sides = left[axis : axis + len(right)]
    broadcasts = node.attributes.get("broadcast", 0) or not behind
    if axis < 0 or behind < 0 or not broadcasts or (several and not all(map(_same, sides, right))):
        rule = "with broadcast = 1 the second shape must be a part of the first, and without it the same"
        raise node.error(
            f"it combines shapes {shape_text(left)} and {shape_text(right)}: in opset {node.opset}, {rule}"
        )
    return (*right, *[1] * behind)


def _same(left: int, right: int) -> bool:
    """Whether two sizes agree. A free batch size agrees with 1, since such a file was written for one input."""
    return left == right or {left, right} == {FREE_BATCH, 1}


# --- activations -----------------------------------------------------------------------------------------


def activation(kind: str, reading: OnnxReading) -> Callable[[Builder, Node], OnnxValue]:
    """The reader of an operator that is one layer, as the layer's record describes it."""

    def read(builder: Builder, node: Node) -> OnnxValue:
        node.expect(**reading.fixed)
        fields = {field: node.attributes.get(name, default) for field, (name, default) in reading.fields.items()}
        return add_activation(builder, node, kind, node.value(), **fields, **reading.arguments)

    return read


def clip(builder: Builder, node: Node) -> OnnxValue:
    """min(max(x, a), b)."""
    if node.opset < 11:
        given = [node.attributes.get(name) for name in ("min", "max")]
    else:
        given = [_number(node, place) for place in (1, 2)]
    return _clipped(builder, node, node.value(), *_limits(builder, node, *given))


def extreme(largest: bool) -> Callable[[Builder, Node], OnnxValue]:
    """The reader of Max or Min of a value and one number: a Clip with one limit."""

    def read(builder: Builder, node: Node) -> OnnxValue:
        places = [place for place in range(len(node.names)) if isinstance(node.given(place), Constant)]
        if len(node.names) != 2 or len(places) != 1:
            raise node.error("it must be given one value and one constant")
        value, number = node.value(1 - places[0]), _number(node, places[0])
        if node.weights(places[0]).dim() > len(value.shape):
            raise node.error("its constant has more dimensions than its value")
        limits = (number, None) if largest else (None, number)
        return _clipped(builder, node, value, *_limits(builder, node, *limits))

    return read


def _clipped(builder: Builder, node: Node, value: OnnxValue, least: Tensor | None, most: Tensor | None) -> OnnxValue:
    """min(max(x, a), b) as b − relu((b − a) − relu(x − a)), whose interval bounds are exact."""
    if least is not None:
        value = _relu(builder, node, value.affine(ONE, -least))
        if most is None:
            return value.affine(ONE, least)
    if most is not None:
        rest = most if least is None else most - least
        return _relu(builder, node, value.affine(-ONE, rest)).affine(-ONE, most)
    return value


def _relu(builder: Builder, node: Node, value: OnnxValue) -> OnnxValue:
    return builder.add(node, "ReLU", [materialized(builder, value, node)], {})


def _limits(builder: Builder, node: Node, *given: float | None) -> tuple[Tensor | None, Tensor | None]:
    """The lower and the upper limit of a Clip, each None for no limit."""
    least, most = (None if end is None else float(end) for end in given)
    largest = torch.finfo(builder.dtype).max
    has_nan = any(end is not None and isnan(end) for end in (least, most))
    if has_nan or (least or 0) >= largest or (most or 0) <= -largest:
        raise node.error(f"limits of {least} and {most} are not read")
    return _end(node, least, largest), _end(node, most, largest)


def _end(node: Node, end: float | None, largest: float) -> Tensor | None:
    """One limit, or None if no finite number is beyond it."""
    if end is None or abs(end) >= largest:
        return None
    if abs(end) > MOST_ADDED:
        raise node.error(
            f"a limit of {end:g} is not read: it is added to values and subtracted again, so it must be between "
            f"{-MOST_ADDED:g} and {MOST_ADDED:g}, or infinite; leave out a limit that values do not reach"
        )
    return torch.tensor(end, dtype=torch.float64)


def _number(node: Node, place: int) -> float | None:
    found = node.bias(place)
    if found is not None and found.numel() != 1:
        raise node.error(f"its input {place + 1} must be one number")
    return None if found is None else float(found)
