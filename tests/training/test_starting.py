"""A run that starts from the weights of a model file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import certtrain
from certtrain import resume, train
from certtrain.data import load_images
from certtrain.errors import ModelFileError
from certtrain.network.assembly import describe, make_network
from certtrain.network.modelfile import write_model
from certtrain.spec.preset import Preset, load_preset
from helpers.command_line import QUICK, run_here
from helpers.small_runs import assert_same_run, frequent, small, stop_before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of the small network, with weights of another seed and statistics of its own."""
    preset, images = small(seed=7), load_images("digits", "train")
    network, _ = make_network(preset, images)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.25
    path = tmp_path_factory.mktemp("start") / "model.safetensors"
    write_model(path, network, describe(preset, images))
    return path


def starting(weights: Path, **changes: Any) -> Preset:
    return small(start={"file": str(weights)}, **changes)


def test_the_first_checkpoint_has_the_weights_of_the_file(model: Path, tmp_path: Path) -> None:
    train(starting(model), tmp_path / "run", frequent(should_stop=stop_before(0)))
    found = load_file(tmp_path / "run" / "checkpoints" / "step-000000000.safetensors")
    for name, tensor in load_file(model).items():
        assert torch.equal(found[f"network/{name}"], tensor), name
    start = json.loads((tmp_path / "run" / "preset.json").read_text())["start"]
    assert (start["file"], len(start["sha256"])) == (str(model), 64)


def test_a_run_that_was_stopped_needs_the_file_no_more(model: Path, tmp_path: Path) -> None:
    copy = shutil.copy(model, tmp_path / "copy.safetensors")
    for name in ("whole", "parts"):
        train(starting(Path(copy)), tmp_path / name, frequent(should_stop=stop_before(12 if name == "parts" else 99)))
    Path(copy).unlink()
    assert resume(tmp_path / "parts", frequent()) is not None
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert "weights of" in (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")


def test_a_run_without_a_checkpoint_starts_from_the_file_that_it_began_with(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(model, tmp_path / "copy.safetensors"))
    train(starting(copy), tmp_path / "run", frequent(should_stop=stop_before(0)))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    copy.write_bytes(copy.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ModelFileError, match="has changed"):
        resume(tmp_path / "run", frequent())
    shutil.copy(model, copy)
    resume(tmp_path / "run", frequent(should_stop=stop_before(0)))
    found = load_file(tmp_path / "run" / "checkpoints" / "step-000000000.safetensors")
    assert torch.equal(found["network/head.weight"], load_file(model)["head.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__channels": [4, 6]}, r"differs from the preset's in model.channels \(\[4, 8\], not \[4, 6\]\)"),
        ({"model": {"name": "mlp", "hidden": [8]}}, "differs from the preset's in model.name"),
        ({"model__batch_norm": False}, r"model.batch_norm \(True, not False\)"),
        ({"data__mean": [0.5], "data__std": [0.5]}, "normalises images in another way"),
    ],
)
def test_a_file_with_another_network_is_a_clear_error(
    model: Path, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        train(starting(model, **changes), tmp_path / "run", frequent())
    assert not (tmp_path / "run").exists()


def test_a_file_for_other_images_is_a_clear_error(tmp_path: Path) -> None:
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    path = tmp_path / "m.safetensors"
    classes = tuple("0123456789")
    certtrain.save_model(own, path, dataset="folder", eps=0.1, input_shape=(1, 4, 16), class_names=classes)
    graph = certtrain.load_model(path).metadata.architecture.model_dump(mode="json")
    with pytest.raises(ModelFileError, match=r"it takes images \(C, H, W\) of \(1, 4, 16\)"):
        train(small(model=graph, start={"file": str(path)}), tmp_path / "run", frequent())


def test_from_starts_a_run_and_does_not_go_with_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here(*QUICK, "--out", "first").code == 0
    done = run_here(*QUICK, "--from", "first/model.safetensors", "--out", "second")
    assert done.code == 0, done.err
    preset = load_preset("second/preset.json")
    assert preset.start is not None
    assert preset.start.file == str(tmp_path / "first" / "model.safetensors")
    refused = run_here("train", "--resume", "second", "--from", "first/model.safetensors")
    assert refused.code == 2
    missing = run_here(*QUICK, "--from", "none", "--out", "third")
    assert (missing.code, "there is no model file none" in missing.err) == (1, True)
    assert not (tmp_path / "third").exists()
