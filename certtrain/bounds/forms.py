"""Other forms of a layer: the functions that equal it, and the ONNX operators that it is written and read as.

These are plain descriptions. `functions` uses them when a forward pass is traced, `interchange` when a file is
written or read. Nothing here needs ONNX.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

NOTHING: Mapping[str, Any] = MappingProxyType({})


class FunctionForm(NamedTuple):
    """The layers that equal a function.

    make: the layers, one after the other, from the arguments of the call after the first; if `shaped`, a Given comes
        before them.
    inplace: whether the function always overwrites its first argument.
    """

    make: Callable[..., list[nn.Module]]
    inplace: bool = False
    shaped: bool = False


def number_given(value: Any) -> Any:
    """An argument that must be a number. Raises ValueError if it is only known when the network runs."""
    if isinstance(value, fx.Node):
        raise ValueError(f"{value.name!r}, which is known only when the network runs; give a number")
    return value


class Operator(NamedTuple):
    """One ONNX operator that a layer, or a part of it, is written as.

    Its inputs are the result of the operator before it (the layer's input for the
    first one), and then its constants. `takes` names other results instead of the
    one before: 0 is the layer's input, n is the result of the n-th operator.
    """

    type: str
    constants: Mapping[str, Tensor | None] = MappingProxyType({})
    attributes: Mapping[str, Any] = NOTHING
    takes: tuple[int, ...] | None = None


class OnnxReading(NamedTuple):
    """An ONNX operator that is read as one layer.

    newest: the last version of the operator that is read.
    fields: fields of the layer's section, each with the operator's attribute and its default.
    fixed: attributes that must have this value. arguments: fields of the section that always have this value.
    consumes: whether versions before opset 6 have the attribute consumed_inputs, which does not change the result.
    """

    operator: str
    newest: int
    fields: Mapping[str, tuple[str, float]] = MappingProxyType({})
    fixed: Mapping[str, Any] = NOTHING
    arguments: Mapping[str, Any] = NOTHING
    consumes: bool = True


class OnnxForm(NamedTuple):
    """A layer in ONNX: how it is written, and the operator that is read as this layer alone.

    reading: None where files contain it as a pattern of several operators (`interchange/onnxpatterns.py`), or as
        an operator that is read as other layers.
    """

    write: Callable[[Any], list[Operator]]
    reading: OnnxReading | None


def one_operator(name: str) -> Callable[[nn.Module], list[Operator]]:
    """The form of a layer that is one operator without attributes."""
    return lambda layer: [Operator(name)]
