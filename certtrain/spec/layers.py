"""A network as data: its layers, each with its type, the arguments of its constructor, and its inputs.

Each section's `type` is the name of a layer's class. Its fields are the arguments
of the constructor that decide what the layer computes, with torch's names and
defaults. Nothing here loads torch or runs a user's code; `network/graphs.py`
builds the network.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator

from certtrain.spec.activations import AnyActivation
from certtrain.spec.layer_section import LayerName, LayerSection, NotNegative, Number, Pair, by_type, pair
from certtrain.spec.section import LARGEST_SIZE, Positive, Section

NETWORK_INPUT = "input"  # the name of the network's input among the inputs of layers
MOST_LAYERS_IN_GRAPH = 1024  # more than in any network with useful bounds; a hostile file may have more


def _padding(value: Any) -> Any:
    """A pair of numbers, or "same"; "valid" is no padding."""
    if value == "same":
        return value
    sides = pair(0 if value == "valid" else value)
    if not all(isinstance(side, int) and 0 <= side <= LARGEST_SIZE for side in sides) or len(sides) != 2:
        raise ValueError(f'{value!r} must be one or two numbers from 0 to {LARGEST_SIZE}, or "same" or "valid"')
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
    """An earlier layer, applied again with the same weights."""

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
JOINING = (AddSection, ConcatSection)  # the layers with two inputs
WEIGHTED = (
    LinearSection,
    Conv2dSection,
    BatchNorm1dSection,
    BatchNorm2dSection,
)  # the layers with weights or statistics, which can be shared


class Origin(Section):
    """The code from which the layers were read. It is not run again, and nothing is built from it."""

    source: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    sha256: str | None = None
    """SHA-256 of the source file; None if the code did not come from a file of its own."""


class Graph(Section):
    """A network as a list of layers, from normalised images to logits, which are the result of the last layer."""

    name: Literal["graph"]
    layers: tuple[Annotated[AnyLayer, Field(discriminator="type")], ...]
    """The layers, each after those that give its inputs."""
    origin: Origin | None = None
    """The code from which the layers were read; None if there was none."""

    @property
    def title(self) -> str:
        """The network's name in messages: that of its code, if it was read from code."""
        return self.name if self.origin is None else self.origin.source

    @field_validator("layers", mode="before")
    @classmethod
    def _with_inputs(cls, layers: Any) -> Any:
        """Give a layer that names no inputs the result of the layer before it."""
        if not isinstance(layers, (list, tuple)) or not 0 < len(layers) <= MOST_LAYERS_IN_GRAPH:
            raise ValueError(f"it must be a list of one to {MOST_LAYERS_IN_GRAPH} layers")
        before = [NETWORK_INPUT, *(layer.get("name") if isinstance(layer, dict) else None for layer in layers[:-1])]
        pairs = zip(layers, before, strict=True)
        return [{"inputs": [name]} | layer if isinstance(layer, dict) else layer for layer, name in pairs]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_names([layer.name for layer in self.layers])
        _check_inputs(self.layers)
        return self


def _check_names(names: Sequence[str]) -> None:
    known = {NETWORK_INPUT}
    for name in names:
        if name in known:
            raise ValueError(
                f"two layers have the name {name!r}; each needs a name of its own, other than {NETWORK_INPUT!r}"
            )
        known.add(name)
    for name in names:
        groups = {name[: dot.start()] for dot in re.finditer(r"\.", name)}
        if both := groups & known:
            raise ValueError(f"the name of layer {name!r} makes {min(both)!r} a group, but that is a layer")


def _check_inputs(layers: Sequence[LayerSection]) -> None:
    known: dict[str, LayerSection | None] = {NETWORK_INPUT: None}
    used: set[str] = set()
    for layer in layers:
        for name in layer.inputs:
            if name not in known:
                raise ValueError(f"layer {layer.name!r} has the input {name!r}, which is not an earlier layer")
        if len(layer.inputs) != (2 if isinstance(layer, JOINING) else 1):
            raise ValueError(
                f"layer {layer.name!r} has {len(layer.inputs)} inputs; an Add and a Concat have two, all others one"
            )
        if isinstance(layer, SharedSection) and not isinstance(known.get(layer.layer), WEIGHTED):
            raise ValueError(f"layer {layer.name!r} shares {layer.layer!r}, which is not an earlier layer with weights")
        used.update(layer.inputs)
        known[layer.name] = layer
    if unused := [layer.name for layer in layers[:-1] if layer.name not in used]:
        raise ValueError(f"no layer uses the result of {unused[0]!r}; the network's result is that of the last layer")


ModuleSource = Annotated[str | Callable[..., Any], Field(union_mode="left_to_right")]


class ModuleSection(Section):
    """A user's own network: a callable that returns a torch Module, and that is called when a run begins.

    The module maps normalised images (B, C, H, W) to logits (B, K). Only its layers
    are used: the weights are initialised by the preset's `init`.
    """

    name: Literal["module"]
    source: ModuleSource
    """A Python file and a name in it, like "mynet.py:MyNet"; in Python the class or function itself."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments for the callable. Parameters named `input_shape` and `classes` also get (C, H, W) and K."""

    @field_validator("source", mode="before")
    @classmethod
    def _names_a_callable(cls, source: Any) -> Any:
        if callable(source) or (isinstance(source, str) and re.fullmatch(r"(?s).+\.py:[^\W\d]\w*", source)):
            return source
        raise ValueError('it must name a Python file and a class or function in it, like "mynet.py:MyNet"')
