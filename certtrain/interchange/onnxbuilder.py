"""What the readers of ONNX's operators build with: layers as data, one after the other."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from certtrain.interchange.onnxvalues import Node, OnnxValue
from certtrain.spec.shapes import Shape


class Activated(NamedTuple):
    """A layer that is an activation: its kind, and the value that it was made for, with what is gathered on it."""

    kind: str
    given: OnnxValue


class Builder(Protocol):
    """Layers that grow node by node, with their tensors.

    batch: the size of the batch's dimension, None where it is free.
    single: whether all is one input, so that nothing needs to keep apart.
    dtype: of the network. shapes: by layer, its result's. activated: the layers that are activations.
    """

    batch: int | None
    single: bool
    dtype: torch.dtype
    shapes: dict[str, Shape]
    activated: dict[str, Activated]

    def add(
        self, node: Node, kind: str, inputs: Sequence[OnnxValue], state: dict[str, Tensor], **arguments: Any
    ) -> OnnxValue:
        """Append a layer of that kind, which takes the results of earlier ones; gives back its own result."""

    def set_bias(self, value: OnnxValue, bias: Tensor, node: Node) -> None:
        """Give the linear layer that `value` is the result of the bias that it does not have."""

    def takes_bias(self, value: OnnxValue, name: str) -> bool:
        """Whether the result `name` is just that of a linear layer without bias, and nothing else uses it."""

    def takes_input_as(self, shape: Shape) -> bool:
        """Whether inputs come in that shape; the first that asks has a flat one so from the start."""
