"""ONNX's pooling operators and means over some of a tensor's axes."""

from collections.abc import Sequence
from math import prod
from typing import Any

from certtrain.interchange.onnxbuilder import Builder
from certtrain.interchange.onnxproducts import pads_of, two_of
from certtrain.interchange.onnxshaping import (
    full_shape,
    materialized,
    numbered,
    of_full_shape,
    permuted,
    whole,
)
from certtrain.interchange.onnxvalues import Node, OnnxValue
from certtrain.interchange.operators import beyond
from certtrain.spec.shapes import Shape

WindowSide = tuple[int, int, int, int, int]  # values, window, stride, padding before them, dilation
COUNTS_SINCE = 7  # the opset from which on it is said whether padding counts in an average


def max_pool(reader: Builder, node: Node) -> OnnxValue:
    node.expect(storage_order=0)
    return _pool(reader, node, "MaxPool2d", dilation=two_of(node, "dilations"))


def average_pool(reader: Builder, node: Node) -> OnnxValue:
    node.expect(dilations=[1, 1])
    counted = bool(node.attributes.get("count_include_pad", 0))
    return _pool(reader, node, "AvgPool2d", count_include_pad=counted)


def _pool(reader: Builder, node: Node, kind: str, **arguments: Any) -> OnnxValue:
    value = materialized(reader, node.value(), node)
    kernel, strides = two_of(node, "kernel_shape"), two_of(node, "strides")
    dilation, counted = arguments.get("dilation", (1, 1)), arguments.get("count_include_pad", False)
    if len(value.shape) != 3 or value.alone:
        raise node.error("only pooling over two dimensions is read")
    pads = pads_of(node, value.shape, kernel, strides, dilation)
    if kind == "AvgPool2d" and any(pads) and node.opset < COUNTS_SINCE:
        raise node.error(f"padding of an average is read from opset {COUNTS_SINCE} on, which says whether it counts")
    sides = list(zip(value.shape[1:], kernel, strides, pads[:2], dilation, strict=True))
    ceil = _reaches_over(node, sides, pads, counted)
    if pads[:2] != pads[2:] and counted:
        arguments["divisor_override"] = prod(kernel)  # all of the padding counts, which torch does not do at the end
    sizes = {"kernel_size": kernel, "stride": strides, "padding": pads[:2], "ceil_mode": ceil}
    return reader.add(node, kind, [value], {}, **sizes, **arguments)


def _reaches_over(node: Node, sides: Sequence[WindowSide], pads: Shape, counted: bool) -> bool:
    """Whether the last windows reach over the end, which torch's `ceil_mode` makes of uneven padding as well."""
    over = tuple(beyond(*side) for side in sides)
    extra = tuple(end - begin for begin, end in zip(pads[:2], pads[2:], strict=True))
    if any(extra) and extra != over:
        raise node.error(f"pads = {list(pads)} is not read")
    ceil = bool(node.attributes.get("ceil_mode", 0))
    if ceil and ((any(over) and (any(extra) or counted)) or any(_drops(*side) for side in sides)):
        raise node.error("ceil_mode where windows reach over the end is not read: tools differ in what it means")
    return any(extra) or (ceil and any(over))


def _drops(size: int, kernel: int, stride: int, pad: int, dilation: int) -> bool:
    """Whether with ceil_mode a last window would begin behind the values, which some tools leave out."""
    reach = dilation * (kernel - 1) + 1
    return -(-(size + 2 * pad - reach) // stride) * stride >= size + pad


def global_average_pool(reader: Builder, node: Node) -> OnnxValue:
    value = materialized(reader, node.value(), node)
    if value.alone:
        raise node.error("only pooling over two dimensions is read")
    return reader.add(node, "AdaptiveAvgPool2d", [value], {}, output_size=(1, 1))


def reduce_mean(reader: Builder, node: Node) -> OnnxValue:
    """The mean over some axes: they are put last, and pooled to one value."""
    value, axes = node.value(), node.listed("axes", 1, since=18)
    full = full_shape(reader, value)
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return value
    found = sorted(numbered(node, axes or range(len(full)), len(full)))
    value = whole(reader, value, node) if found[0] == 0 else value
    first = 0 if value.alone else 1
    kept = [axis for axis in range(first, len(full)) if axis not in found]
    mean = _mean(reader, node, value, [axis - first for axis in kept], [axis - first for axis in found])
    sides = [1 if axis in found else side for axis, side in enumerate(full)]
    if not node.attributes.get("keepdims", 1):
        sides = [side for axis, side in enumerate(sides) if axis not in found]
    return of_full_shape(reader, mean, node, tuple(sides))


def _mean(reader: Builder, node: Node, value: OnnxValue, kept: list[int], gone: list[int]) -> OnnxValue:
    """The mean over the dimensions `gone` of the value's shape, as (K,)."""
    rows, columns = (prod(value.shape[place] for place in some) for some in (kept, gone))
    if rows * columns == rows:
        return value.reshaped((rows,), alone=value.alone)
    ordered = permuted(reader, value, node, [*kept, *gone])
    images: Shape = (rows, *ordered.shape[-2:]) if len(gone) == 2 else (rows, 1, columns)
    given = materialized(reader, ordered.reshaped(images, alone=value.alone), node)
    pooled = reader.add(node, "AdaptiveAvgPool2d", [given], {}, output_size=(1, 1))
    return pooled.reshaped((rows,), alone=value.alone)
