"""A network as data: layers by type, with what their constructors take and where their inputs come from.

Each section's `type` is the layer that it stands for, and it has the arguments of
its constructor that decide what it computes, with torch's names and defaults.
Nothing here loads torch or runs anybody's code; `graphs.py` builds the network.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator

from certtrain.spec.activations import AnyActivation
from certtrain.spec.layer_section import LayerName, LayerSection, NotNegative, Number, Pair, by_type, pair
from certtrain.spec.section import LARGEST_SIZE, Positive, Section

NETWORK_INPUT = "input"  # what layers call the network's own input
MOST_LAYERS_IN_GRAPH = 1024  # more than any network that bounds are of use for; a hostile file may ask for more


def _padding(value: Any) -> Any:
    """A pair of counts, or "same"; what torch calls "valid" is none."""
    if value == "same":
        return value
    sides = pair(0 if value == "valid" else value)
    if not all(isinstance(side, int) and 0 <= side <= LARGEST_SIZE for side in sides) or len(sides) != 2:
        raise ValueError(f'{value!r} is neither a number from 0 to {LARGEST_SIZE}, nor two, nor "same" or "valid"')
    return tuple(sides)


Padding = Annotated[tuple[NotNegative, NotNegative], BeforeValidator(pair)]
Channels = Field(min_length=1, max_length=4096)


class LinearSection(LayerSection):
    type: Literal["Linear"]
    in_features: Positive
    out_features: Positive
    bias: bool = True


class Conv2dSection(LayerSection):
    type: Literal["Conv2d"]
    in_channels: Positive
    out_channels: Positive
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Annotated[tuple[int, int] | Literal["same"], BeforeValidator(_padding)] = (0, 0)
    dilation: Pair = (1, 1)
    groups: Positive = 1
    bias: bool = True


class BatchNorm1dSection(LayerSection):
    type: Literal["BatchNorm1d"]
    num_features: Positive
    eps: float = Field(1e-5, ge=0)
    momentum: float | None = Field(0.1, ge=0, le=1)
    affine: bool = True


class BatchNorm2dSection(LayerSection):
    type: Literal["BatchNorm2d"]
    num_features: Positive
    eps: float = Field(1e-5, ge=0)
    momentum: float | None = Field(0.1, ge=0, le=1)
    affine: bool = True


class NormalizeSection(LayerSection):
    type: Literal["Normalize"]
    mean: tuple[float, ...] = Channels
    std: tuple[Annotated[float, Field(gt=0)], ...] = Channels


class AvgPool2dSection(LayerSection):
    type: Literal["AvgPool2d"]
    kernel_size: Pair
    stride: Pair | None = None
    padding: Padding = (0, 0)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: Positive | None = None


class AdaptiveAvgPool2dSection(LayerSection):
    type: Literal["AdaptiveAvgPool2d"]
    output_size: Annotated[tuple[Positive | None, Positive | None], BeforeValidator(pair)]


class MaxPool2dSection(LayerSection):
    type: Literal["MaxPool2d"]
    kernel_size: Pair
    stride: Pair | None = None
    padding: Padding = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False


class FlattenSection(LayerSection):
    type: Literal["Flatten"]
    start_dim: int = Field(1, ge=1, le=8)
    end_dim: int = Field(-1, ge=-8, le=8)


class IdentitySection(LayerSection):
    type: Literal["Identity"]


class DropoutSection(LayerSection):
    type: Literal["Dropout"]
    p: float = Field(0.5, ge=0, le=1)


class AddSection(LayerSection):
    type: Literal["Add"]


class ConcatSection(LayerSection):
    type: Literal["Concat"]
    dim: Positive


class ReshapeSection(LayerSection):
    type: Literal["Reshape"]
    shape: tuple[Positive, ...] = Field(min_length=1, max_length=8)


class PermuteSection(LayerSection):
    type: Literal["Permute"]
    dims: tuple[Positive, ...] = Field(min_length=1, max_length=8)


class PadSection(LayerSection):
    type: Literal["Pad"]
    dim: Positive
    before: NotNegative
    after: NotNegative
    value: Number = 0.0


class SliceSection(LayerSection):
    type: Literal["Slice"]
    dim: Positive
    start: NotNegative
    stop: Positive
    step: Positive = 1


class SharedSection(LayerSection):
    """An earlier layer once more, with the same weights."""

    type: Literal["Shared"]
    layer: LayerName
    """That layer's name."""


AnyLayer = (
    LinearSection
    | Conv2dSection
    | BatchNorm1dSection
    | BatchNorm2dSection
    | NormalizeSection
    | AvgPool2dSection
    | AdaptiveAvgPool2dSection
    | MaxPool2dSection
    | FlattenSection
    | IdentitySection
    | DropoutSection
    | AddSection
    | ConcatSection
    | ReshapeSection
    | PermuteSection
    | PadSection
    | SliceSection
    | SharedSection
    | AnyActivation
)
SECTIONS: dict[str, type[LayerSection]] = by_type(get_args(AnyLayer))  # by the layer's name
JOINING = (AddSection, ConcatSection)  # the layers of two inputs
WEIGHTED = (
    LinearSection,
    Conv2dSection,
    BatchNorm1dSection,
    BatchNorm2dSection,
)  # the layers that it makes a difference to share


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
        if not isinstance(layers, (list, tuple)) or not 0 < len(layers) <= MOST_LAYERS_IN_GRAPH:
            raise ValueError(f"it is a list of one to {MOST_LAYERS_IN_GRAPH} layers")
        before = [NETWORK_INPUT, *(layer.get("name") if isinstance(layer, dict) else None for layer in layers[:-1])]
        pairs = zip(layers, before, strict=True)
        return [{"inputs": [name]} | layer if isinstance(layer, dict) else layer for layer, name in pairs]

    @model_validator(mode="after")
    def _wired(self) -> Self:
        _check_names([layer.name for layer in self.layers])
        _check_wires(self.layers)
        return self


def _check_names(names: Sequence[str]) -> None:
    known = {NETWORK_INPUT}
    for name in names:
        if name in known:
            raise ValueError(
                f"two layers are called {name!r}; each needs a name of its own, and none is {NETWORK_INPUT!r}"
            )
        known.add(name)
    for name in names:
        groups = {name[: dot.start()] for dot in re.finditer(r"\.", name)}
        if both := groups & known:
            raise ValueError(f"layer {name!r} is named as a part of {min(both)!r}, which is a layer itself")


def _check_wires(layers: Sequence[LayerSection]) -> None:
    known: dict[str, LayerSection | None] = {NETWORK_INPUT: None}
    used: set[str] = set()
    for layer in layers:
        for name in layer.inputs:
            if name not in known:
                raise ValueError(f"layer {layer.name!r} takes {name!r}, which is no earlier layer")
        if len(layer.inputs) != (2 if isinstance(layer, JOINING) else 1):
            raise ValueError(
                f"layer {layer.name!r} has {len(layer.inputs)} inputs; an Add and a Concat have two, all others one"
            )
        if isinstance(layer, SharedSection) and not isinstance(known.get(layer.layer), WEIGHTED):
            raise ValueError(f"layer {layer.name!r} shares {layer.layer!r}, which is no earlier layer with weights")
        used.update(layer.inputs)
        known[layer.name] = layer
    if unused := [layer.name for layer in layers[:-1] if layer.name not in used]:
        raise ValueError(f"nothing uses the result of layer {unused[0]!r}; only the last layer's is the network's")


ModuleSource = Annotated[str | Callable[..., Any], Field(union_mode="left_to_right")]


class ModuleSection(Section):
    """A network of the user's own: a callable that returns a torch Module, which is called when a run begins.

    It takes normalised images (B, C, H, W) and gives logits (B, K). Only its
    layers count: the weights start as the preset's `init` says.
    """

    name: Literal["module"]
    source: ModuleSource
    """A Python file and a name in it, like "mynet.py:MyNet"; in Python the class or function itself."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """What the callable is given by name. Parameters called `input_shape` and `classes` get (C, H, W) and K."""

    @field_validator("source", mode="before")
    @classmethod
    def _names_a_callable(cls, source: Any) -> Any:
        if callable(source) or (isinstance(source, str) and re.fullmatch(r"(?s).+\.py:[^\W\d]\w*", source)):
            return source
        raise ValueError('it names a Python file and a class or function in it, like "mynet.py:MyNet"')
