"""What each ONNX operator becomes: a layer, a part of one, or a constant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from certtrain.interchange.onnxvalues import Constant, Node, Shape, Value, array, materialized
from certtrain.interchange.operators import beyond

if TYPE_CHECKING:
    from certtrain.interchange.onnxfile import Reader

MOST_GROWTH = 64  # rows and columns of zeros that a kernel may get


def _conv(reader: Reader, node: Node) -> Value:
    value, weight, bias = materialized(reader, node.value(), node), node.weights(1), node.bias(2)
    if weight.dim() != 4 or len(value.shape) != 3:
        raise node.error("only convolutions over two dimensions are read")
    kernel = list(weight.shape[2:])
    node.expect(kernel_shape=kernel)
    strides, dilations = _pair(node, "strides"), _pair(node, "dilations")
    pads = _pads(node, value.shape, kernel, strides, dilations)
    weight, padding = _even_pads(node, weight, pads, dilations)
    groups = node.attributes.get("group", 1)
    state = {"weight": weight} | ({} if bias is None else {"bias": bias})
    return reader.add(
        node,
        "Conv2d",
        [value],
        state,
        in_channels=weight.shape[1] * groups,
        out_channels=weight.shape[0],
        kernel_size=tuple(weight.shape[2:]),
        stride=strides,
        padding=padding,
        dilation=dilations,
        groups=groups,
        bias=bias is not None,
    )


def _even_pads(node: Node, weight: Tensor, pads: Shape, dilations: Shape) -> tuple[Tensor, Shape]:
    """The same convolution with equal padding at both ends: where there was less, the kernel grows by zeros."""
    missing = [0, 0, 0, 0]  # left and right of the last dimension, then of the one before, as F.pad has them
    padding = []
    for place, dilation in enumerate(dilations):
        begin, end = pads[place], pads[place + 2]
        most = max(begin, end)
        if (most - begin) % dilation or (most - end) % dilation:
            raise node.error(f"pads = {list(pads)} with dilations {list(dilations)} is not read")
        if abs(end - begin) > MOST_GROWTH:
            raise node.error(f"pads = {list(pads)} is not read: both ends differ by more than {MOST_GROWTH}")
        missing[2 - 2 * place : 4 - 2 * place] = [(most - begin) // dilation, (most - end) // dilation]
        padding.append(most)
    return torch.nn.functional.pad(weight, missing), tuple(padding)


def _pair(node: Node, name: str) -> Shape:
    found = tuple(node.attributes.get(name, (1, 1)))
    if len(found) != 2 or min(found) < 1:
        raise node.error(f"{name} = {list(found)}; two numbers above zero are read")
    return found


def _pads(node: Node, given: Shape, kernel: Sequence[int], strides: Shape, dilations: Shape) -> Shape:
    """Rows above, columns at the left, rows below, columns at the right."""
    automatic = node.attributes.get("auto_pad", b"NOTSET").decode()
    if automatic in ("NOTSET", "VALID"):
        pads = tuple(node.attributes.get("pads", (0, 0, 0, 0))) if automatic == "NOTSET" else (0, 0, 0, 0)
        if len(pads) != 4 or min(pads) < 0:
            raise node.error(f"pads = {list(pads)}; four counts are read")
        return pads
    sides = zip(given[1:], kernel, strides, dilations, strict=True)
    total = [max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0) for size, k, s, d in sides]
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (*small, *large) if automatic == "SAME_UPPER" else (*large, *small)


def _gemm(reader: Reader, node: Node) -> Value:
    node.expect(transA=0)
    weight, bias = node.weights(1).double(), node.bias(2)
    if weight.dim() != 2:
        raise node.error("its weights must be a matrix")
    weight = weight if node.attributes.get("transB", 0) else weight.T
    factor, bias_factor = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    bias = None if bias is None else _expanded(node, bias.double() * bias_factor, (len(weight),))
    return _linear(reader, node, node.value(), weight * factor, bias)


def _mat_mul(reader: Reader, node: Node) -> Value:
    if isinstance(node.given(0), Constant):
        raise node.error("its first input must depend on the network's input, and its second be a constant")
    weight = node.weights(1)
    if weight.dim() != 2:
        raise node.error("its weights must be a matrix")
    return _linear(reader, node, node.value(), weight.T, None)


def _linear(reader: Reader, node: Node, value: Value, weight: Tensor, bias: Tensor | None) -> Value:
    if len(value.shape) != 1:
        raise node.error(f"it needs flat inputs, and these have shape {value.shape}")
    value = materialized(reader, value, node)
    state = {"weight": weight} | ({} if bias is None else {"bias": bias})
    sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    return reader.add(node, "Linear", [value], state, **sizes, bias=bias is not None)


def _batch_norm(reader: Reader, node: Node) -> Value:
    node.expect(training_mode=0, spatial=1)
    value = materialized(reader, node.value(), node)
    weight, bias, mean, variance = (node.weights(place) for place in (1, 2, 3, 4))
    if bool((variance < 0).any()):
        raise node.error("its variance is negative")
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    state["num_batches_tracked"] = torch.tensor(0)
    kind = "BatchNorm1d" if len(value.shape) in (1, 2) else "BatchNorm2d"
    eps = node.attributes.get("epsilon", 1e-5)
    return reader.add(node, kind, [value], state, num_features=weight.numel(), eps=eps)


def _sum(reader: Reader, node: Node) -> Value | Constant:
    left, right = node.given(0), node.given(1)
    if isinstance(left, Value) and isinstance(right, Value):
        if left.shape != right.shape:
            raise node.error(f"it adds values of shapes {left.shape} and {right.shape}; equal ones are read")
        return reader.add(node, "Add", [materialized(reader, left, node), materialized(reader, right, node)], {})
    value, number = (node.value(0), node.weights(1)) if isinstance(left, Value) else (node.value(1), node.weights(0))
    name = str(node.names[0 if isinstance(left, Value) else 1])
    shift = _expanded(node, number.double(), value.shape)
    if value.scale is None and reader.takes_bias(value, name):
        reader.set_bias(value, shift, node)
        return value
    return value.affine(torch.tensor(1.0, dtype=torch.float64), shift)


def _difference(reader: Reader, node: Node) -> Value:
    if isinstance(node.given(0), Value) and isinstance(node.given(1), Value):
        raise node.error("the difference of two layers' results is not read")
    if isinstance(node.given(0), Value):
        return _scaled(node, node.value(0), None, -node.weights(1).double())
    return _scaled(node, node.value(1), torch.tensor(-1.0, dtype=torch.float64), node.weights(0).double())


def _product(reader: Reader, node: Node) -> Value:
    if isinstance(node.given(0), Value):
        return _scaled(node, node.value(0), node.weights(1).double(), None)
    return _scaled(node, node.value(1), node.weights(0).double(), None)


def _quotient(reader: Reader, node: Node) -> Value:
    divisor = node.weights(1).double()
    if not bool(divisor.all()):
        raise node.error("it divides by zero")
    return _scaled(node, node.value(0), 1 / divisor, None)


def _scaled(node: Node, value: Value, scale: Tensor | None, shift: Tensor | None) -> Value:
    one, zero = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    scale, shift = (
        _expanded(node, default if tensor is None else tensor, value.shape)
        for tensor, default in ((scale, one), (shift, zero))
    )
    return value.affine(scale, shift)


def _expanded(node: Node, tensor: Tensor, shape: Shape) -> Tensor:
    """A constant for values (B, *shape), broadcast as ONNX does, without the batch."""
    while tensor.dim() > len(shape) and tensor.shape[0] == 1:
        tensor = tensor[0]
    try:
        return tensor.expand(shape)
    except RuntimeError as error:
        raise node.error(f"a constant of shape {tuple(tensor.shape)} does not fit values of shape {shape}") from error


def _activation(kind: str) -> Callable[[Reader, Node], Value]:
    def read(reader: Reader, node: Node) -> Value:
        slope = {"negative_slope": node.attributes.get("alpha", 0.01)} if kind == "LeakyReLU" else {}
        return reader.add(node, kind, [materialized(reader, node.value(), node)], {}, **slope)

    return read


def _flatten(reader: Reader, node: Node) -> Value:
    value, axis = node.value(), node.attributes.get("axis", 1)
    if axis not in (1, -len(value.shape)):
        raise node.error(f"axis = {axis} is not read; 1 keeps the batch apart")
    return _flat(reader, node, value)


def _flat(reader: Reader, node: Node, value: Value) -> Value:
    if len(value.shape) == 1:
        return value
    bare = Value(value.layer, value.shape)
    made = reader.add(node, "Flatten", [bare], {})
    gathered = (None if part is None else part.expand(value.shape).reshape(-1) for part in (value.scale, value.shift))
    return Value(made.layer, made.shape, *gathered)


def _reshape(reader: Reader, node: Node) -> Value | Constant:
    node.expect(allowzero=0)
    wanted = node.constant(1)
    if wanted is None or wanted.dim() != 1 or wanted.dtype != torch.int64:
        raise node.error("its shape must be a constant")
    value = node.value()
    sizes = _sizes(node, value.shape, wanted.tolist())
    if sizes == value.shape:
        return value
    if len(sizes) == 1:
        return _flat(reader, node, value)
    if reader.is_input_alone(str(node.names[0])):
        return reader.reshape_input(sizes)
    raise node.error(f"from {value.shape} to {sizes} for one input; only the input is reshaped, and layers flattened")


def _sizes(node: Node, given: Shape, wanted: Sequence[int]) -> Shape:
    """The new shape without the batch."""
    before = [1, *given, *[0] * len(wanted)]
    sizes = [size or before[place] for place, size in enumerate(wanted)]
    free = [place for place, size in enumerate(sizes) if size == -1]
    rest = prod(size for size in sizes if size != -1)
    if len(sizes) > 1 and free == [0] and rest == prod(given):
        return tuple(sizes[1:])
    if len(free) == 1 and rest > 0 and prod(given) % rest == 0:
        sizes[free[0]] = prod(given) // rest
    if len(sizes) < 2 or sizes[0] != 1 or min(sizes) < 1 or prod(sizes) != prod(given):
        raise node.error(f"the shape {list(wanted)} for values {given} does not keep the batch apart")
    return tuple(sizes[1:])


def _max_pool(reader: Reader, node: Node) -> Value:
    node.expect(storage_order=0)
    return _pool(reader, node, "MaxPool2d", dilation=_pair(node, "dilations"))


def _average_pool(reader: Reader, node: Node) -> Value:
    node.expect(dilations=[1, 1])
    counted = bool(node.attributes.get("count_include_pad", 0))
    return _pool(reader, node, "AvgPool2d", count_include_pad=counted)


def _pool(reader: Reader, node: Node, kind: str, **arguments: Any) -> Value:
    value = materialized(reader, node.value(), node)
    kernel, strides = _pair(node, "kernel_shape"), _pair(node, "strides")
    dilation = arguments.get("dilation", (1, 1))
    if len(value.shape) != 3:
        raise node.error("only pooling over two dimensions is read")
    pads = _pads(node, value.shape, kernel, strides, dilation)
    sides = list(zip(value.shape[1:], kernel, strides, pads[:2], dilation, strict=True))
    over = tuple(beyond(*side) for side in sides)
    extra = tuple(end - begin for begin, end in zip(pads[:2], pads[2:], strict=True))
    ceil = bool(node.attributes.get("ceil_mode", 0))
    if ceil and any(over):
        raise node.error("ceil_mode where windows reach over the end is not read: tools differ in what it means")
    if any(extra) and extra != over:
        raise node.error(f"pads = {list(pads)} is not read")
    if any(extra) and arguments.get("count_include_pad", False):
        arguments["divisor_override"] = prod(kernel)  # all of the padding counts, which torch does not do at the end
    return reader.add(
        node, kind, [value], {}, kernel_size=kernel, stride=strides, padding=pads[:2], ceil_mode=any(extra), **arguments
    )


def _global_average_pool(reader: Reader, node: Node) -> Value:
    return reader.add(node, "AdaptiveAvgPool2d", [materialized(reader, node.value(), node)], {}, output_size=(1, 1))


def _same(reader: Reader, node: Node) -> Value | Constant:
    found = node.given(0)
    if found is None:
        raise node.error("it is given nothing")
    return found


def _dropout(reader: Reader, node: Node) -> Value | Constant:
    training = node.constant(2)
    if training is not None and bool(training.any()):
        raise node.error("it is in training mode")
    return _same(reader, node)


def _constant(reader: Reader, node: Node) -> Constant:
    if set(node.attributes) != {"value"}:
        raise node.error("only constants that are one tensor are read")
    return Constant(array(node.attributes["value"]))


READERS: Mapping[str, Callable[[Reader, Node], Value | Constant]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _mat_mul,
    "BatchNormalization": _batch_norm,
    "Add": _sum,
    "Sub": _difference,
    "Mul": _product,
    "Div": _quotient,
    "Relu": _activation("ReLU"),
    "LeakyRelu": _activation("LeakyReLU"),
    "Sigmoid": _activation("Sigmoid"),
    "Tanh": _activation("Tanh"),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _same,
    "Dropout": _dropout,
    "Constant": _constant,
}
