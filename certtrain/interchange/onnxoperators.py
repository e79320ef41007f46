"""Which ONNX operators are read, up to which version, and with which attributes.

An operator has the meaning of the opset that its file declares. An operator, version
or attribute that is not in this table is an error that names it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.activations.record import Activation
from certtrain.bounds.forms import OnnxReading
from certtrain.interchange import onnxarithmetic as arithmetic
from certtrain.interchange import onnxpatterns as patterns
from certtrain.interchange import onnxpools as pools
from certtrain.interchange import onnxproducts as products
from certtrain.interchange import onnxshaping as shaping
from certtrain.interchange.onnxbuilder import Builder
from certtrain.interchange.onnxconstants import constant
from certtrain.interchange.onnxvalues import DTYPES, Constant, Node, OnnxValue, optional_module

LATER = 10**6
Opsets = tuple[int, int]  # first and last
ALWAYS: Opsets = (1, LATER)
OLD: Opsets = (1, 5)  # for consumed_inputs, which only says which inputs may be overwritten
CURVE = {"consumed_inputs": OLD}
BROADCAST = {"broadcast": (1, 6), "axis": (1, 6), "consumed_inputs": OLD}
WINDOW = dict.fromkeys(("auto_pad", "kernel_shape", "pads", "strides"), ALWAYS)


def since(opset: int) -> Opsets:
    return opset, LATER


class Known(NamedTuple):
    """How an operator is read: the function, the newest version, and the opsets of each attribute."""

    read: Callable[[Builder, Node], OnnxValue | Constant]
    newest: int
    attributes: Mapping[str, Opsets] = {}


def checked(node: Node) -> Known:
    """The table's entry for the node's operator. Raises UnsupportedLayer for another version or attribute."""
    if node.kind not in READERS:
        raise node.error("it is supported only with constant inputs")
    known = READERS[node.kind]
    version = optional_module("onnx.defs").get_schema(node.kind, node.opset, "").since_version
    if version > known.newest:
        raise node.error(
            f"version {version} of this operator is newer than {known.newest}, the newest that is supported"
        )
    for name in node.attributes:
        first, last = known.attributes.get(name, (LATER, 0))
        if not first <= node.opset <= last:
            raise node.error(f"its attribute {name!r} is not read in opset {node.opset}")
    return known


def _same(builder: Builder, node: Node) -> OnnxValue:
    return node.value()


def _cast(builder: Builder, node: Node) -> OnnxValue:
    wanted = node.attributes["to"]
    names = {1: (1, b"FLOAT"), 11: (11, b"DOUBLE")}
    if not any(wanted in names[number] and dtype == builder.dtype for number, dtype in DTYPES.items()):
        raise node.error(f"to = {wanted!r} changes the type of values, which is not read")
    return node.value()


def _cast_like(builder: Builder, node: Node) -> OnnxValue | Constant:
    """CastLike, for values and constants of the network's dtype only."""
    given, like = node.given(0), node.given(1)
    for part in (given, like):
        if part is None or (isinstance(part, Constant) and part.tensor.dtype != builder.dtype):
            raise node.error("it changes the type of values, which is not read")
    assert given is not None
    return given


def _dropout(builder: Builder, node: Node) -> OnnxValue:
    training = node.constant(2)
    drops = node.opset < 7 and not node.attributes.get("is_test", 0)
    if drops or (training is not None and bool(training.any())):
        raise node.error("it is in training mode: it is random. Export the network in evaluation mode")
    return node.value()


def _activation(record: Activation, reading: OnnxReading) -> Known:
    names = {name for name, _ in reading.fields.values()} | reading.fixed.keys()
    attributes = (CURVE if reading.consumes else {}) | dict.fromkeys(sorted(names), ALWAYS)
    return Known(arithmetic.activation(record.layer.__name__, reading), reading.newest, attributes)


ACTIVATION_READERS = {
    reading.operator: _activation(record, reading)
    for record in ACTIVATIONS.values()
    if (reading := record.onnx.reading) is not None
}
READERS: Mapping[str, Known] = {
    "Conv": Known(products.conv, 22, WINDOW | {"dilations": ALWAYS, "group": ALWAYS}),
    "Gemm": Known(
        products.gemm, 13, dict.fromkeys(("alpha", "beta", "transA", "transB"), ALWAYS) | {"broadcast": (1, 6)}
    ),
    "MatMul": Known(products.mat_mul, 13),
    "BatchNormalization": Known(
        products.batch_norm,
        15,
        {
            "epsilon": ALWAYS,
            "momentum": ALWAYS,  # for training alone
            "is_test": (1, 6),
            "spatial": (1, 8),
            "consumed_inputs": OLD,
            "training_mode": since(14),
        },
    ),
    "Add": Known(arithmetic.add, 14, BROADCAST),
    "Sub": Known(arithmetic.subtract, 14, BROADCAST),
    "Mul": Known(arithmetic.multiply, 14, BROADCAST),
    "Div": Known(arithmetic.divide, 14, BROADCAST),
    "Neg": Known(arithmetic.negate, 13, CURVE),
    **ACTIVATION_READERS,
    "Erf": Known(patterns.erf, 13),
    "Greater": Known(patterns.greater, 13, {"broadcast": (1, 6), "axis": (1, 6)}),
    "Where": Known(patterns.where, 16),
    "Clip": Known(arithmetic.clip, 13, CURVE | {"min": (1, 10), "max": (1, 10)}),
    "Max": Known(arithmetic.extreme(True), 13, CURVE),
    "Min": Known(arithmetic.extreme(False), 13, CURVE),
    "Flatten": Known(shaping.flatten, 25, {"axis": ALWAYS}),
    "Reshape": Known(shaping.reshape, 25, {"shape": (1, 4), "consumed_inputs": (1, 4), "allowzero": since(14)}),
    "Squeeze": Known(shaping.squeeze, 25, {"axes": (1, 12)}),
    "Unsqueeze": Known(shaping.unsqueeze, 25, {"axes": (1, 12)}),
    "Transpose": Known(shaping.transpose, 25, {"perm": ALWAYS}),
    "Pad": Known(shaping.pad, 25, {"mode": ALWAYS, "paddings": (1, 1), "pads": (2, 10), "value": (1, 10)}),
    "Slice": Known(shaping.slice_values, 13, dict.fromkeys(("axes", "starts", "ends"), (1, 9))),
    "Concat": Known(shaping.concat, 13, {"axis": ALWAYS}),
    "Shape": Known(shaping.shape_of, 25, {"start": since(15), "end": since(15)}),
    "MaxPool": Known(
        pools.max_pool, 22, WINDOW | {"storage_order": since(8), "ceil_mode": since(10), "dilations": since(10)}
    ),
    "AveragePool": Known(
        pools.average_pool,
        22,
        WINDOW | {"count_include_pad": since(7), "ceil_mode": since(10), "dilations": since(19)},
    ),
    "GlobalAveragePool": Known(pools.global_average_pool, 22),
    "ReduceMean": Known(
        pools.reduce_mean, 18, {"axes": (1, 17), "keepdims": ALWAYS, "noop_with_empty_axes": since(18)}
    ),
    "Identity": Known(_same, 25),
    # Values keep their dtype, so the attributes about rounding have no effect.
    "Cast": Known(_cast, 28, {"to": ALWAYS, "saturate": since(19), "round_mode": since(24)}),
    "CastLike": Known(_cast_like, 28, {"saturate": since(19), "round_mode": since(24)}),
    "Dropout": Known(
        _dropout,
        22,
        {"ratio": (1, 11), "is_test": (1, 6), "consumed_inputs": OLD, "seed": since(12)},  # for training alone
    ),
    "Constant": Known(
        constant,
        25,
        {"value": ALWAYS} | dict.fromkeys(("value_float", "value_floats", "value_int", "value_ints"), since(12)),
    ),
}
