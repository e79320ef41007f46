"""The other forms of a layer: the functions that equal it, and the ONNX operators that it is written and read as.

Plain descriptions: `functions` looks them up when a forward pass is traced, `interchange` when a file is
written or read. Nothing here needs ONNX.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

NOTHING: Mapping[str, Any] = MappingProxyType({})


class FunctionForm(NamedTuple):
    """What a function equals.

    make: the layers, one after the other, from the call's arguments after the first; if `shaped`, after a Given.
    inplace: whether it writes its result over its first argument, whatever its arguments say.
    """

    make: Callable[..., list[nn.Module]]
    inplace: bool = False
    shaped: bool = False


def number_given(value: Any) -> Any:
    """An argument that must be a number. Raises ValueError if it is known only when the network runs."""
    if isinstance(value, fx.Node):
        raise ValueError(f"{value.name!r}, which is known only when the network runs; give a number")
    return value


class Operator(NamedTuple):
    """One ONNX operator that a layer, or a part of it, is written as.

    It takes what the operator before it gives, the first one what the layer
    takes, and then its constants; or instead the results named in `takes`, 0
    for the layer's input and n for the n-th operator's result.
    """

    type: str
    constants: Mapping[str, Tensor | None] = MappingProxyType({})
    attributes: Mapping[str, Any] = NOTHING
    takes: tuple[int, ...] | None = None


class OnnxReading(NamedTuple):
    """An ONNX operator that is read as one layer.

    newest: the last version of it that is read.
    fields: fields of the layer's section, each with the attribute that it is and the attribute's default.
    fixed: attributes of which no other value is read. arguments: fields of the section that are always the same.
    consumes: whether its versions before opset 6 have the attribute consumed_inputs, which says nothing of the result.
    """

    operator: str
    newest: int
    fields: Mapping[str, tuple[str, float]] = MappingProxyType({})
    fixed: Mapping[str, Any] = NOTHING
    arguments: Mapping[str, Any] = NOTHING
    consumes: bool = True


class OnnxForm(NamedTuple):
    """What a layer is in ONNX: how it is written, and the operator that is read as just this layer.

    reading: None where files have it as a pattern of several operators (`interchange/onnxpatterns.py`), or as
        an operator that is read as other layers.
    """

    write: Callable[[Any], list[Operator]]
    reading: OnnxReading | None


def one_operator(name: str) -> Callable[[nn.Module], list[Operator]]:
    """A layer that is one operator without attributes."""
    return lambda layer: [Operator(name)]
