"""The real data sets that CERTTRAIN_TEST_DATA names, in one file, so that one process unpacks and decodes them once."""

import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from certtrain import train
from certtrain.data import load_images
from certtrain.runs.checkpoint import RunFolder
from certtrain.spec.preset import load_preset
from certtrain.training.events import Event, Started, StepDone
from helpers.small_runs import frequent, stop_before


@pytest.fixture(scope="module")
def real_data() -> Path:
    """The folder that CERTTRAIN_TEST_DATA names."""
    folder = os.environ.get("CERTTRAIN_TEST_DATA")
    if folder is None:
        pytest.skip("CERTTRAIN_TEST_DATA does not name a folder with the real data sets")
    return Path(folder)


@pytest.fixture(scope="module")
def real_cifar10(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the real CIFAR-10, unpacked if need be."""
    if (real_data / "cifar10").is_dir():
        return real_data
    archives = [real_data / f"cifar10-{part}.zip" for part in (1, 2)]
    if not all(archive.is_file() for archive in archives):
        pytest.skip("CERTTRAIN_TEST_DATA holds neither cifar10/ nor cifar10-1.zip and cifar10-2.zip")
    folder = tmp_path_factory.mktemp("cifar10")
    for archive in archives:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is decoded is kept for the next test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CERTTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_real_mnist(real_data: Path):
    if not (real_data / "MNIST").is_dir():
        pytest.skip("CERTTRAIN_TEST_DATA holds no MNIST")
    first, test = (load_images("mnist", split, data_dir=real_data) for split in ("train", "test"))
    assert (len(first), len(test), first.input_shape) == (60000, 10000, (1, 28, 28))
    assert first.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.slow
def test_real_cifar10(real_cifar10: Path):
    test = load_images("cifar10", "test", data_dir=real_cifar10)
    assert test.input_shape == (3, 32, 32)
    assert test.labels.bincount().tolist() == [1000] * 10
    assert test.images.double().mean().item() / 255 == pytest.approx(0.476585, abs=1e-5)


@pytest.mark.slow
def test_the_papers_network_takes_two_steps_on_the_real_cifar10(
    real_cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("certtrain.training.layer_diagnostics.STATE_EXAMPLES", 10)  # of 1000, which take long
    events: list[Event] = []
    context = frequent(data_dir=real_cifar10, should_stop=stop_before(2), emit=events.append)
    preset = load_preset("cifar10-160ep", {"train.compile": "off", "train.batch_size": 8})  # both for time
    assert train(preset, tmp_path / "out", context) is None
    (started,) = (event for event in events if isinstance(event, Started))
    assert (started.examples, started.steps_per_epoch, started.steps) == (50_000, 6250, 1_000_000)
    first, second = (event for event in events if isinstance(event, StepDone))
    assert [layer.name for layer in first.layers] == [*(f"conv{n}_relu" for n in range(1, 6)), "linear1_relu"]
    assert all(0 < layer.width < math.inf for layer in first.layers)
    assert second.averages["loss"] > 0
    weights = load_file(RunFolder(tmp_path / "out").checkpoints()[-1])
    assert weights["network/conv5.weight"].shape == (128, 128, 3, 3)
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
