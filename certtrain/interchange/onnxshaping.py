"""Readers of ONNX's operators that only move values: they reshape, permute, pad, slice and concatenate.

A file's tensors have the batch's dimension first. An operator that would mix it
with other dimensions is an error, except in a file for a single input, where the
batch's size of 1 is a dimension like any other.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from certtrain.bounds.shape_layers import Pad
from certtrain.interchange.onnxbuilder import Builder
from certtrain.interchange.onnxvalues import FREE_BATCH, Constant, Node, OnnxValue
from certtrain.network.graphs import TYPES
from certtrain.spec.layers import NETWORK_INPUT
from certtrain.spec.shapes import Shape

ENDLESS = 2**31 - 1  # a slice that ends here or later ends with the last value


# --- values as results of layers -------------------------------------------------------------------------


def in_layer_shape(builder: Builder, value: OnnxValue, node: Node) -> OnnxValue:
    """The value in the shape of a layer's result; a Flatten or Reshape layer is added if necessary."""
    if value.pending is not None:
        raise node.error(f"the result of {value.pending.kind} is read only as a part of an activation")
    of_input = value.layer == NETWORK_INPUT
    if builder.takes_input_as(value.shape) if of_input else value.shape == builder.shapes[value.layer]:
        return value
    kind, more = ("Flatten", {}) if len(value.shape) == 1 else ("Reshape", {"shape": value.shape})
    made = builder.add(node, kind, [OnnxValue(value.layer, builder.shapes[value.layer])], {}, **more)
    return value._replace(layer=made.layer)


def materialized(builder: Builder, value: OnnxValue, node: Node) -> OnnxValue:
    """The value as the result of a layer: its affine function becomes a BatchNorm with fixed statistics.

    If scale or shift differ within a channel, each value becomes a channel of its own.
    """
    if value.steps is not None and not value.steps.within(value.scale, value.shift):
        builder.combined.append(node.title)
    if value.scale is None or value.shift is None:
        return in_layer_shape(builder, value, node)
    if len(value.shape) > 3 or not (_by_channel(value.scale) and _by_channel(value.shift)):
        flat = materialized(builder, value.reshaped((prod(value.shape),), unbatched=value.unbatched), node)
        return in_layer_shape(builder, flat.reshaped(value.shape, unbatched=value.unbatched), node)
    place = in_layer_shape(builder, value.layer_result(), node)
    channels = value.shape[0]
    scale, shift = (part.reshape(channels, -1)[:, 0] for part in (value.scale, value.shift))
    state = {"weight": scale, "bias": shift, "running_mean": torch.zeros(channels), "running_var": torch.ones(channels)}
    state["num_batches_tracked"] = torch.tensor(0)
    kind = "BatchNorm2d" if len(value.shape) == 3 else "BatchNorm1d"
    return builder.add(node, kind, [place], state, num_features=channels, eps=0.0)


def _by_channel(tensor: Tensor) -> bool:
    rows = tensor.reshape(len(tensor), -1)
    return bool((rows == rows[:, :1]).all())


def moved_by_layer(builder: Builder, value: OnnxValue, node: Node, kind: str, **arguments: Any) -> OnnxValue:
    """The result of a layer that moves values; scale and shift are moved in the same way."""
    value = in_layer_shape(builder, value, node)
    made = builder.add(node, kind, [value.layer_result()], {}, **arguments)
    layer = TYPES[kind](**arguments)
    return value.mapped(lambda part: layer(part.unsqueeze(0))[0])._replace(layer=made.layer, shape=made.shape)


# --- shapes as ONNX has them -----------------------------------------------------------------------------


def full_shape(builder: Builder, value: OnnxValue) -> Shape:
    """The shape of ONNX's tensor, with `FREE_BATCH` for a free number of inputs."""
    return value.shape if value.unbatched else (FREE_BATCH if builder.batch is None else builder.batch, *value.shape)


def of_full_shape(builder: Builder, value: OnnxValue, node: Node, shape: Shape) -> OnnxValue:
    """The same values as a tensor of that shape."""
    full = full_shape(builder, value)
    if prod(shape) != prod(full) or not (shape if builder.single_input else shape[1:]):
        raise node.error(f"values of shape {shape_text(full)} cannot have the shape {shape_text(shape)}")
    if builder.single_input:
        return batch_split_off(value.reshaped(shape, unbatched=True))
    if shape[0] != full[0]:
        raise node.error(
            f"from {shape_text(full)} to {shape_text(shape)}: the batch's dimension would be mixed with others"
        )
    return value.reshaped(shape[1:], unbatched=False)


def batch_split_off(value: OnnxValue) -> OnnxValue:
    """The value; a first size of 1 of a single input becomes the batch's dimension, if there are others."""
    if value.unbatched and len(value.shape) > 1 and value.shape[0] == 1:
        return value.reshaped(value.shape[1:], unbatched=False)
    return value


def batch_included(builder: Builder, value: OnnxValue, node: Node) -> OnnxValue:
    """The value of a single input, with the batch's size of 1 as part of its shape."""
    if value.unbatched:
        return value
    if not builder.single_input:
        raise node.error("it mixes the batch's dimension with others")
    return value.reshaped((1, *value.shape), unbatched=True)


def with_dimensions(builder: Builder, value: OnnxValue, node: Node, dimensions: int) -> OnnxValue:
    """The value with sizes of 1 in front, so that it has at least `dimensions` dimensions."""
    missing = dimensions - len(full_shape(builder, value))
    if missing <= 0:
        return value
    value = batch_included(builder, value, node)
    return value.reshaped((1,) * missing + value.shape, unbatched=True)


def places_of_axes(builder: Builder, value: OnnxValue, node: Node, axes: Sequence[int]) -> tuple[OnnxValue, list[int]]:
    """ONNX's axes as places in the value's shape, and the value; it includes the batch if an axis is the batch's."""
    found = positive_axes(node, axes, len(full_shape(builder, value)))
    value = batch_included(builder, value, node) if 0 in found else value
    return value, [axis - (0 if value.unbatched else 1) for axis in found]


def positive_axes(node: Node, axes: Sequence[int], dimensions: int) -> list[int]:
    """The axes, counted from 0 at the front. Raises UnsupportedLayer for a missing or repeated axis."""
    found = [axis + dimensions if axis < 0 else axis for axis in axes]
    if any(not 0 <= axis < dimensions for axis in found) or len(set(found)) < len(found):
        raise node.error(f"axes = {list(axes)} for {dimensions} dimensions is not read")
    return found


def shape_text(shape: Sequence[int]) -> str:
    """A shape as text, for a message."""
    return f"({', '.join('batch' if side == FREE_BATCH else str(side) for side in shape)})"


# --- the readers -----------------------------------------------------------------------------------------


def shape_of(builder: Builder, node: Node) -> Constant:
    """Shape: fixed sizes, and `FREE_BATCH` for a free number of inputs."""
    full = full_shape(builder, node.value())
    return Constant(torch.tensor(full[node.attributes.get("start", 0) : node.attributes.get("end", len(full))]))


def flatten(builder: Builder, node: Node) -> OnnxValue:
    value, axis = node.value(), node.attributes.get("axis", 1)
    full = full_shape(builder, value)
    place = axis + len(full) if axis < 0 else axis
    if not (0 <= place <= len(full) if builder.single_input else place == 1):
        raise node.error(f"axis = {axis} is not read; only 1 leaves the batch's dimension as it is")
    return of_full_shape(builder, value, node, (prod(full[:place]), prod(full[place:])))


def reshape(builder: Builder, node: Node) -> OnnxValue:
    value = node.value()
    wanted = node.sizes(1, "shape") if node.opset >= 5 else list(node.attributes.get("shape", ()))
    if not wanted:
        raise node.error("its shape must be a constant list of integers")
    return of_full_shape(builder, value, node, _sizes(builder, value, node, wanted))


def _sizes(builder: Builder, value: OnnxValue, node: Node, wanted: Sequence[int]) -> Shape:
    """The shape that the sizes of a Reshape mean: 0 keeps a size, and −1 is computed from the others."""
    full = full_shape(builder, value)
    if 0 in wanted and (node.attributes.get("allowzero", 0) or 0 in wanted[len(full) :]):
        raise node.error(f"the shape {list(wanted)} asks for a size of 0")
    sizes = [size or full[place] for place, size in enumerate(wanted)]
    if builder.single_input:
        return _filled(node, sizes, prod(full))
    first, rest = sizes[0], sizes[1:]
    left_over = first == -1 and -1 not in rest
    if not (
        left_over or first == full[0] or (first == 1 and builder.batch is None)
    ):  # a 1 works for no other batch size
        raise node.error(
            f"from {shape_text(full)} to {shape_text(wanted)}: the batch's dimension would be mixed with others"
        )
    return (full[0], *_filled(node, rest, prod(value.shape)))


def _filled(node: Node, sizes: Sequence[int], total: int) -> Shape:
    rest = prod(size for size in sizes if size != -1)
    filled = tuple(total // rest if size == -1 and rest > 0 else size for size in sizes)
    if min(filled, default=1) < 1 or prod(filled) != total:
        raise node.error(f"the shape {shape_text(sizes)} does not fit {total:,} values")
    return filled


def squeeze(builder: Builder, node: Node) -> OnnxValue:
    value, axes = node.value(), node.listed("axes", 1, since=13)
    full = full_shape(builder, value)
    if axes == []:
        raise node.error("its list of axes is empty, which tools read as none or as all of 1")
    if axes is None and builder.batch is None:
        raise node.error("it names no axes, and so would squeeze a batch of one input")
    found = [i for i, side in enumerate(full) if side == 1] if axes is None else positive_axes(node, axes, len(full))
    if any(full[axis] != 1 for axis in found):
        raise node.error(f"axes = {axes} of {shape_text(full)}: only sizes of 1 can be squeezed")
    return of_full_shape(builder, value, node, tuple(side for i, side in enumerate(full) if i not in found))


def unsqueeze(builder: Builder, node: Node) -> OnnxValue:
    value, axes = node.value(), node.listed("axes", 1, since=13) or []
    full = list(full_shape(builder, value))
    for axis in sorted(positive_axes(node, axes, len(full) + len(axes))):
        full.insert(axis, 1)
    return of_full_shape(builder, value, node, tuple(full))


def transpose(builder: Builder, node: Node) -> OnnxValue:
    value = node.value()
    count = len(full_shape(builder, value))
    order = list(node.attributes.get("perm", range(count)[::-1]))
    if sorted(order) != list(range(count)):
        raise node.error(f"perm = {order} for {count} dimensions is not read")
    if order[0] != 0 or value.unbatched:
        return batch_split_off(permuted(builder, batch_included(builder, value, node), node, order))
    return permuted(builder, value, node, [axis - 1 for axis in order[1:]])


def permuted(builder: Builder, value: OnnxValue, node: Node, order: Sequence[int]) -> OnnxValue:
    """The value with its dimensions in that order; no layer is needed if only sizes of 1 move."""
    moving = [axis for axis in order if value.shape[axis] > 1]
    if moving == sorted(moving):
        return value.reshaped(tuple(value.shape[axis] for axis in order), unbatched=value.unbatched)
    return moved_by_layer(builder, value, node, "Permute", dims=tuple(axis + 1 for axis in order))


def swapped(builder: Builder, value: OnnxValue, node: Node) -> OnnxValue:
    """The value with its last two dimensions swapped."""
    count = len(value.shape)
    return permuted(builder, value, node, [*range(count - 2), count - 1, count - 2])


def pad(builder: Builder, node: Node) -> OnnxValue:
    mode = node.attributes.get("mode", b"constant")
    if mode != b"constant":
        raise node.error(f"mode = {mode!r} is not read, only padding by a constant")
    value, before, after = _padding(builder, node)
    number = _padded_by(node)
    value = materialized(builder, value, node)
    for place, (first, last) in enumerate(zip(before, after, strict=True)):
        if first or last:
            value = builder.add(node, "Pad", [value], {}, dim=place + 1, before=first, after=last, value=number)
    return batch_split_off(value)


def _padding(builder: Builder, node: Node) -> tuple[OnnxValue, list[int], list[int]]:
    """The value, and the padding before and after each of its dimensions."""
    value = node.value()
    pads = node.listed("paddings" if node.opset < 2 else "pads", 1, since=11)
    axes = (node.numbers(3, "axes") if node.opset >= 18 else None) or range(len(full_shape(builder, value)))
    if pads is None or len(pads) != 2 * len(axes) or min(pads) < 0:
        raise node.error(f"pads = {pads}; it must be two counts of at least 0 for each of {len(axes)} dimensions")
    used = [(axis, pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes) if pads[i] or pads[i + len(axes)]]
    value, found = places_of_axes(builder, value, node, [axis for axis, *_ in used])
    before, after = [0] * len(value.shape), [0] * len(value.shape)
    for place, (_, first, last) in zip(found, used, strict=True):
        before[place], after[place] = first, last
    return value, before, after


def _padded_by(node: Node) -> float:
    given = torch.tensor(node.attributes.get("value", 0.0)) if node.opset < 11 else node.bias(2)
    if given is not None and (given.numel() != 1 or not bool(given.abs() <= Pad.LARGEST)):
        raise node.error(f"its constant_value must be one number, of a magnitude of {Pad.LARGEST:g} at most")
    return 0.0 if given is None else float(given)


def slice_values(builder: Builder, node: Node) -> OnnxValue:
    """Slice: one layer for each axis that gets shorter."""
    value = node.value()
    starts, ends = (node.listed(name, place, since=10) for place, name in ((1, "starts"), (2, "ends")))
    count = len(starts or ())
    axes = node.listed("axes", 3, since=10) or list(range(count))
    steps = (node.numbers(4, "steps") if node.opset >= 10 else None) or [1] * count
    if starts is None or ends is None or not len(ends) == len(axes) == len(steps) == count or min(steps, default=1) < 1:
        raise node.error(
            f"starts {starts}, ends {ends}, axes {axes} and steps {steps} do not fit together, or have a step below 1"
        )
    positive_axes(node, axes, len(full_shape(builder, value)))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        value = _sliced(builder, value, node, axis, slice(start, end, step))
    return batch_split_off(value)


def _sliced(builder: Builder, value: OnnxValue, node: Node, axis: int, wanted: slice) -> OnnxValue:
    full = full_shape(builder, value)
    size = full[axis]
    if size == FREE_BATCH:
        if wanted.start == 0 and wanted.stop >= ENDLESS and wanted.step == 1:
            return value
        raise node.error(
            f"it slices the batch's dimension, from {wanted.start} to {wanted.stop} in steps of {wanted.step}; only "
            "the whole batch is read"
        )
    kept = range(*wanted.indices(size))
    if kept == range(size):
        return value
    value, (place,) = places_of_axes(builder, value, node, [axis - len(full) if axis >= 0 else axis])
    if not kept:
        raise node.error(f"it leaves none of the {size} values of axis {axis}")
    return moved_by_layer(
        builder, value, node, "Slice", dim=place + 1, start=kept.start, stop=min(kept.stop, size), step=kept.step
    )


def concat(builder: Builder, node: Node) -> OnnxValue:
    values = [node.value(place) for place in range(len(node.names))]
    if "axis" not in node.attributes and node.opset >= 4:
        raise node.error("it names no axis")
    counts = {len(full_shape(builder, value)) for value in values}
    if len(counts) != 1:
        raise node.error("its inputs have different numbers of dimensions")
    (axis,) = positive_axes(node, [node.attributes.get("axis", 1)], counts.pop())
    if axis == 0 or len({value.unbatched for value in values}) > 1:
        values = [batch_included(builder, value, node) for value in values]
    together = materialized(builder, values[0], node)
    for value in values[1:]:
        both = [together, materialized(builder, value, node)]
        together = builder.add(node, "Concat", both, {}, dim=axis + (1 if value.unbatched else 0))
    return batch_split_off(together)
