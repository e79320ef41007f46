"""A network as a list of layer calls, and layers that torch does not have."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from certtrain.errors import DataError, UnsupportedLayer
from certtrain.spec.shapes import Shape

_Result = TypeVar("_Result")


class Normalize(nn.Module):
    """(x − mean) / std per channel: the layer that lets a network take pixels in [0, 1].

    `mean` and `std` have one entry per channel. Input (B, C, H, W); DataError for any other shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # Broadcasting would turn an image of one channel into one of many.
        if x.dim() != 4 or x.shape[1] != len(self.mean):
            raise DataError(f"the network takes images of shape (B, {len(self.mean)}, H, W), not {tuple(x.shape)}")
        return (x - self.mean) / self.std


class Add(nn.Module):
    """x + y: the sum that ends a residual block."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class LayerCall(NamedTuple):
    """One layer applied to earlier values. Value 0 is the network's input, value i + 1 the result of call i."""

    name: str
    layer: nn.Module
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class LayerGraph:
    """A network's layers in the order of its forward pass; the last call gives the output.

    It refers to the network's own layers, so it stays valid while their weights change.

    shape: the shape of one input, without the batch, if the forward pass reads
        it: then the layers are for inputs of this shape only. Else None.
    """

    calls: tuple[LayerCall, ...]
    shape: Shape | None = None

    @property
    def head(self) -> nn.Linear | None:
        """The last layer if it is linear, so that it can be elided; else None."""
        layer = self.calls[-1].layer
        return layer if isinstance(layer, nn.Linear) else None

    def check_input(self, shape: Shape) -> None:
        """Raise DataError if these are not the layers for inputs of shape (B, …)."""
        if self.shape not in (None, shape[1:]):
            raise DataError(
                f"the network was read for inputs of shape (B, {', '.join(map(str, self.shape))}), on which its "
                f"forward pass depends, but these have shape {tuple(shape)}; read it again for them"
            )

    def up_to(self, value: int) -> "LayerGraph":
        """The network whose output is this value: the calls that it depends on."""
        wanted = {value}
        for number in range(value, 0, -1):
            if number in wanted:
                wanted.update(self.calls[number - 1].inputs)
        kept = [number for number in sorted(wanted) if number]
        places = {0: 0} | {number: place for place, number in enumerate(kept, start=1)}
        calls = (self.calls[number - 1] for number in kept)
        return replace(self, calls=tuple(call._replace(inputs=tuple(places[i] for i in call.inputs)) for call in calls))

    def split(self, value: int) -> "tuple[LayerGraph, LayerGraph]":
        """The part that computes this value, and the part that takes it as its input.

        Raises UnsupportedLayer where the second part needs an earlier value, or a part would have no layer; `cuts`
        gives the values at which the network can be split.
        """
        if value not in self.cuts():
            names = ", ".join(repr(self.calls[cut - 1].name) for cut in self.cuts())
            raise UnsupportedLayer(
                f"the network cannot be split at value {value}; it can be split after {names or 'no layer'}"
            )
        rest = (call._replace(inputs=tuple(i - value for i in call.inputs)) for call in self.calls[value:])
        return self.up_to(value), LayerGraph(tuple(rest))

    def cuts(self) -> list[int]:
        """The values between input and output after which no call takes an earlier value."""
        inner = range(1, len(self.calls))
        return [value for value in inner if all(min(call.inputs) >= value for call in self.calls[value:])]

    def value_of(self, name: str) -> int:
        """The value that is the result of the call of that name. Raises UnsupportedLayer if there is none."""
        for value, call in enumerate(self.calls, start=1):
            if call.name == name:
                return value
        raise UnsupportedLayer(f"the network has no layer {name!r}; it has {', '.join(c.name for c in self.calls)}")

    def description(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """The name, layer description and inputs of each call; equal for networks of equal layers."""
        return [(call.name, repr(call.layer), call.inputs) for call in self.calls]

    def last_uses(self) -> list[list[int]]:
        """For each call, the values that are used there for the last time."""
        last = {value: i for i, call in enumerate(self.calls) for value in call.inputs}
        done: list[list[int]] = [[] for _ in self.calls]
        for value, i in last.items():
            done[i].append(value)
        return done

    def walk(self, start: _Result, through: Callable[..., _Result]) -> Iterator[_Result]:
        """The result of each call, in order, by `through(call, *inputs)`. Values are dropped after their last use."""
        values = {0: start}
        for number, (call, done) in enumerate(zip(self.calls, self.last_uses(), strict=True)):
            values[number + 1] = through(call, *(values[value] for value in call.inputs))
            yield values[number + 1]
            for value in done:
                del values[value]

    def results(self, x: Tensor) -> Iterator[Tensor]:
        """The result of each call for the inputs `x` (B, …), in order, as the layers compute it."""
        return self.walk(x, lambda call, *inputs: call.layer(*inputs))
