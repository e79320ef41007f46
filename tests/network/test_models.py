"""The named networks: layer by layer, and bounded at every image size that they are for."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from certtrain import output_bounds, propagate
from certtrain.bounds.graph import Add, LayerCall, Normalize
from certtrain.bounds.reading import read_layers
from certtrain.errors import DataError
from certtrain.network.models import BUILDERS, InputSpec, build_model
from certtrain.spec.architecture import CNN, CNN3, CNN5, CNN7, DM, MLP, NETWORKS, Architecture, ResNeXt, WideResNet
from certtrain.spec.preset import load_preset
from helpers.sampling import assert_inside, ball, points_inside

RGB = InputSpec((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)
MNIST, CIFAR, TINY = (1, 28, 28), (3, 32, 32), (3, 64, 64)


def build(architecture: Architecture, shape: tuple[int, int, int], batch_norm: bool = True) -> nn.Sequential:
    """For ten classes, untrained."""
    spec = InputSpec(shape, 10, (0.5,) * shape[0], (0.25,) * shape[0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(architecture.model_copy(update={"batch_norm": batch_norm}), spec)


def convolutions(model: nn.Module) -> list[tuple[int, int, int, int]]:
    """Channels in and out, kernel and stride of each."""
    found = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in found]


@pytest.mark.parametrize(("name", "last_stride", "features"), [("cifar10-160ep", 1, 16), ("tinyimagenet-80ep", 2, 16)])
def test_cnn7_is_the_papers(name: str, last_stride: int, features: int):
    side = 16 * 2 * last_stride
    with torch.device("meta"):
        model = build_model(load_preset(name).model, InputSpec((3, side, side), 10, RGB.mean, RGB.std))
    widths = [(3, 64, 3, 1), (64, 64, 3, 1), (64, 128, 3, 2), (128, 128, 3, 1), (128, 128, 3, last_stride)]
    assert convolutions(model) == widths
    assert linear(model) == [(128 * features * features, 512), (512, 10)]


def linear(model: nn.Module) -> list[tuple[int, int]]:
    """Features in and out of each."""
    return [(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(
    ("name", "shape", "factor"),
    [("cifar10-wide-resnet", MNIST, 8), ("cifar10-wide-resnet", CIFAR, 8), ("tinyimagenet-wide-resnet", TINY, 10)],
)
def test_wide_resnet_is_the_papers(name: str, shape: tuple[int, int, int], factor: int):
    with torch.device("meta"):
        model = build(load_preset(name).model, shape)
    a, b, c = 16 * factor, 32 * factor, 64 * factor
    assert convolutions(model) == [
        (shape[0], 16, 3, 1),
        *((16, a, 3, 1), (a, a, 3, 1), (16, a, 1, 1)),
        *((a, b, 3, 2), (b, b, 3, 1), (a, b, 1, 2)),
        *((b, c, 3, 2), (c, c, 3, 1), (b, c, 1, 2)),
    ]
    assert linear(model) == [(c * (shape[1] // 4) ** 2, 512), (512, 10)]


@pytest.mark.parametrize(("name", "shape"), [("cifar10-resnext", MNIST), ("cifar10-resnext", CIFAR)])
def test_resnext_is_the_papers(name: str, shape: tuple[int, int, int]):
    with torch.device("meta"):
        model = build(load_preset(name).model, shape)
    assert convolutions(model) == [
        (shape[0], 64, 3, 1),
        *((64, 64, 1, 1), (64, 64, 3, 1), (64, 128, 1, 1), (64, 128, 1, 1)),
        *((128, 128, 1, 1), (128, 128, 3, 2), (128, 256, 1, 1), (128, 256, 1, 2)),
        *((256, 256, 1, 1), (256, 256, 3, 2), (256, 512, 1, 1), (256, 512, 1, 2)),
    ]
    groups = [layer.groups for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert groups == [1, *(1, 2, 1, 1) * 3]
    assert linear(model) == [(512 * (shape[1] // 4) ** 2, 512), (512, 10)]


def test_resnext_for_tinyimagenet_has_blocks_without_a_convolution_on_the_shortcut():
    with torch.device("meta"):
        model = build(load_preset("tinyimagenet-resnext").model, TINY)
    assert convolutions(model) == [
        (3, 16, 3, 1),
        *((16, 16, 1, 1), (16, 16, 3, 1), (16, 32, 1, 1), (16, 32, 1, 1)),
        *((32, 16, 1, 1), (16, 16, 3, 1), (16, 32, 1, 1)),
        *((32, 32, 1, 1), (32, 32, 3, 2), (32, 64, 1, 1), (32, 64, 1, 2)),
        *((64, 32, 1, 1), (32, 32, 3, 1), (32, 64, 1, 1)),
        *((64, 64, 1, 1), (64, 64, 3, 2), (64, 128, 1, 1), (64, 128, 1, 2)),
        *((128, 64, 1, 1), (64, 64, 3, 1), (64, 128, 1, 1)),
    ]
    assert linear(model) == [(128 * 16 * 16, 512), (512, 10)]


# Gowal et al. 2018: convolutions without padding, so that 28 and 32 pixels leave so many features.
@pytest.mark.parametrize(
    ("name", "sizes", "hidden", "features"),
    [
        ("dm-small", [(16, 4, 2), (32, 4, 1)], (100,), {28: 32 * 10**2, 32: 32 * 12**2}),
        ("dm-medium", [(32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)], (512, 512), {28: 64 * 4**2, 32: 64 * 5**2}),
    ],
)
def test_the_small_networks_are_gowals(
    name: str, sizes: list[tuple[int, int, int]], hidden: tuple[int, ...], features: dict[int, int]
):
    for shape in (MNIST, CIFAR):
        model = build(DM(name=name), shape)
        channels = [shape[0], *(size[0] for size in sizes)]
        assert convolutions(model) == [(before, *size) for before, size in zip(channels, sizes, strict=False)]
        ends = [features[shape[1]], *hidden, 10]
        assert linear(model) == list(pairwise(ends))


@pytest.mark.parametrize("shape", [MNIST, CIFAR], ids=["28", "32"])
def test_cnn3_and_cnn5_have_the_layers_that_their_sections_say(shape: tuple[int, int, int]):
    side = shape[1] // 4
    three, five = build(CNN3(name="cnn3"), shape), build(CNN5(name="cnn5"), shape)
    assert convolutions(three) == [(shape[0], 64, 5, 2), (64, 128, 4, 2)]
    assert linear(three) == [(128 * side * side, 10)]
    assert convolutions(five) == [(shape[0], 64, 3, 1), (64, 64, 4, 2), (64, 128, 4, 2)]
    assert linear(five) == [(128 * side * side, 512), (512, 10)]


def test_cnn5_has_as_many_weights_as_the_networks_that_ctrain_publishes():
    tensors = build(CNN5(name="cnn5"), CIFAR).state_dict().values()
    assert 0 < 17_616_246 - 4 * sum(tensor.numel() for tensor in tensors) < 10_000  # their size, the rest is its header


# CTBench counts the modules of CNN-7 before the split; the first of its 21 is the normalisation.
SPLITS = {"mnist-0.1-taps": 10, "mnist-0.3-taps": 13, "cifar10-2-255-taps": 4, "cifar10-8-255-taps": 17}


@pytest.mark.parametrize("preset", SPLITS)
def test_the_presets_split_cnn7_where_the_published_settings_do(preset: str):
    with torch.device("meta"):
        names = [name for name, _ in build_model(load_preset(preset).model, RGB).named_children()]
    assert len(names) == 21
    assert names[SPLITS[preset] - 1] == load_preset(preset).objective.split


ARCHITECTURES: list[Architecture] = [
    CNN7(name="cnn7", width=2, linear_size=3),
    CNN5(name="cnn5", width=2, linear_size=3),
    CNN3(name="cnn3", width=2),
    CNN(name="cnn", channels=(2, 3), kernels=(3, 5), strides=(1, 2), linear=(4,)),
    CNN(name="cnn", channels=(2,), kernels=(4,), strides=(2,)),
    CNN(name="cnn", channels=(2, 3), kernels=(4, 3), strides=(2, 1), paddings=(0, 2)),
    DM(name="dm-small"),
    DM(name="dm-medium"),
    MLP(name="mlp", hidden=(5, 4)),
    WideResNet(name="wide-resnet", stem=2, widen_factor=2, linear_size=4),
    WideResNet(name="wide-resnet", stem=2, widen_factor=1, blocks=(2, 1), strides=(2, 3), linear_size=4),
    ResNeXt(name="resnext", stem=3, cardinality=2, bottleneck_width=2, linear_size=4),
    ResNeXt(name="resnext", stem=2, cardinality=3, bottleneck_width=1, blocks=(1, 2), strides=(1, 2), linear_size=4),
]
EACH = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: f"{a.name}")
WITH_AND_WITHOUT = pytest.mark.parametrize("batch_norm", [True, False], ids=["batch norm", "plain"])


def test_every_network_is_among_them():
    assert {a.name for a in ARCHITECTURES} == set(NETWORKS)
    assert set(BUILDERS) == set(NETWORKS.values())


@EACH
@WITH_AND_WITHOUT
def test_batch_norm_follows_every_layer_but_the_last_and_then_a_relu_or_a_sum(
    architecture: Architecture, batch_norm: bool
):
    calls = read_layers(build(architecture, (3, 32, 32), batch_norm)).calls
    assert isinstance(calls[0].layer, Normalize)
    weighted = [n for n, call in enumerate(calls) if isinstance(call.layer, (nn.Linear, nn.Conv2d))]
    assert weighted[-1] == len(calls) - 1
    for n in weighted[:-1]:
        after = n
        if batch_norm:
            after = reader(calls, after)
            assert isinstance(calls[after].layer, (nn.BatchNorm1d, nn.BatchNorm2d))
        assert isinstance(calls[reader(calls, after)].layer, (nn.ReLU, Add))
    norms = [call for call in calls if isinstance(call.layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert len(norms) == batch_norm * (len(weighted) - 1)


def reader(calls: tuple[LayerCall, ...], n: int) -> int:
    """The one call that takes what call `n` gives."""
    (found,) = [number for number, call in enumerate(calls) if n + 1 in call.inputs]
    return found


def test_the_first_layer_normalises_each_channel():
    model = build_model(ARCHITECTURES[0], InputSpec((2, 8, 8), 3, (0.25, 0.5), (0.5, 2.0)))
    found = model.normalize(torch.ones(1, 2, 1, 1)).flatten()
    assert found.tolist() == [1.5, 0.25]


@pytest.mark.parametrize(
    ("architecture", "spec", "message"),
    [
        (CNN(name="cnn", channels=(2, 2), kernels=(2, 2), strides=(2, 2)), (1, 3, 3), "1×1 pixels at convolution 2"),
        (DM(name="dm-small"), (1, 8, 8), "3×3 pixels at convolution 2"),
        (ARCHITECTURES[0], (3, 8, 8), "have 3 channels, but mean and std have 1 and 1"),
    ],
)
def test_images_that_do_not_fit_are_an_error(architecture: Architecture, spec: tuple[int, int, int], message: str):
    with pytest.raises(DataError, match=message):
        build_model(architecture, InputSpec(spec, 10, (0.0,), (1.0,)))


# --- bounds, at every size -------------------------------------------------------------------------------

EACH_SIZE = pytest.mark.parametrize("shape", [MNIST, CIFAR, TINY], ids=["28", "32", "64"])


def trained(architecture: Architecture, shape: tuple[int, int, int], batch_norm: bool) -> tuple[nn.Module, Tensor]:
    """In evaluation mode and float64, its BatchNorm having seen a batch, and two images."""
    model = build(architecture, shape, batch_norm).double()
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x[:2]


@EACH
@EACH_SIZE
@WITH_AND_WITHOUT
@torch.no_grad()
def test_logits_of_samples_stay_inside_at_every_size(
    architecture: Architecture, shape: tuple[int, int, int], batch_norm: bool
):
    model, x = trained(architecture, shape, batch_norm)
    lower, upper = output_bounds(model, x, 0.02)
    assert lower.shape == (2, 10)
    points = points_inside(*ball(x, 0.02, (0.0, 1.0)), count=10)
    assert_inside(model(points.flatten(0, 1)).unflatten(0, points.shape[:2]), lower, upper)


@EACH
@EACH_SIZE
def test_in_training_mode_bounds_hold_the_clean_logits_and_statistics_are_those_of_one_pass(
    architecture: Architecture, shape: tuple[int, int, int]
):
    model, x = trained(architecture, shape, batch_norm=True)
    plain = copy.deepcopy(model).train()
    trace = propagate(model.train(), x, 0.02)
    torch.testing.assert_close(trace.clean, plain(x), rtol=1e-9, atol=1e-9)
    assert_inside(trace.clean.unsqueeze(0), trace.lower, trace.upper)
    for found, expected in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    trace.upper.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
