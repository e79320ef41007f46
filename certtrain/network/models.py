"""The networks that presets name. Their first layer normalises, so a model takes pixels in [0, 1]."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from certtrain.bounds.graph import Normalize
from certtrain.errors import DataError
from certtrain.network.blocks import Layers, ResidualBlock, append_layer, output_shape
from certtrain.network.graphs import build_graph
from certtrain.spec.architecture import CNN, CNN3, CNN5, CNN7, DM, MLP, Architecture, Residual, ResNeXt, WideResNet
from certtrain.spec.layers import Graph
from certtrain.spec.section import Section
from certtrain.spec.shapes import ImageShape


@dataclass(frozen=True)
class InputSpec:
    """The images (C, H, W) that a network takes, the number of classes, and the channel means and deviations."""

    shape: ImageShape
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_model(architecture: Architecture, spec: InputSpec) -> nn.Sequential:
    """A network that is not initialised, with named layers, from pixels (B, C, H, W) to logits (B, K).

    The layers of a graph follow the normalisation, in the group "network".

    Raises DataError if the images are too small for the network, or the
    normalisation has another number of channels than the images; NetworkError if
    the layers of a graph do not fit the images or the classes.
    """
    if not len(spec.mean) == len(spec.std) == spec.shape[0]:
        raise DataError(
            f"images have {spec.shape[0]} channels, but mean and std have {len(spec.mean)} and {len(spec.std)}"
        )
    layers = Layers(normalize=Normalize(spec.mean, spec.std))
    if isinstance(architecture, Graph):
        layers["network"] = build_graph(architecture, spec.shape, spec.classes)
        return nn.Sequential(layers)
    features = BUILDERS[type(architecture)](architecture, spec.shape, layers)
    layers["head"] = nn.Linear(features, spec.classes)
    return nn.Sequential(layers)


# Each builder appends the layers of a network but the last, and returns the number of features before that.


def _cnn7(a: CNN7, shape: ImageShape, layers: Layers) -> int:
    wide = 2 * a.width
    cnn = CNN(
        name="cnn",
        channels=(a.width, a.width, wide, wide, wide),
        kernels=(3,) * 5,
        strides=(1, 1, 2, 1, a.last_stride),
        linear=(a.linear_size,),
        batch_norm=a.batch_norm,
    )
    return _cnn(cnn, shape, layers)


def _cnn5(a: CNN5, shape: ImageShape, layers: Layers) -> int:
    cnn = CNN(
        name="cnn",
        channels=(a.width, a.width, 2 * a.width),
        kernels=(3, 4, 4),
        strides=(1, 2, 2),
        linear=(a.linear_size,),
        batch_norm=a.batch_norm,
    )
    return _cnn(cnn, shape, layers)


def _cnn3(a: CNN3, shape: ImageShape, layers: Layers) -> int:
    channels = (a.width, 2 * a.width)
    cnn = CNN(name="cnn", channels=channels, kernels=(5, 4), strides=(2, 2), batch_norm=a.batch_norm)
    return _cnn(cnn, shape, layers)


DM_NETWORKS = {
    "dm-small": CNN(name="cnn", channels=(16, 32), kernels=(4, 4), strides=(2, 1), paddings=(0,) * 2, linear=(100,)),
    "dm-medium": CNN(
        name="cnn",
        channels=(32, 32, 64, 64),
        kernels=(3, 4, 3, 4),
        strides=(1, 2, 1, 2),
        paddings=(0,) * 4,
        linear=(512, 512),
    ),
}


def _dm(a: DM, shape: ImageShape, layers: Layers) -> int:
    return _cnn(DM_NETWORKS[a.name].model_copy(update={"batch_norm": a.batch_norm}), shape, layers)


def _cnn(a: CNN, shape: ImageShape, layers: Layers) -> int:
    paddings = a.paddings or tuple((kernel - 1) // 2 for kernel in a.kernels)
    sizes = zip(a.channels, a.kernels, a.strides, paddings, strict=True)
    for number, (channels, kernel, stride, padding) in enumerate(sizes, start=1):
        conv = nn.Conv2d(shape[0], channels, kernel, stride, padding)
        append_layer(layers, f"conv{number}", conv, batch_norm=a.batch_norm)
        before, shape = shape, output_shape(conv, shape)
        if min(shape) < 1:
            raise DataError(f"images of {before[1]}×{before[2]} pixels at convolution {number} are too small for it")
    return _dense(layers, shape, a.linear, a.batch_norm)


def _mlp(a: MLP, shape: ImageShape, layers: Layers) -> int:
    return _dense(layers, shape, a.hidden, a.batch_norm)


def _dense(layers: Layers, shape: ImageShape, sizes: tuple[int, ...], batch_norm: bool) -> int:
    layers["flatten"] = nn.Flatten()
    features = shape[0] * shape[1] * shape[2]
    for number, size in enumerate(sizes, start=1):
        append_layer(layers, f"linear{number}", nn.Linear(features, size), batch_norm=batch_norm)
        features = size
    return features


def _wide_resnet(a: WideResNet, shape: ImageShape, layers: Layers) -> int:
    def body(channels: int, stage: int, stride: int) -> list[nn.Conv2d]:
        wide = a.stem * a.widen_factor * 2**stage
        return [nn.Conv2d(channels, wide, 3, stride, 1), nn.Conv2d(wide, wide, 3, 1, 1)]

    return _residual(a, shape, layers, body)


def _resnext(a: ResNeXt, shape: ImageShape, layers: Layers) -> int:
    def body(channels: int, stage: int, stride: int) -> list[nn.Conv2d]:
        inner = a.cardinality * a.bottleneck_width * 2**stage
        grouped = nn.Conv2d(inner, inner, 3, stride, 1, groups=a.cardinality)
        return [nn.Conv2d(channels, inner, 1), grouped, nn.Conv2d(inner, 2 * inner, 1)]

    return _residual(a, shape, layers, body)


Body = Callable[[int, int, int], list[nn.Conv2d]]
"""Returns the convolutions of a block, from its input channels, its 0-based stage, and its stride."""


def _residual(a: Residual, shape: ImageShape, layers: Layers, body: Body) -> int:
    append_layer(layers, "stem", nn.Conv2d(shape[0], a.stem, 3, 1, 1), batch_norm=a.batch_norm)
    shape = (a.stem, *shape[1:])
    places = [(stage, n) for stage, blocks in enumerate(a.blocks) for n in range(blocks)]
    for number, (stage, n) in enumerate(places, start=1):
        convolutions = body(shape[0], stage, 1 if n else a.strides[stage])
        layers[f"block{number}"] = ResidualBlock(convolutions, batch_norm=a.batch_norm)
        for conv in convolutions:
            shape = output_shape(conv, shape)
    return _dense(layers, shape, (a.linear_size,), a.batch_norm)


BUILDERS: dict[type[Section], Callable[..., int]] = {
    CNN7: _cnn7,
    CNN5: _cnn5,
    CNN3: _cnn3,
    DM: _dm,
    CNN: _cnn,
    MLP: _mlp,
    WideResNet: _wide_resnet,
    ResNeXt: _resnext,
}
