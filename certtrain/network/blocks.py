"""The blocks of networks: a layer with its BatchNorm and ReLU, and the residual block."""

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from certtrain.bounds.graph import Add
from certtrain.spec.shapes import ImageShape

Layers = OrderedDict[str, nn.Module]


def append_layer(
    layers: Layers, name: str, layer: nn.Conv2d | nn.Linear, *, batch_norm: bool, relu: bool = True
) -> None:
    """Append `layer` to `layers`, then BatchNorm and ReLU if wanted, whose names begin with `name`."""
    layers[name] = layer
    if batch_norm:
        layers[f"{name}_bn"] = _batch_norm(layer)
    if relu:
        layers[f"{name}_relu"] = nn.ReLU()


def _batch_norm(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return nn.BatchNorm2d(layer.out_channels)
    return nn.BatchNorm1d(layer.out_features)


def output_shape(conv: nn.Conv2d, shape: ImageShape) -> ImageShape:
    """The shape of the result of `conv` for images (C, H, W); it has sides below 1 if the images are too small."""
    (kernel, _), (stride, _), padding = conv.kernel_size, conv.stride, int(conv.padding[0])
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in shape[1:])
    return conv.out_channels, height, width


class ResidualBlock(nn.Module):
    """relu(body(x) + shortcut(x)), from images (B, C, H, W) to images.

    The body is the given convolutions with ReLUs between them. The shortcut is a
    1×1 convolution if the body changes the shape, else x itself. BatchNorm, if
    wanted, follows every convolution, so that it can be folded.
    """

    def __init__(self, convolutions: Sequence[nn.Conv2d], *, batch_norm: bool) -> None:
        super().__init__()
        body, shortcut, last = Layers(), Layers(), len(convolutions)
        for number, conv in enumerate(convolutions, start=1):
            append_layer(body, f"conv{number}", conv, batch_norm=batch_norm, relu=number < last)
        channels = convolutions[0].in_channels, convolutions[-1].out_channels
        stride = math.prod(conv.stride[0] for conv in convolutions)
        if channels[0] != channels[1] or stride > 1:
            append_layer(shortcut, "shortcut", nn.Conv2d(*channels, 1, stride), batch_norm=batch_norm, relu=False)
        for name, layer in (*body.items(), *shortcut.items()):
            self.add_module(name, layer)  # directly, not in groups, so that their names are short
        self.paths = tuple(body), tuple(shortcut)
        self.add, self.relu = Add(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.relu(self.add(*(self._through(names, x) for names in self.paths)))
        return result

    def _through(self, names: tuple[str, ...], x: Tensor) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x
