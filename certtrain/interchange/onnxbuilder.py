"""The interface by which the readers of ONNX operators append layers, as data, to a network."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from certtrain.interchange.onnxvalues import Node, OnnxValue
from certtrain.spec.shapes import Shape


class ActivationLayer(NamedTuple):
    """An activation layer: its kind, and the value that it is applied to, with its affine function."""

    kind: str
    given: OnnxValue


class Builder(Protocol):
    """Layers with their tensors, appended node by node.

    batch: the size of the batch's dimension, None if it is free.
    single_input: whether the batch is one input, so that its dimension may be mixed with others.
    dtype: of the network. shapes: of the results, by layer. activated: the activation layers.
    combined: the nodes at which operators are combined that may round more, one by one, than certificates add.
    """

    batch: int | None
    single_input: bool
    dtype: torch.dtype
    shapes: dict[str, Shape]
    activated: dict[str, ActivationLayer]
    combined: list[str]

    def add(
        self, node: Node, kind: str, inputs: Sequence[OnnxValue], state: dict[str, Tensor], **arguments: Any
    ) -> OnnxValue:
        """Append a layer of that kind, applied to earlier results; returns its result."""

    def set_bias(self, value: OnnxValue, bias: Tensor, node: Node) -> None:
        """Set the bias of the linear layer without one whose result is `value`."""

    def takes_bias(self, value: OnnxValue, name: str) -> bool:
        """Whether the result `name` is that of a linear layer without bias, unchanged and used only once."""

    def takes_input_as(self, shape: Shape) -> bool:
        """Whether the network's inputs have that shape. The first call turns flat inputs into this shape."""
