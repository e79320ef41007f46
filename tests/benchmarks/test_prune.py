"""The smaller network is the same function where the removed channels are inactive, and its file is half as large."""

from pathlib import Path

import pytest
import torch
from torch import nn

from certtrain import load_model, propagate
from certtrain.data import ImageSet, load_images, to_unit
from certtrain.network.assembly import describe, make_network
from certtrain.network.modelfile import Classifier, write_model
from certtrain.spec.preset import load_preset
from helpers.commands_of_benchmarks import benchmark

prune = benchmark("prune")
EPS = 0.02
DEAD = {"conv1": [0, 3], "conv2": [1], "linear1": [0, 1, 5]}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_images("digits", "train").take(60)


@pytest.fixture
def model(images: ImageSet) -> Classifier:
    """Two convolutions and a hidden layer; some of their channels and units are never active."""
    small = {"model.channels": [4, 6], "model.kernels": [3, 4], "model.strides": [1, 2], "model.linear": [8]}
    preset = load_preset("digits", small | {"eps.max": EPS})
    network, _ = make_network(preset, images)
    generator = torch.Generator().manual_seed(0)
    for name, channels in DEAD.items():
        norm = network.get_submodule(f"{name}_bn")
        nn.init.uniform_(norm.bias.data, 0.5, 1.0, generator=generator)
        norm.bias.data[channels] = -100.0
    return Classifier(network, describe(preset, images)).eval()


def test_channels_that_are_never_active_are_found(model: Classifier, images: ImageSet):
    used = prune.used_channels(model, images, EPS, size=25)
    assert {name: (~keep).nonzero().flatten().tolist() for name, keep in used.items()} == {
        f"{name}_relu": channels for name, channels in DEAD.items()
    }


def test_without_them_the_network_is_the_same(model: Classifier, images: ImageSet):
    smaller = prune.pruned(model, prune.used_channels(model, images, EPS))
    before, after = (propagate(network.double(), to_unit(images.images).double(), EPS) for network in (model, smaller))
    torch.testing.assert_close(after.lower, before.lower, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after.upper, before.upper, rtol=1e-12, atol=1e-12)
    assert [smaller.get_submodule(name).weight.shape[0] for name in DEAD] == [2, 5, 5]


def test_the_file_is_half_as_large_and_loads(model: Classifier, images: ImageSet, tmp_path: Path):
    smaller = prune.pruned(model, prune.used_channels(model, images, EPS))
    write_model(tmp_path / "float32.safetensors", smaller, smaller.metadata)
    prune.round_weights_(smaller)
    write_model(tmp_path / "bfloat16.safetensors", smaller, smaller.metadata)
    loaded, x = load_model(tmp_path / "bfloat16.safetensors"), to_unit(images.images)
    assert loaded.metadata.note == prune.NOTE
    torch.testing.assert_close(loaded(x), smaller.float()(x))
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("float32", "bfloat16")]
    weights = sum(2 * t.numel() for name, t in smaller.state_dict().items() if t.dim() > 1 and "normalize" not in name)
    assert abs(sizes[0] - sizes[1] - weights) < 1000
