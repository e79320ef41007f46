"""The named networks, layer by layer."""

import pytest
import torch
from torch import nn

from certtrain.architecture import CNN, CNN7, MLP, Architecture, load_preset
from certtrain.bounds.graph import Normalize
from certtrain.errors import DataError
from certtrain.models import InputSpec, build_model

RGB = InputSpec((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)


def convolutions(model: nn.Module) -> list[tuple[int, int, int, int]]:
    """Channels in and out, kernel and stride of each."""
    found = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    return [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in found]


@pytest.mark.parametrize(("name", "last_stride", "features"), [("cifar10-160ep", 1, 16), ("tinyimagenet-80ep", 2, 16)])
def test_cnn7_is_the_papers(name: str, last_stride: int, features: int):
    side = 16 * 2 * last_stride
    with torch.device("meta"):
        model = build_model(load_preset(name).model, InputSpec((3, side, side), 10, RGB.mean, RGB.std))
    widths = [(3, 64, 3, 1), (64, 64, 3, 1), (64, 128, 3, 2), (128, 128, 3, 1), (128, 128, 3, last_stride)]
    assert convolutions(model) == widths
    linear = [(layer.in_features, layer.out_features) for layer in model if isinstance(layer, nn.Linear)]
    assert linear == [(128 * features * features, 512), (512, 10)]


ARCHITECTURES: list[Architecture] = [
    CNN7(name="cnn7", width=2, linear_size=3),
    CNN(name="cnn", channels=(2, 3), kernels=(3, 5), strides=(1, 2), linear=(4,)),
    CNN(name="cnn", channels=(2,), kernels=(4,), strides=(2,)),
    MLP(name="mlp", hidden=(5, 4)),
]
EACH = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: f"{a.name}")


@EACH
def test_images_become_logits(architecture: Architecture):
    assert build_model(architecture, RGB)(torch.rand(4, 3, 32, 32)).shape == (4, 10)


@EACH
def test_batch_norm_and_relu_follow_every_layer_but_the_last(architecture: Architecture):
    for batch_norm in (True, False):
        layers = list(build_model(architecture.model_copy(update={"batch_norm": batch_norm}), RGB))
        assert isinstance(layers[0], Normalize)
        weighted = [n for n, layer in enumerate(layers) if isinstance(layer, (nn.Linear, nn.Conv2d))]
        assert weighted[-1] == len(layers) - 1
        for n in weighted[:-1]:
            assert isinstance(layers[n + 1], (nn.BatchNorm1d, nn.BatchNorm2d)) == batch_norm
            assert isinstance(layers[n + 1 + batch_norm], nn.ReLU)


def test_the_first_layer_normalises_each_channel():
    model = build_model(ARCHITECTURES[0], InputSpec((2, 8, 8), 3, (0.25, 0.5), (0.5, 2.0)))
    found = model.normalize(torch.ones(1, 2, 1, 1)).flatten()
    assert found.tolist() == [1.5, 0.25]


@pytest.mark.parametrize(
    ("architecture", "spec", "message"),
    [
        (CNN(name="cnn", channels=(2, 2), kernels=(2, 2), strides=(2, 2)), (1, 3, 3), "1×1 pixels at convolution 2"),
        (ARCHITECTURES[0], (3, 8, 8), "have 3 channels, but mean and std have 1 and 1"),
    ],
)
def test_images_that_do_not_fit_are_an_error(architecture: Architecture, spec: tuple[int, int, int], message: str):
    with pytest.raises(DataError, match=message):
        build_model(architecture, InputSpec(spec, 10, (0.0,), (1.0,)))
