"""Readers of ONNX's pooling operators, and of means over some axes."""

from collections.abc import Sequence
from math import prod
from typing import Any

from certtrain.interchange.onnxbuilder import Builder
from certtrain.interchange.onnxproducts import pads_of, two_of
from certtrain.interchange.onnxshaping import (
    batch_included,
    full_shape,
    materialized,
    of_full_shape,
    permuted,
    positive_axes,
)
from certtrain.interchange.onnxvalues import Node, OnnxValue
from certtrain.interchange.operators import beyond
from certtrain.spec.shapes import Shape

WindowSide = tuple[int, int, int, int, int]  # values, window, stride, padding before them, dilation
COUNTS_SINCE = 7  # the first opset that says whether padding counts in an average


def max_pool(builder: Builder, node: Node) -> OnnxValue:
    node.expect(storage_order=0)
    return _pool(builder, node, "MaxPool2d", dilation=two_of(node, "dilations"))


def average_pool(builder: Builder, node: Node) -> OnnxValue:
    node.expect(dilations=[1, 1])
    counted = bool(node.attributes.get("count_include_pad", 0))
    return _pool(builder, node, "AvgPool2d", count_include_pad=counted)


def _pool(builder: Builder, node: Node, kind: str, **arguments: Any) -> OnnxValue:
    value = materialized(builder, node.value(), node)
    kernel, strides = two_of(node, "kernel_shape"), two_of(node, "strides")
    dilation, counted = arguments.get("dilation", (1, 1)), arguments.get("count_include_pad", False)
    if len(value.shape) != 3 or value.unbatched:
        raise node.error("only pooling over two dimensions is read")
    pads = pads_of(node, value.shape, kernel, strides, dilation)
    if kind == "AvgPool2d" and any(pads) and node.opset < COUNTS_SINCE:
        raise node.error(
            f"an average with padding is read only from opset {COUNTS_SINCE} on, which says whether the padding counts"
        )
    sides = list(zip(value.shape[1:], kernel, strides, pads[:2], dilation, strict=True))
    ceil = _reaches_over(node, sides, pads, counted)
    if pads[:2] != pads[2:] and counted:
        arguments["divisor_override"] = prod(kernel)  # all padding counts, but torch does not count it at the end
    sizes = {"kernel_size": kernel, "stride": strides, "padding": pads[:2], "ceil_mode": ceil}
    return builder.add(node, kind, [value], {}, **sizes, **arguments)


def _reaches_over(node: Node, sides: Sequence[WindowSide], pads: Shape, counted: bool) -> bool:
    """Whether the last windows reach beyond the end, as with torch's `ceil_mode`, which also gives uneven padding."""
    over = tuple(beyond(*side) for side in sides)
    extra = tuple(end - begin for begin, end in zip(pads[:2], pads[2:], strict=True))
    if any(extra) and extra != over:
        raise node.error(f"pads = {list(pads)} is not read")
    ceil = bool(node.attributes.get("ceil_mode", 0))
    if ceil and ((any(over) and (any(extra) or counted)) or any(_drops(*side) for side in sides)):
        raise node.error("ceil_mode with windows that reach beyond the end is not read: tools differ in what it means")
    return any(extra) or (ceil and any(over))


def _drops(size: int, kernel: int, stride: int, pad: int, dilation: int) -> bool:
    """Whether with ceil_mode a last window would begin after the values; some tools omit such a window."""
    reach = dilation * (kernel - 1) + 1
    return -(-(size + 2 * pad - reach) // stride) * stride >= size + pad


def global_average_pool(builder: Builder, node: Node) -> OnnxValue:
    value = materialized(builder, node.value(), node)
    if value.unbatched:
        raise node.error("only pooling over two dimensions is read")
    return builder.add(node, "AdaptiveAvgPool2d", [value], {}, output_size=(1, 1))


def reduce_mean(builder: Builder, node: Node) -> OnnxValue:
    """The mean over some axes: these are moved to the end, and pooled to one value."""
    value, axes = node.value(), node.listed("axes", 1, since=18)
    full = full_shape(builder, value)
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return value
    found = sorted(positive_axes(node, axes or range(len(full)), len(full)))
    value = batch_included(builder, value, node) if found[0] == 0 else value
    first = 0 if value.unbatched else 1
    kept = [axis for axis in range(first, len(full)) if axis not in found]
    mean = _mean(builder, node, value, [axis - first for axis in kept], [axis - first for axis in found])
    sides = [1 if axis in found else side for axis, side in enumerate(full)]
    if not node.attributes.get("keepdims", 1):
        sides = [side for axis, side in enumerate(sides) if axis not in found]
    return of_full_shape(builder, mean, node, tuple(sides))


def _mean(builder: Builder, node: Node, value: OnnxValue, kept: list[int], reduced: list[int]) -> OnnxValue:
    """The mean over the dimensions `reduced` of the value's shape, as (K,)."""
    rows, columns = (prod(value.shape[place] for place in some) for some in (kept, reduced))
    if rows * columns == rows:
        return value.reshaped((rows,), unbatched=value.unbatched)
    ordered = permuted(builder, value, node, [*kept, *reduced])
    images: Shape = (rows, *ordered.shape[-2:]) if len(reduced) == 2 else (rows, 1, columns)
    given = materialized(builder, ordered.reshaped(images, unbatched=value.unbatched), node)
    pooled = builder.add(node, "AdaptiveAvgPool2d", [given], {}, output_size=(1, 1))
    return pooled.reshaped((rows,), unbatched=value.unbatched)
