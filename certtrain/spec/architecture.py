"""The networks that a preset names: their fields, validated, and free of torch."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from certtrain.spec.layers import Graph
from certtrain.spec.section import Positive, Section

MOST_LAYERS = 256  # of one kind in a row; each is built before a file's tensors are compared with it
Blocks = Annotated[int, Field(ge=1, le=64)]  # each is built before a file's tensors are compared with it


class CNN7(Section):
    """The seven-layer network of the paper: five 3×3 convolutions, two linear layers."""

    name: Literal["cnn7"]
    width: Positive = 64
    """Channels of the first two convolutions; the other three have twice as many."""
    linear_size: Positive = 512
    """Units of the hidden linear layer."""
    last_stride: Literal[1, 2] = 1
    """Stride of the last convolution; 2 for images of 64 pixels."""
    batch_norm: bool = True
    """BatchNorm after every layer but the last."""


class DM(Section):
    """The small and the medium network of Gowal et al. 2018; their large one is cnn7 without BatchNorm."""

    name: Literal["dm-small", "dm-medium"]
    batch_norm: bool = True
    """BatchNorm after every layer but the last; the paper's have none."""


class CNN(Section):
    """Convolutions one after the other, then hidden linear layers."""

    name: Literal["cnn"]
    channels: tuple[Positive, ...] = Field(min_length=1, max_length=MOST_LAYERS)
    """Channels of each convolution."""
    kernels: tuple[Positive, ...]
    """Kernel size of each convolution."""
    strides: tuple[Positive, ...]
    """Stride of each convolution."""
    paddings: tuple[Annotated[int, Field(ge=0, le=2**10)], ...] | None = None
    """Pixels of zeros on each side of each convolution's input; (kernel − 1) // 2 if not given."""
    linear: tuple[Positive, ...] = Field((), max_length=MOST_LAYERS)
    """Units of each hidden linear layer."""
    batch_norm: bool = True
    """BatchNorm after every layer but the last."""

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ValueError("channels, kernels and strides must be equally long")
        if self.paddings is not None and len(self.paddings) != len(self.channels):
            raise ValueError("paddings must be as long as channels, or left out")
        return self


class MLP(Section):
    """Hidden linear layers on the flattened image."""

    name: Literal["mlp"]
    hidden: tuple[Positive, ...] = Field(min_length=1, max_length=MOST_LAYERS)
    """Units of each hidden layer."""
    batch_norm: bool = True
    """BatchNorm after every layer but the last."""


class Residual(Section):
    """What residual networks share: a 3×3 convolution, stages of blocks, one hidden linear layer, and the last."""

    stem: Positive
    """Channels of the first convolution."""
    blocks: tuple[Blocks, ...] = Field((1, 1, 1), min_length=1, max_length=8)
    """Blocks of each stage; channels double from stage to stage."""
    strides: tuple[Positive, ...] = (1, 2, 2)
    """Stride of each stage's first block."""
    linear_size: Positive = 512
    """Units of the hidden linear layer."""
    batch_norm: bool = True
    """BatchNorm after every layer but the last."""

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        if len(self.blocks) != len(self.strides):
            raise ValueError("blocks and strides must be equally long: one entry a stage")
        return self


class WideResNet(Residual):
    """Blocks of two 3×3 convolutions; with its defaults the paper's Wide-ResNet for MNIST and CIFAR-10."""

    name: Literal["wide-resnet"]
    stem: Positive = 16
    widen_factor: Positive = 8
    """The first stage has so many times the stem's channels; 10 for TinyImageNet in the paper."""


class ResNeXt(Residual):
    """Blocks of a 1×1, a grouped 3×3 and a 1×1 convolution; with its defaults the paper's for MNIST and CIFAR-10."""

    name: Literal["resnext"]
    stem: Positive = 64
    cardinality: Positive = 2
    """Groups of each 3×3 convolution."""
    bottleneck_width: Positive = 32
    """Channels of a group in the first stage; a block gives twice as many as all its groups have."""


Named = CNN7 | DM | CNN | MLP | WideResNet | ResNeXt

# What a model file may hold: all of it is data. A preset may name a Module as well, which is code.
Architecture = Annotated[Named | Graph, Field(discriminator="name")]

NETWORKS: dict[str, type[Section]] = {
    name: section for section in get_args(Named) for name in get_args(section.model_fields["name"].annotation)
}
"""Each named network's section by its name in a preset."""
