"""Operators that are given only constants: their results are computed by ONNX's reference implementation."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from certtrain.interchange.onnxvalues import FREE_BATCH, Constant, Node, array, optional_module
from certtrain.spec.shapes import MOST_VALUES

Sizes = Callable[[list[Tensor]], int]  # the largest number of values that the result can have


def _most(given: list[Tensor]) -> int:
    return max(tensor.numel() for tensor in given)


def _sum(given: list[Tensor]) -> int:
    return sum(tensor.numel() for tensor in given)


def _product(given: list[Tensor]) -> int:
    return prod(max(tensor.numel(), 1) for tensor in given)


def _named(given: list[Tensor]) -> int:
    return prod(max(int(side), 1) for side in given[0].flatten().tolist())


def _expanded(given: list[Tensor]) -> int:
    return given[0].numel() * prod(max(int(side), 1) for side in given[-1].flatten().tolist())


# Operators that only move values, and then those that also compute or create values.
MOVING_OPERATORS: dict[str, Sizes] = {
    "Concat": _sum,
    "Gather": _product,
    "Identity": _most,
    "Reshape": _most,
    "Slice": _most,
    "Squeeze": _most,
    "Transpose": _most,
    "Unsqueeze": _most,
}
FOLDED: dict[str, Sizes] = MOVING_OPERATORS | {
    "Cast": _most,
    "ConstantOfShape": _named,
    "Expand": _expanded,
    "Shape": _most,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _product),
    "Neg": _most,
}
COMPUTING_OPERATORS = ("Add", "Sub", "Mul", "Div")


def computed(node: Node) -> Constant:
    """The result of an operator that is given only constants. Raises UnsupportedLayer."""
    given = {name: node.constant(place) for place, name in enumerate(node.names) if name}
    tensors = [tensor for tensor in given.values() if tensor is not None]
    if node.kind not in FOLDED or (node.kind in COMPUTING_OPERATORS and node.opset < 7):
        raise node.error("it has only constant inputs, with which it is not supported")
    if (size := FOLDED[node.kind](tensors)) > MOST_VALUES:
        raise node.error(f"it makes up to {size:,} values from constants; at most {MOST_VALUES:,} are allowed")
    _check_batch(node)
    return Constant(_run(node, given))


def _check_batch(node: Node) -> None:
    """Raise UnsupportedLayer if a free number of inputs is used for more than moving it to another tensor."""
    for place in range(len(node.names)):
        tensor = node.constant(place)
        free = tensor is not None and tensor.dtype == torch.int64 and bool((tensor == FREE_BATCH).any())
        if free and not (node.kind == "Concat" or (node.kind in MOVING_OPERATORS and place == 0)):
            raise node.error("it computes with the number of inputs, which is not fixed")


def _run(node: Node, given: dict[str, Tensor | None]) -> Tensor:
    helper, numpy_helper = optional_module("onnx.helper"), optional_module("onnx.numpy_helper")
    arrays = {name: tensor.numpy() for name, tensor in given.items() if tensor is not None}
    inputs = [_info(name, arrays[name]) for name in arrays]
    output = helper.make_tensor_value_info(node.outputs[0], 0, None)
    try:
        own = helper.make_node(node.kind, node.names, node.outputs[:1], **node.attributes)
        graph = helper.make_graph([own], "constant", inputs, [output])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.opset)])
        (result,) = optional_module("onnx.reference").ReferenceEvaluator(model).run(None, arrays)
    except Exception as error:  # numpy's and onnx's own, which have no common base
        raise node.error(f"it cannot be computed from constants: {str(error).partition(chr(10))[0]}") from error
    return array(numpy_helper.from_array(result, node.outputs[0]))


def _info(name: str, values: Any) -> Any:
    helper = optional_module("onnx.helper")
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)


def constant(builder: object, node: Node) -> Constant:
    """Constant: a tensor, or numbers."""
    if len(node.attributes) != 1:
        raise node.error("a constant is one tensor, or numbers of one kind")
    ((name, value),) = node.attributes.items()
    if name == "value":
        return Constant(array(value))
    dtype = torch.float32 if name.startswith("value_float") else torch.int64
    return Constant(torch.tensor(value if isinstance(value, (int, float)) else list(value), dtype=dtype))
