"""The networks that a preset can name: their fields, validated; without torch."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from certtrain.spec.layers import Graph
from certtrain.spec.section import Positive, Section

# Limits, since a network is built before it is compared with the tensors of a file, which may be hostile.
MOST_LAYERS = 256  # of one kind in a row
Blocks = Annotated[int, Field(ge=1, le=64)]


class CNN7(Section):
    """The seven-layer network of Shi et al. 2021: five 3×3 convolutions and two linear layers."""

    name: Literal["cnn7"]
    width: Positive = 64
    """Channels of the first two convolutions; the other three have twice as many."""
    linear_size: Positive = 512
    """Units of the hidden linear layer."""
    last_stride: Literal[1, 2] = 1
    """Stride of the last convolution; 2 for images of 64 pixels."""
    batch_norm: bool = True
    """BatchNorm after every layer but the last."""


class CNN3(Section):
    """A network of three layers: a 5×5 and a 4×4 convolution, both of stride 2, and the output layer.

    As CTRAIN has its CNN-3 (Kaulen and Hoos 2025). Other code of the field has the same layers with a width of 16.
    """

    name: Literal["cnn3"]
    width: Positive = 64
    """Channels of the first convolution; the second has twice as many."""
    batch_norm: bool = True
    """BatchNorm after every layer but the last."""


class CNN5(Section):
    """A network of five layers: a 3×3 convolution, two 4×4 ones of stride 2, and two linear layers.

    As CTRAIN has its CNN-5 (Kaulen and Hoos 2025). Other code of the field has the same layers with a width of 16.
    """

    name: Literal["cnn5"]
    width: Positive = 64
    """Channels of the first two convolutions; the third has twice as many."""
    linear_size: Positive = 512
    """Units of the hidden linear layer."""
    batch_norm: bool = True
    """BatchNorm after every layer but the last."""


class DM(Section):
    """The small or the medium network of Gowal et al. 2018. Their large one is cnn7 without BatchNorm."""

    name: Literal["dm-small", "dm-medium"]
    batch_norm: bool = True
    """BatchNorm after every layer but the last; the networks of the paper have none."""


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
    """Zero padding of each convolution, in pixels on each side; (kernel − 1) // 2 if not given."""
    linear: tuple[Positive, ...] = Field((), max_length=MOST_LAYERS)
    """Units of each hidden linear layer."""
    batch_norm: bool = True
    """BatchNorm after every layer but the last."""

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ValueError("channels, kernels and strides must have the same length")
        if self.paddings is not None and len(self.paddings) != len(self.channels):
            raise ValueError("paddings must have the same length as channels, or be left out")
        return self


class MLP(Section):
    """Hidden linear layers on the flattened image."""

    name: Literal["mlp"]
    hidden: tuple[Positive, ...] = Field(min_length=1, max_length=MOST_LAYERS)
    """Units of each hidden layer."""
    batch_norm: bool = True
    """BatchNorm after every layer but the last."""


class Residual(Section):
    """The common fields of residual networks: a 3×3 convolution, stages of blocks, and two linear layers."""

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
            raise ValueError("blocks and strides must have the same length: one entry for each stage")
        return self


class WideResNet(Residual):
    """Blocks of two 3×3 convolutions; by default the Wide-ResNet of Shi et al. 2021 for MNIST and CIFAR-10."""

    name: Literal["wide-resnet"]
    stem: Positive = 16
    widen_factor: Positive = 8
    """Channels of the first stage, as a multiple of the stem's; 10 for TinyImageNet in Shi et al. 2021."""


class ResNeXt(Residual):
    """Blocks of a 1×1, a grouped 3×3 and a 1×1 convolution; by default that of Shi et al. for MNIST and CIFAR-10."""

    name: Literal["resnext"]
    stem: Positive = 64
    cardinality: Positive = 2
    """Groups of each 3×3 convolution."""
    bottleneck_width: Positive = 32
    """Channels of a group in the first stage; a block's output has twice the channels of all its groups."""


Named = CNN7 | CNN5 | CNN3 | DM | CNN | MLP | WideResNet | ResNeXt

# A network in a model file, which is data only. A preset may also name a module, which is code.
Architecture = Annotated[Named | Graph, Field(discriminator="name")]

NETWORKS: dict[str, type[Section]] = {
    name: section for section in get_args(Named) for name in get_args(section.model_fields["name"].annotation)
}
"""The section of each network by its name in a preset."""
