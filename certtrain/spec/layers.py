"""A network as data: layers by type, with what their constructors take and where their inputs come from.

Each section is named after the layer that it stands for, and has the arguments
of its constructor that decide what it computes, with torch's names and defaults.
Nothing here loads torch or runs anybody's code; `graphs.py` builds the network.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator

from certtrain.spec.section import LARGEST, Positive, Section

INPUT = "input"  # what layers call the network's own input
MOST_LAYERS = 1024  # more than any network that bounds are of use for; a hostile file may ask for more
LARGEST_FLOAT = (2 - 2**-23) * 2.0**127  # of float32
DEEPEST = 8  # parts of a dotted name


def pair(value: Any) -> Any:
    """Height and width from one number for both."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return (value[0], value[0])
    return value if isinstance(value, (list, tuple)) else (value, value)


def _padding(value: Any) -> Any:
    """A pair of counts, or "same"; what torch calls "valid" is none."""
    if value == "same":
        return value
    sides = pair(0 if value == "valid" else value)
    if not all(isinstance(side, int) and 0 <= side <= LARGEST for side in sides) or len(sides) != 2:
        raise ValueError(f'{value!r} is neither a number from 0 to {LARGEST}, nor two, nor "same" or "valid"')
    return tuple(sides)


LayerName = Annotated[str, Field(max_length=200, pattern=rf"^\w+(\.\w+){{0,{DEEPEST - 1}}}$")]
Pair = Annotated[tuple[Positive, Positive], BeforeValidator(pair)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Padding = Annotated[tuple[Count, Count], BeforeValidator(pair)]
Channels = Field(min_length=1, max_length=4096)


class Layer(Section):
    """One layer, applied to the results of earlier ones."""

    name: LayerName
    """Dots make groups, as in torch's own names of nested modules."""
    type: str
    inputs: tuple[LayerName, ...]
    """The names of earlier layers, or "input"; by default the layer before."""


class Linear(Layer):
    type: Literal["Linear"]
    in_features: Positive
    out_features: Positive
    bias: bool = True


class Conv2d(Layer):
    type: Literal["Conv2d"]
    in_channels: Positive
    out_channels: Positive
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Annotated[tuple[int, int] | Literal["same"], BeforeValidator(_padding)] = (0, 0)
    dilation: Pair = (1, 1)
    groups: Positive = 1
    bias: bool = True


class BatchNorm1d(Layer):
    type: Literal["BatchNorm1d"]
    num_features: Positive
    eps: float = Field(1e-5, ge=0)
    momentum: float | None = Field(0.1, ge=0, le=1)
    affine: bool = True


class BatchNorm2d(Layer):
    type: Literal["BatchNorm2d"]
    num_features: Positive
    eps: float = Field(1e-5, ge=0)
    momentum: float | None = Field(0.1, ge=0, le=1)
    affine: bool = True


class Normalize(Layer):
    type: Literal["Normalize"]
    mean: tuple[float, ...] = Channels
    std: tuple[Annotated[float, Field(gt=0)], ...] = Channels


class AvgPool2d(Layer):
    type: Literal["AvgPool2d"]
    kernel_size: Pair
    stride: Pair | None = None
    padding: Padding = (0, 0)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: Positive | None = None


class AdaptiveAvgPool2d(Layer):
    type: Literal["AdaptiveAvgPool2d"]
    output_size: Annotated[tuple[Positive | None, Positive | None], BeforeValidator(pair)]


class MaxPool2d(Layer):
    type: Literal["MaxPool2d"]
    kernel_size: Pair
    stride: Pair | None = None
    padding: Padding = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False


class Flatten(Layer):
    type: Literal["Flatten"]
    start_dim: int = Field(1, ge=1, le=8)
    end_dim: int = Field(-1, ge=-8, le=8)


class Identity(Layer):
    type: Literal["Identity"]


class Dropout(Layer):
    type: Literal["Dropout"]
    p: float = Field(0.5, ge=0, le=1)


class ReLU(Layer):
    type: Literal["ReLU"]


class LeakyReLU(Layer):
    type: Literal["LeakyReLU"]
    negative_slope: float = Field(0.01, ge=0)


class Sigmoid(Layer):
    type: Literal["Sigmoid"]


class Tanh(Layer):
    type: Literal["Tanh"]


class Add(Layer):
    type: Literal["Add"]


class Concat(Layer):
    type: Literal["Concat"]
    dim: Positive


class Reshape(Layer):
    type: Literal["Reshape"]
    shape: tuple[Positive, ...] = Field(min_length=1, max_length=8)


class Permute(Layer):
    type: Literal["Permute"]
    dims: tuple[Positive, ...] = Field(min_length=1, max_length=8)


class Pad(Layer):
    type: Literal["Pad"]
    dim: Positive
    before: Count
    after: Count
    value: Annotated[float, Field(ge=-LARGEST_FLOAT, le=LARGEST_FLOAT)] = 0.0


class Slice(Layer):
    type: Literal["Slice"]
    dim: Positive
    start: Count
    stop: Positive
    step: Positive = 1


class Shared(Layer):
    """An earlier layer once more, with the same weights."""

    type: Literal["Shared"]
    layer: LayerName
    """That layer's name."""


AnyLayer = (
    Linear
    | Conv2d
    | BatchNorm1d
    | BatchNorm2d
    | Normalize
    | AvgPool2d
    | AdaptiveAvgPool2d
    | MaxPool2d
    | Flatten
    | Identity
    | Dropout
    | ReLU
    | LeakyReLU
    | Sigmoid
    | Tanh
    | Add
    | Concat
    | Reshape
    | Permute
    | Pad
    | Slice
    | Shared
)
SECTIONS: dict[str, type[Layer]] = {section.__name__: section for section in get_args(AnyLayer)}
JOINING = (Add, Concat)  # the layers of two inputs
WEIGHTED = (Linear, Conv2d, BatchNorm1d, BatchNorm2d)  # the layers that it makes a difference to share


class Origin(Section):
    """Whose code the layers were read from. Nothing is run or built by it."""

    source: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    sha256: str | None = None
    """Of the source file; None where the code came from no file of its own."""


class Graph(Section):
    """A network layer by layer, from normalised images to logits; the last layer gives the result."""

    name: Literal["graph"]
    layers: tuple[Annotated[AnyLayer, Field(discriminator="type")], ...]
    origin: Origin | None = None
    """Where the layers come from, if they were read from code."""

    @property
    def title(self) -> str:
        """What the network is called: as its code is, if it was read from code."""
        return self.name if self.origin is None else self.origin.source

    @field_validator("layers", mode="before")
    @classmethod
    def _chained(cls, layers: Any) -> Any:
        """Let a layer that names no inputs take the result of the layer before it."""
        if not isinstance(layers, (list, tuple)) or not 0 < len(layers) <= MOST_LAYERS:
            raise ValueError(f"it is a list of one to {MOST_LAYERS} layers")
        before = [INPUT, *(layer.get("name") if isinstance(layer, dict) else None for layer in layers[:-1])]
        pairs = zip(layers, before, strict=True)
        return [{"inputs": [name]} | layer if isinstance(layer, dict) else layer for layer, name in pairs]

    @model_validator(mode="after")
    def _wired(self) -> Self:
        _check_names([layer.name for layer in self.layers])
        _check_wires(self.layers)
        return self


def _check_names(names: Sequence[str]) -> None:
    known = {INPUT}
    for name in names:
        if name in known:
            raise ValueError(f"two layers are called {name!r}; each needs a name of its own, and none is {INPUT!r}")
        known.add(name)
    for name in names:
        groups = {name[: dot.start()] for dot in re.finditer(r"\.", name)}
        if both := groups & known:
            raise ValueError(f"layer {name!r} is named as a part of {min(both)!r}, which is a layer itself")


def _check_wires(layers: Sequence[Layer]) -> None:
    known: dict[str, Layer | None] = {INPUT: None}
    used: set[str] = set()
    for layer in layers:
        for name in layer.inputs:
            if name not in known:
                raise ValueError(f"layer {layer.name!r} takes {name!r}, which is no earlier layer")
        if len(layer.inputs) != (2 if isinstance(layer, JOINING) else 1):
            raise ValueError(
                f"layer {layer.name!r} has {len(layer.inputs)} inputs; an Add and a Concat have two, all others one"
            )
        if isinstance(layer, Shared) and not isinstance(known.get(layer.layer), WEIGHTED):
            raise ValueError(f"layer {layer.name!r} shares {layer.layer!r}, which is no earlier layer with weights")
        used.update(layer.inputs)
        known[layer.name] = layer
    if unused := [layer.name for layer in layers[:-1] if layer.name not in used]:
        raise ValueError(f"nothing uses the result of layer {unused[0]!r}; only the last layer's is the network's")


Source = Annotated[str | Callable[..., Any], Field(union_mode="left_to_right")]


class Module(Section):
    """A network of the user's own: a callable that returns a torch Module, which is called when a run begins.

    It takes normalised images (B, C, H, W) and gives logits (B, K). Only its
    layers count: the weights start as the preset's `init` says.
    """

    name: Literal["module"]
    source: Source
    """A Python file and a name in it, like "mynet.py:MyNet"; in Python the class or function itself."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """What the callable is given by name. Parameters called `input_shape` and `classes` get (C, H, W) and K."""

    @field_validator("source", mode="before")
    @classmethod
    def _names_a_callable(cls, source: Any) -> Any:
        if callable(source) or (isinstance(source, str) and re.fullmatch(r"(?s).+\.py:[^\W\d]\w*", source)):
            return source
        raise ValueError('it names a Python file and a class or function in it, like "mynet.py:MyNet"')
