"""Networks to export, and comparisons of what they compute."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certtrain.bounds.graph import Add, Normalize
from certtrain.bounds.shape_layers import Pad, Permute, Reshape, Slice
from certtrain.data import ImageSet
from certtrain.network.modelfile import Classifier, Metadata
from certtrain.network.models import InputSpec, build_model
from certtrain.spec.architecture import CNN, CNN7, MLP, Architecture, ResNeXt, WideResNet
from certtrain.spec.layers import Graph
from helpers.activation_cases import CASES
from helpers.activation_cases import LAYERS as ACTIVATION_LAYERS

SHAPE = (2, 8, 8)

ARCHITECTURES: list[Architecture] = [
    MLP(name="mlp", hidden=(20, 15)),
    CNN(name="cnn", channels=(4, 6), kernels=(3, 4), strides=(1, 2), linear=(12,)),
    CNN(name="cnn", channels=(5,), kernels=(5,), strides=(2,)),
    CNN7(name="cnn7", width=4, linear_size=16, last_stride=2),
    CNN(name="cnn", channels=(4, 6), kernels=(4, 3), strides=(2, 1), paddings=(0, 2)),
    WideResNet(name="wide-resnet", stem=3, widen_factor=1, linear_size=8),
    ResNeXt(name="resnext", stem=3, bottleneck_width=2, blocks=(1, 2), strides=(1, 2), linear_size=8),
]

every_architecture = pytest.mark.parametrize(
    "architecture", ARCHITECTURES, ids=["mlp", "cnn", "cnn-no-linear", "cnn7", "cnn-paddings", "wide-resnet", "resnext"]
)


def classifier(architecture: Architecture, batch_norm: bool = True, seed: int = 0) -> Classifier:
    """An untrained network whose BatchNorm has something to do: scales of both signs, some of them tiny."""
    torch.manual_seed(seed)
    if not isinstance(architecture, Graph):
        architecture = architecture.model_copy(update={"batch_norm": batch_norm})
    network = build_model(architecture, InputSpec(SHAPE, 3, (0.4, 0.5), (0.2, 0.3)))
    for layer in network.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.affine:
            scramble(layer)
    metadata = Metadata(
        architecture=architecture,
        input_shape=SHAPE,
        class_names=("cat", "dog", "naïve"),
        dataset="folder",
        eps=8 / 255,
        seed=7,
        versions={},
        preset={},
    )
    return Classifier(network, metadata).eval()


@torch.no_grad()
def scramble(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(1e-6, 2.0)
    norm.bias.normal_()
    norm.weight.normal_()
    norm.weight[0] = -1.5
    norm.weight[1] = 1e-7


def images(count: int = 70) -> ImageSet:
    pixels = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return ImageSet("folder", "test", pixels, torch.arange(count) % 3, ("cat", "dog", "naïve"))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return bool(((found - expected).abs() <= tolerance * expected.abs().max()).all())


class Block(nn.Module):
    """A residual block: conv and BatchNorm on both ways into the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.shortcut, self.bn3 = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False)
        self.relu, self.flatten, self.head = nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.head(self.flatten(self.relu(y + self.bn3(self.shortcut(x)))))
        return out


class Folded(nn.Module):
    """The block without its BatchNorm."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block, self.add = block, Add()

    def forward(self, x: Tensor) -> Tensor:
        b = self.block
        out: Tensor = b.head(b.flatten(b.relu(self.add(b.conv2(b.relu(b.conv1(x))), b.shortcut(x)))))
        return out


# What is folded: bn1 into conv1 and, called twice, bn2 into conv2 and conv3. What is not: bn0 after a sum, the second
# call of bn1, and bn4, whose convolution is called twice.
LAYERS: list[dict[str, Any]] = [
    {"name": "conv1", "type": "Conv2d", "in_channels": 2, "out_channels": 4, "kernel_size": 3, "bias": False},
    {"name": "part.bn1", "type": "BatchNorm2d", "num_features": 4},
    {"name": "relu1", "type": "ReLU"},
    {"name": "conv2", "type": "Conv2d", "in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1},
    {"name": "bn2", "type": "BatchNorm2d", "num_features": 4},
    {"name": "sum", "type": "Add", "inputs": ["bn2", "relu1"]},
    {"name": "bn0", "type": "BatchNorm2d", "num_features": 4, "affine": False},
    {"name": "relu2", "type": "ReLU"},
    {"name": "conv3", "type": "Conv2d", "in_channels": 4, "out_channels": 4, "kernel_size": 1},
    {"name": "bn2_again", "type": "Shared", "layer": "bn2"},
    {"name": "relu3", "type": "ReLU"},
    {"name": "bn1_again", "type": "Shared", "layer": "part.bn1"},
    {"name": "conv4", "type": "Conv2d", "in_channels": 4, "out_channels": 4, "kernel_size": 1},
    {"name": "bn4", "type": "BatchNorm2d", "num_features": 4},
    {"name": "relu4", "type": "ReLU"},
    {"name": "conv4_again", "type": "Shared", "layer": "conv4"},
    {"name": "flat", "type": "Flatten"},
    {"name": "hidden", "type": "Linear", "in_features": 144, "out_features": 8},
    {"name": "bn5", "type": "BatchNorm1d", "num_features": 8},
    {"name": "relu5", "type": "ReLU"},
    {"name": "head", "type": "Linear", "in_features": 8, "out_features": 3},
]


def listed(layers: list[dict[str, Any]]) -> Classifier:
    """A classifier of these layers, whose BatchNorm has something to do."""
    origin = {"source": "mynet.py:MyNet"}
    return classifier(Graph.model_validate({"name": "graph", "layers": layers, "origin": origin}))


NOT_IN_ONNX = {CASES["softplus of a low threshold"].layer}


# Layers with arguments unlike the defaults, and what they take.
OPERATORS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(2, 3, (3, 2), (2, 1), (1, 0), (1, 2)), SHAPE),
    (nn.Conv2d(2, 4, 3, padding="same", dilation=2, groups=2), SHAPE),
    (nn.Conv2d(2, 4, 3, padding="valid", bias=False), SHAPE),
    (nn.BatchNorm2d(2, eps=0.1), SHAPE),
    (nn.BatchNorm2d(2, affine=False), SHAPE),
    (nn.BatchNorm1d(5), (5,)),
    (nn.MaxPool2d(3, 2, 1, dilation=2), SHAPE),
    (nn.MaxPool2d(3, 2, ceil_mode=True), SHAPE),
    (nn.MaxPool2d(2, 3, 1, ceil_mode=True), SHAPE),
    (nn.AvgPool2d(3, 2, 1), SHAPE),
    (nn.AvgPool2d(3, 2, 1, count_include_pad=False), SHAPE),
    (nn.AvgPool2d((3, 2), 3, 1, ceil_mode=True), SHAPE),
    (nn.AvgPool2d(3, 2, ceil_mode=True), SHAPE),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), SHAPE),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5), SHAPE),
    (nn.AdaptiveAvgPool2d(1), SHAPE),
    (nn.AdaptiveAvgPool2d((4, None)), SHAPE),
    (nn.Flatten(), SHAPE),
    (nn.Flatten(1, 3), SHAPE),
    (nn.Flatten(1, 2), SHAPE),
    (nn.Flatten(2), SHAPE),
    (nn.Flatten(2, -2), SHAPE),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True), SHAPE),
    (nn.Conv2d(2, 4, 2, padding="same", dilation=3), SHAPE),
    (Reshape((4, 32)), SHAPE),
    (Permute((3, 1, 2)), SHAPE),
    (Pad(2, 1, 0), SHAPE),
    (Pad(3, 0, 2, -1.5), SHAPE),
    (Slice(3, 1, 7, 2), SHAPE),
    (nn.Identity(), SHAPE),
    (nn.Dropout(0.5), SHAPE),
    *((layer, SHAPE) for layer in ACTIVATION_LAYERS if layer not in NOT_IN_ONNX),
    (nn.Linear(5, 3, bias=False), (5,)),
    (Normalize((0.1, 0.7), (0.3, 1.1)), SHAPE),
]
