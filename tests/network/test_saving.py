"""A network from one's own loop as a model file: it is the same network, and every command takes it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import certtrain
from certtrain.data import load_images, to_unit
from certtrain.errors import DataError, EpsilonError, NetworkError, PresetError, UnsupportedLayer
from helpers.command_line import run_here


class Own(nn.Module):
    """A network with a skip connection, a function and a BatchNorm that stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again, self.drop, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.5), nn.Linear(4 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.avg_pool2d(F.relu(self.again(x) + x), 2)
        return self.head(self.drop(torch.flatten(x, 1)))


@pytest.fixture(scope="module")
def network() -> Own:
    """The network, trained a little in a loop of its own."""
    torch.manual_seed(0)
    own, images = Own(), load_images("digits", "train")
    x, optimizer = to_unit(images.images), torch.optim.Adam(own.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(own(x), images.labels).backward()
        optimizer.step()
    own.norm.eval()
    return own


def test_the_file_is_the_network(network: Own, tmp_path: Path) -> None:
    modes = [module.training for module in network.modules()]
    saved = certtrain.save_model(network, tmp_path / "m.safetensors", dataset="digits", eps="2/255")
    assert [module.training for module in network.modules()] == modes
    loaded = certtrain.load_model(tmp_path / "m.safetensors")
    x = to_unit(load_images("digits", "test").images)
    network.eval()
    assert torch.equal(loaded(x), network(x))
    assert torch.equal(saved(x), loaded(x))
    assert loaded.metadata.eps == 2 / 255
    assert "not trained by certtrain" in loaded.metadata.note


def test_every_command_takes_it(network: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX export needs the extra 'onnx'")
    monkeypatch.chdir(tmp_path)
    certtrain.save_model(network, "m.safetensors", dataset="digits", eps=0.01)
    verified = run_here("verify", "m.safetensors", "--limit", 40, "--out", "c.jsonl", "--json")
    assert verified.code == 0, verified.err
    found = json.loads(verified.out)
    assert (found["eps"], found["natural_accuracy"] > 0.7, found["certified"] > 0) == (0.01, True, True)
    for words in (
        ["check", "c.jsonl", "m.safetensors"],
        ["stats", "m.safetensors", "--limit", 40],
        ["export", "m.safetensors", "--limit", 40, "--vnnlib", "p", "--count", 1],
        ["decide", "m.safetensors", "p/point_00000.vnnlib"],
    ):
        done = run_here(*words)
        assert done.code == 0, (words, done.err, done.out)


def test_normalisation_outside_the_network_becomes_part_of_it(network: Own, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    certtrain.save_model(network, path, dataset="digits", eps=0.1, mean=[0.25], std=[0.5])
    x = to_unit(load_images("digits", "test").images)
    network.eval()
    torch.testing.assert_close(certtrain.load_model(path)(x), network((x - 0.25) / 0.5))


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_known_images_need_not_be_loaded(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certtrain.network.saving.load_images", lambda *_, **__: pytest.fail("the images were loaded"))
    pixels = {"mnist": 784, "cifar10": 3072}[dataset]
    network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 10))
    saved = certtrain.save_model(network, tmp_path / "m.safetensors", dataset=dataset, eps="1/255")
    assert saved.metadata.input_shape == ((1, 28, 28) if dataset == "mnist" else (3, 32, 32))
    assert saved.metadata.class_names[:2] == (("0", "1") if dataset == "mnist" else ("airplane", "automobile"))


def test_shape_and_classes_may_be_given_without_data(tmp_path: Path) -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    path = tmp_path / "m.safetensors"
    certtrain.save_model(own, path, dataset="folder", eps=0.1, input_shape=(3, 2, 2), class_names=("cat", "dog"))
    metadata = certtrain.load_model(path).metadata
    assert (metadata.dataset, metadata.input_shape, metadata.class_names) == ("folder", (3, 2, 2), ("cat", "dog"))


class Odd(nn.Flatten):
    """A layer that certtrain has no rule for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(x.flatten(1))


def broken() -> nn.Module:
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    own[1].weight.data[0, 0] = float("nan")
    return own


@pytest.mark.parametrize(
    ("own", "options", "error", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), {}, NetworkError, "logits for 10 classes"),
        (nn.Sequential(nn.Flatten(), nn.Linear(65, 10)), {}, NetworkError, "takes 65 features"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), {}, NetworkError, "float32"),
        (nn.Sequential(Odd(), nn.Linear(64, 10)), {}, UnsupportedLayer, "erfinv|Odd"),
        (broken(), {}, NetworkError, "NaN"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"dataset": "none"}, DataError, "no data set"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"eps": 8}, EpsilonError, "outside"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"eps": 0}, PresetError, "must be above 0"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"mean": [0.5]}, NetworkError, "go together"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"mean": [0.5], "std": [0]}, PresetError, "data.std"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"mean": [0, 0], "std": [1, 1]}, DataError, "channels"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"input_shape": (8, 8)}, NetworkError, "input_shape"),
    ],
)
def test_what_cannot_be_saved_is_a_clear_error_and_leaves_no_file(
    own: nn.Module, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(error, match=message):
        certtrain.save_model(own, path, **({"dataset": "digits", "eps": 0.1} | options))
    assert not path.exists()


def test_a_network_that_computes_something_other_than_its_layers_is_refused(tmp_path: Path) -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    own[1].register_forward_hook(lambda module, args, result: result + 1)
    with pytest.raises(UnsupportedLayer):
        certtrain.save_model(own, tmp_path / "m.safetensors", dataset="digits", eps=0.1)
