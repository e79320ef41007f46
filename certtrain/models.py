"""The networks that presets name. The first layer normalises, so a model takes pixels in [0, 1]."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from certtrain.bounds.graph import Normalize
from certtrain.errors import DataError
from certtrain.graphs import build_graph
from certtrain.layers import Graph
from certtrain.preset import CNN, CNN7, MLP, Architecture
from certtrain.section import Section

Shape = tuple[int, int, int]
Layers = OrderedDict[str, nn.Module]


@dataclass(frozen=True)
class InputSpec:
    """What a network takes and tells apart: images (C, H, W) with channel means and deviations; K classes."""

    shape: Shape
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_model(architecture: Architecture, spec: InputSpec) -> nn.Sequential:
    """An untrained network of named layers, from pixels (B, C, H, W) to logits (B, K).

    A graph's layers come after the normalisation, all of them under "network".

    Raises DataError if the images are too small for it, or the normalisation
    has another number of channels than the images; NetworkError if a graph's
    layers do not fit the images or the classes.
    """
    if not len(spec.mean) == len(spec.std) == spec.shape[0]:
        raise DataError(
            f"images have {spec.shape[0]} channels, but mean and std have {len(spec.mean)} and {len(spec.std)}"
        )
    layers: Layers = OrderedDict(normalize=Normalize(spec.mean, spec.std))
    if isinstance(architecture, Graph):
        layers["network"] = build_graph(architecture, spec.shape, spec.classes)
        return nn.Sequential(layers)
    features = BUILDERS[type(architecture)](architecture, spec.shape, layers)
    layers["head"] = nn.Linear(features, spec.classes)
    return nn.Sequential(layers)


def _cnn7(a: CNN7, shape: Shape, layers: Layers) -> int:
    wide = 2 * a.width
    return _cnn(
        CNN(
            name="cnn",
            channels=(a.width, a.width, wide, wide, wide),
            kernels=(3,) * 5,
            strides=(1, 1, 2, 1, a.last_stride),
            linear=(a.linear_size,),
            batch_norm=a.batch_norm,
        ),
        shape,
        layers,
    )


def _cnn(a: CNN, shape: Shape, layers: Layers) -> int:
    for number, (channels, kernel, stride) in enumerate(zip(a.channels, a.kernels, a.strides, strict=True), start=1):
        padding = (kernel - 1) // 2
        conv = nn.Conv2d(shape[0], channels, kernel, stride, padding)
        _append(layers, f"conv{number}", conv, nn.BatchNorm2d(channels) if a.batch_norm else None)
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in shape[1:])
        if min(height, width) < 1:
            raise DataError(f"images of {shape[1]}×{shape[2]} pixels at convolution {number} are too small for it")
        shape = (channels, height, width)
    layers["flatten"] = nn.Flatten()
    return _linear(layers, shape[0] * shape[1] * shape[2], a.linear, a.batch_norm)


def _mlp(a: MLP, shape: Shape, layers: Layers) -> int:
    layers["flatten"] = nn.Flatten()
    return _linear(layers, shape[0] * shape[1] * shape[2], a.hidden, a.batch_norm)


def _linear(layers: Layers, features: int, sizes: tuple[int, ...], batch_norm: bool) -> int:
    for number, size in enumerate(sizes, start=1):
        _append(layers, f"linear{number}", nn.Linear(features, size), nn.BatchNorm1d(size) if batch_norm else None)
        features = size
    return features


def _append(layers: Layers, name: str, layer: nn.Module, batch_norm: nn.Module | None) -> None:
    layers[name] = layer
    if batch_norm is not None:
        layers[f"{name}_bn"] = batch_norm
    layers[f"{name}_relu"] = nn.ReLU()


BUILDERS: dict[type[Section], Callable[..., int]] = {CNN7: _cnn7, CNN: _cnn, MLP: _mlp}
