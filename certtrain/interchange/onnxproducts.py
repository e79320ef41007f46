"""Readers of ONNX's operators with weights: convolutions, matrix products, and BatchNormalization."""

from collections.abc import Sequence

import torch
from torch import Tensor

from certtrain.interchange.onnxarithmetic import add_constant, constant_for, old_shape
from certtrain.interchange.onnxbuilder import Builder
from certtrain.interchange.onnxshaping import batch_included, batch_split_off, full_shape, materialized, swapped
from certtrain.interchange.onnxvalues import Constant, Node, OnnxValue
from certtrain.spec.shapes import Shape

MOST_GROWTH = 64  # rows and columns of zeros that may be added to a kernel


# --- convolutions ----------------------------------------------------------------------------------------


def conv(builder: Builder, node: Node) -> OnnxValue:
    value, weight, bias = materialized(builder, node.value(), node), node.weights(1), node.bias(2)
    if weight.dim() != 4 or len(value.shape) != 3 or value.unbatched:
        raise node.error("only convolutions over two dimensions are read")
    kernel = list(weight.shape[2:])
    node.expect(kernel_shape=kernel)
    strides, dilations = two_of(node, "strides"), two_of(node, "dilations")
    pads = pads_of(node, value.shape, kernel, strides, dilations)
    if _grows(pads, dilations):
        weight, even = _even_pads(node, weight, pads, dilations)
    else:
        value, even = _padded(builder, node, value, pads)
    groups = node.attributes.get("group", 1)
    state = {"weight": weight} | ({} if bias is None else {"bias": bias})
    return builder.add(
        node,
        "Conv2d",
        [value],
        state,
        in_channels=weight.shape[1] * groups,
        out_channels=weight.shape[0],
        kernel_size=tuple(weight.shape[2:]),
        stride=strides,
        padding=even,
        dilation=dilations,
        groups=groups,
        bias=bias is not None,
    )


def _grows(pads: Shape, dilations: Shape) -> bool:
    """Whether zeros in the kernel can replace uneven padding: the kernel grows in steps of its dilation."""
    return all((pads[place] - pads[place + 2]) % dilation == 0 for place, dilation in enumerate(dilations))


def _even_pads(node: Node, weight: Tensor, pads: Shape, dilations: Shape) -> tuple[Tensor, Shape]:
    """The same convolution with equal padding at both ends: zeros are added to the kernel where there was less."""
    missing = [0, 0, 0, 0]  # left and right of the last dimension, then of the one before, as F.pad has them
    even = []
    for place, dilation in enumerate(dilations):
        begin, end = pads[place], pads[place + 2]
        if abs(end - begin) > MOST_GROWTH:
            raise node.error(f"pads = {list(pads)} is not read: both ends differ by more than {MOST_GROWTH}")
        most = max(begin, end)
        missing[2 - 2 * place : 4 - 2 * place] = [(most - begin) // dilation, (most - end) // dilation]
        even.append(most)
    return torch.nn.functional.pad(weight, missing), tuple(even)


def _padded(builder: Builder, node: Node, value: OnnxValue, pads: Shape) -> tuple[OnnxValue, Shape]:
    """The value with the excess padding of one end added by Pad layers, and the remaining even padding."""
    even = tuple(min(pads[place], pads[place + 2]) for place in (0, 1))
    for place, least in enumerate(even):
        before, after = pads[place] - least, pads[place + 2] - least
        if before or after:
            value = builder.add(node, "Pad", [value], {}, dim=place + 2, before=before, after=after)
    return value, even


def two_of(node: Node, name: str) -> Shape:
    """Height and width of an attribute."""
    found = tuple(node.attributes.get(name, (1, 1)))
    if len(found) != 2 or min(found) < 1:
        raise node.error(f"{name} = {list(found)}; it must be two numbers above zero")
    return found


def pads_of(node: Node, given: Shape, kernel: Sequence[int], strides: Shape, dilations: Shape) -> Shape:
    """The padding: rows above, columns at the left, rows below, columns at the right."""
    automatic = node.attributes.get("auto_pad", b"NOTSET").decode()
    if automatic in ("NOTSET", "VALID"):
        pads = tuple(node.attributes.get("pads", (0, 0, 0, 0))) if automatic == "NOTSET" else (0, 0, 0, 0)
        if len(pads) != 4 or min(pads) < 0:
            raise node.error(f"pads = {list(pads)}; it must be four counts")
        return pads
    if automatic not in ("SAME_UPPER", "SAME_LOWER"):
        raise node.error(f"auto_pad = {automatic!r} is not read")
    sides = zip(given[1:], kernel, strides, dilations, strict=True)
    total = [max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0) for size, k, s, d in sides]
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (*small, *large) if automatic == "SAME_UPPER" else (*large, *small)


# --- products with a matrix ------------------------------------------------------------------------------


def mat_mul(builder: Builder, node: Node) -> OnnxValue:
    left = node.given(0)
    weight = _matrix(node, 0 if isinstance(left, Constant) else 1)
    if isinstance(left, Constant):
        return _product_from_left(builder, node, weight, node.value(1))
    return _product(builder, node, node.value(), weight.T)


def gemm(builder: Builder, node: Node) -> OnnxValue:
    """alpha · A′B′ + beta · C, where A or B is a constant, and so is C, which may be missing."""
    if isinstance(node.given(0), Constant):
        value, weight, of_value, of_weight = node.value(1), _matrix(node, 0).double(), "transB", "transA"
    else:
        value, weight, of_value, of_weight = node.value(0), _matrix(node, 1).double(), "transA", "transB"
    weight = (weight.T if node.attributes.get(of_weight, 0) else weight) * node.attributes.get("alpha", 1.0)
    if any(abs(node.attributes.get(name, 1.0)) != 1 for name in ("alpha", "beta")):
        builder.combined.append(node.title)
    if len(full_shape(builder, value)) != 2:
        raise node.error(f"it multiplies matrices, not values of shape {value.shape} for one input")
    if node.attributes.get(of_value, 0):
        value = batch_split_off(swapped(builder, batch_included(builder, value, node), node))
    if of_value == "transB":
        return _with_bias(builder, node, _product_from_left(builder, node, weight, value))
    return _with_bias(builder, node, _product(builder, node, value, weight.T))


def _matrix(node: Node, place: int) -> Tensor:
    weight = node.weights(place)
    if weight.dim() != 2:
        raise node.error("its weights must be a matrix")
    return weight


def _with_bias(builder: Builder, node: Node, value: OnnxValue) -> OnnxValue:
    bias = node.bias(2)
    if bias is None:
        return value
    if node.opset < 7:
        bias = bias.reshape(old_shape(node, full_shape(builder, value), tuple(bias.shape)))
    value, shift = constant_for(builder, value, node, bias * node.attributes.get("beta", 1.0))
    if len(value.shape) == 1 and value.shape == builder.shapes[value.layer] and value.scale is None:
        builder.set_bias(value, shift, node)  # the layer is new, so nothing else uses it
        return value
    return add_constant(builder, value, node, shift, node.outputs[0])


def _product(builder: Builder, node: Node, value: OnnxValue, weight: Tensor) -> OnnxValue:
    """The matrix (out, in) times every vector along the value's last dimension."""
    value = materialized(builder, value, node)
    sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    return builder.add(node, "Linear", [value], {"weight": weight}, **sizes, bias=False)


def _product_from_left(builder: Builder, node: Node, weight: Tensor, value: OnnxValue) -> OnnxValue:
    """weight · value, the matrix product over the last two dimensions, or over the only one."""
    if len(full_shape(builder, value)) == 1:
        return _product(builder, node, value, weight)
    if len(value.shape) == 1:
        value = batch_included(builder, value, node)
    columns = _product(builder, node, swapped(builder, value, node), weight)
    return batch_split_off(swapped(builder, columns, node))


# --- BatchNormalization ----------------------------------------------------------------------------------


def batch_norm(builder: Builder, node: Node) -> OnnxValue:
    node.expect(training_mode=0, spatial=1)
    # Before opset 7 an attribute says whether it normalises by the batch, then the number of results, and from 14 on
    # an attribute again.
    trains = node.opset < 7 and not node.attributes.get("is_test", 0)
    if trains or any(node.outputs[1:]):
        raise node.error("it is in training mode: it normalises by the batch. Export the network in evaluation mode")
    value = materialized(builder, node.value(), node)
    weight, bias, mean, variance = (node.weights(place) for place in (1, 2, 3, 4))
    if bool((variance < 0).any()) or value.unbatched:
        raise node.error("its variance is negative" if not value.unbatched else "its values have no batch dimension")
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    state["num_batches_tracked"] = torch.tensor(0)
    kind = "BatchNorm1d" if len(value.shape) in (1, 2) else "BatchNorm2d"
    eps = node.attributes.get("epsilon", 1e-5)
    return builder.add(node, kind, [value], state, num_features=weight.numel(), eps=eps)
