"""Models and checkpoints side by side, and a run over its epochs: a small real run, whole and with damaged files."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from certtrain import RunContext, load_model, resume, train
from certtrain.diagnostics.comparison import (
    ComparisonOptions,
    compare_epochs,
    compare_models,
    epoch_rows,
    model_rows,
)
from certtrain.diagnostics.model_states import model_layer_states
from certtrain.errors import CerttrainError, DataError, ModelFileError, RunError
from certtrain.network.modelfile import write_model
from certtrain.spec.preset import load_preset
from certtrain.training.pacing import Pacing
from helpers.tiny_classifier import metadata, network

PER_EPOCH = 3  # steps
PRESET = {
    "train.epochs": 4,
    "train.batch_size": 500,
    "train.keep_every": 2,
    "eps.max": 0.05,
    "eps.length": 1,
    "model": {"name": "mlp", "hidden": [8, 6]},
}
FEW = ComparisonOptions(limit=50)


def trained(folder: Path, **changes: Any) -> Path:
    """A finished run that has saved at the end of every epoch."""
    values = PRESET | {name.replace("__", "."): value for name, value in changes.items()}
    context = RunContext(pacing=Pacing(epoch_checkpoint=0.0, checkpoint_share=math.inf))
    assert train(load_preset("digits", values), folder, context) is not None
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("comparison") / "run")


def test_a_model_is_loaded_from_a_file_a_checkpoint_or_the_folder_of_a_run(finished: Path, tmp_path: Path):
    newest = sorted((finished / "checkpoints").iterdir())[-1]
    x = torch.rand(3, 1, 8, 8)
    logits = load_model(finished / "model.safetensors")(x)
    for place in (finished, str(finished), newest):
        assert torch.equal(load_model(place)(x), logits)
    unfinished = Path(shutil.copytree(finished, tmp_path / "run"))
    (unfinished / "model.safetensors").unlink()
    loaded = load_model(unfinished)
    assert torch.equal(loaded(x), logits)
    assert (loaded.metadata.dataset, loaded.training) == ("digits", False)
    (unfinished / "checkpoints" / newest.name).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="an older one is used"):
        older = load_model(unfinished)
    assert not torch.equal(older(x), logits)
    with pytest.raises(RunError, match="is a folder of runs, not a run; give one of them"):
        load_model(tmp_path)
    with pytest.raises(RunError, match="holds no run"):
        load_model(newest.parent)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def unfinished(run: Path) -> Path:
    """As the run was before it wrote its model."""
    for name in ("model.safetensors", "report.json"):
        (run / name).unlink()
    return run


def checkpoint(run: Path, epoch: int) -> Path:
    return run / "checkpoints" / f"step-{PER_EPOCH * epoch:09d}.safetensors"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def with_notes() -> tuple[ComparisonOptions, list[str]]:
    notes: list[str] = []
    return replace(FEW, on_note=notes.append), notes


# --- what a run keeps ------------------------------------------------------------------------------------


def test_every_second_epoch_is_kept_as_a_model_file(finished: Path):
    kept = sorted(path.name for path in (finished / "epochs").iterdir())
    assert kept == ["epoch-0002.safetensors", "epoch-0004.safetensors"]
    second = load_model(finished / "epochs" / "epoch-0002.safetensors")
    assert second.metadata.note == "after epoch 2 of 4"
    assert second.metadata.results is None
    last, model = (load_file(finished / name) for name in ("epochs/epoch-0004.safetensors", "model.safetensors"))
    assert all(torch.equal(last[name], model[name]) for name in model)
    assert not torch.equal(second.state_dict()["linear1.weight"], model["linear1.weight"])


def test_a_run_keeps_nothing_more_unless_it_is_asked(tmp_path: Path):
    folder = trained(tmp_path / "run", train__keep_every=None, train__epochs=2)
    assert not (folder / "epochs").exists()


# --- side by side ----------------------------------------------------------------------------------------


def test_one_model_has_the_states_of_its_layers(finished: Path):
    compared = compare_models([finished / "model.safetensors"], FEW)
    (model,) = compared.models
    images = FEW.images(load_model(finished / "model.safetensors"))
    assert model.layers == model_layer_states(load_model(finished / "model.safetensors"), images, 0.05)
    assert (model.name, compared.dataset, compared.split, compared.examples, compared.eps) == (
        "run",
        "digits",
        "train",
        50,
        0.05,
    )
    assert compared.title == "digits, train set, 50 examples, ε = 0.05"


def test_folder_model_kept_epoch_and_checkpoint_of_one_network_are_alike(finished: Path):
    paths = [finished, finished / "model.safetensors", finished / "epochs" / "epoch-0004.safetensors"]
    compared = compare_models([*paths, checkpoint(finished, 4)], FEW)
    first, *others = compared.models
    assert [model.name for model in compared.models] == ["run", "run", "epoch-0004", "step-000000012"]
    assert all(model.layers == first.layers for model in others)
    assert compare_models([checkpoint(finished, 3)], FEW).models[0].layers != first.layers


def test_a_checkpoint_gives_the_moving_average_where_there_is_one(tmp_path: Path):
    folder = trained(tmp_path / "run", train__average=0.5, train__epochs=2)
    model, step = compare_models([folder, checkpoint(folder, 2)], FEW).models
    assert model.layers == step.layers


def test_of_an_unfinished_run_it_is_the_newest_checkpoint(unfinished: Path):
    (model,) = compare_models([unfinished], FEW).models
    assert model.file == checkpoint(unfinished, 4)
    assert model.name == "run"


def test_a_damaged_newest_checkpoint_has_a_note(unfinished: Path):
    cut(checkpoint(unfinished, 4))
    options, notes = with_notes()
    (model,) = compare_models([unfinished], options).models
    assert model.file == checkpoint(unfinished, 3)
    (note,) = notes
    assert note.startswith(f"checkpoint {checkpoint(unfinished, 4)} cannot be read")
    assert note.endswith("an older one is used")


def test_without_a_whole_checkpoint_there_is_an_error(unfinished: Path):
    for epoch in (3, 4):
        cut(checkpoint(unfinished, epoch))
    with pytest.raises(ModelFileError, match="cannot be read"):
        compare_models([unfinished], FEW)


def test_a_damaged_model_is_not_replaced_by_a_checkpoint(run: Path):
    cut(run / "model.safetensors")
    with pytest.raises(ModelFileError, match="not a complete safetensors file"):
        compare_models([run], FEW)


def test_a_checkpoint_of_another_network_is_an_error(run: Path):
    preset = json.loads((run / "preset.json").read_text())
    preset["model"]["hidden"] = [8, 7]
    (run / "preset.json").write_text(json.dumps(preset))
    with pytest.raises(ModelFileError, match="does not contain the network of its run: "):
        compare_models([checkpoint(run, 4)], FEW)


def test_a_checkpoint_away_from_its_run_says_where_it_belongs(finished: Path, tmp_path: Path):
    moved = Path(shutil.copy(checkpoint(finished, 4), tmp_path))
    with pytest.raises(ModelFileError, match=r"is a checkpoint.*in the folder of its run, which has a preset\.json"):
        compare_models([moved], FEW)


def test_models_for_other_images_cannot_be_compared(finished: Path, tmp_path: Path):
    described = metadata(dataset="digits")
    write_model(tmp_path / "small.safetensors", network(described), described)
    with pytest.raises(DataError, match=r"small takes images of shape \(1, 2, 2\).* run of shape \(1, 8, 8\)"):
        compare_models([finished, tmp_path / "small.safetensors"], FEW)


def test_models_of_other_layers_can(finished: Path, tmp_path: Path):
    other = trained(tmp_path / "other", model={"name": "mlp", "hidden": [5]}, train__epochs=1)
    compared = compare_models([finished, other], FEW)
    assert [[layer.name for layer in model.layers] for model in compared.models] == [
        ["linear1_relu", "linear2_relu"],
        ["linear1_relu"],
    ]
    rows = model_rows(compared)
    assert [(row["model"], row["name"]) for row in rows] == [
        ("run", "linear1_relu"),
        ("run", "linear2_relu"),
        ("other", "linear1_relu"),
    ]
    assert rows[2]["growth"] == compared.models[1].layers[0].growth


def test_all_are_compared_at_the_first_ones_radius_or_at_the_one_given(finished: Path, tmp_path: Path):
    other = trained(tmp_path / "other", eps__max=0.02, train__epochs=1)
    options, notes = with_notes()
    assert compare_models([other, finished], options).eps == 0.02
    assert notes == ["trained for different ε (other 0.02, run 0.05); all are compared at ε = 0.02; --eps changes it"]
    options, notes = with_notes()
    assert compare_models([other, finished], replace(options, eps=0.0)).eps == 0
    assert notes == []


# --- a run over its epochs --------------------------------------------------------------------------------


def test_a_run_is_its_epochs_and_its_networks(finished: Path):
    history, compared = compare_epochs(finished, FEW)
    assert compared is not None
    assert [record.epoch for record in history.epochs] == [1, 2, 3, 4]
    assert [(m.name, m.step, m.epoch) for m in compared.models] == [
        ("epoch-0002", 6, 2),
        ("step-000000009", 9, 3),
        ("model", 12, 4),
    ]
    assert compared.eps == 0.05
    assert compared.models[-1].layers == compare_models([finished], FEW).models[0].layers
    assert compared.models[0].to_dict()["epoch"] == 2


def test_rows_distinguish_training_from_networks(finished: Path):
    history, compared = compare_epochs(finished, FEW)
    rows = epoch_rows(history, compared)
    assert len({tuple(row) for row in rows}) == 1
    assert [row["network"] for row in rows] == ["in training"] * 8 + ["epoch-0002"] * 2 + ["step-000000009"] * 2 + [
        "model"
    ] * 2
    assert [row["epoch"] for row in rows[:8:2]] == [1, 2, 3, 4]
    assert rows[0]["certified_accuracy"] == history.epochs[0].certified_accuracy
    assert (rows[-1]["eps"], rows[-1]["certified_accuracy"], rows[-1]["name"]) == (0.05, None, "linear2_relu")


def test_networks_that_are_damaged_are_left_out_with_a_note(run: Path):
    cut(run / "epochs" / "epoch-0002.safetensors")
    cut(checkpoint(run, 3))
    options, notes = with_notes()
    _, compared = compare_epochs(run, options)
    assert compared is not None
    assert [model.name for model in compared.models] == ["model"]
    assert len(notes) == 2
    assert all(note.endswith("; it is left out") for note in notes)


def test_a_run_without_networks_still_has_its_epochs(run: Path):
    for path in ("checkpoints", "epochs"):
        shutil.rmtree(run / path)
    (run / "model.safetensors").unlink()
    history, compared = compare_epochs(run, FEW)
    assert (len(history.epochs), compared) == (4, None)
    assert len(epoch_rows(history, compared)) == 8


def test_a_run_that_has_just_begun_is_its_first_checkpoint(unfinished: Path):
    (unfinished / "metrics.jsonl").unlink()
    shutil.rmtree(unfinished / "epochs")
    for epoch in (3, 4):
        checkpoint(unfinished, epoch).rename(checkpoint(unfinished, epoch - 3))
    history, compared = compare_epochs(unfinished, FEW)
    assert compared is not None
    assert (history.epochs, [(m.step, m.epoch) for m in compared.models]) == ((), [(0, 0), (3, None)])


def test_a_line_in_writing_has_a_note(run: Path):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "st')
    options, notes = with_notes()
    history, _ = compare_epochs(run, options)
    assert len(history.epochs) == 4
    assert notes == [f"the last line of {run / 'metrics.jsonl'} is incomplete; it is left out"]


def clear(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "preset.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (clear, "neither a finished epoch nor a whole checkpoint"),
        (lambda run: (run / "preset.json").unlink(), "holds no run"),
        (lambda run: (run / "preset.json").write_text("{"), "cannot be read"),
        (lambda run: (run / "metrics.jsonl").write_text("nonsense\n"), "line 1 of "),
    ],
)
def test_a_damaged_run_is_one_clear_error(run: Path, damage: Callable[[Path], object], message: str):
    damage(run)
    with pytest.raises(CerttrainError, match=message):
        compare_epochs(run, FEW)


def test_a_model_file_is_no_run(finished: Path):
    with pytest.raises(RunError, match="is not a folder"):
        compare_epochs(finished / "model.safetensors", FEW)


def test_a_stopped_and_resumed_run_keeps_the_same_epochs(finished: Path, tmp_path: Path):
    asked = iter(range(100))
    stop = RunContext(should_stop=lambda: "time is up" if next(asked) == 7 else None)
    assert train(load_preset("digits", PRESET), tmp_path / "run", stop) is None
    assert resume(tmp_path / "run") is not None
    for name in ("epoch-0002.safetensors", "epoch-0004.safetensors"):
        assert (tmp_path / "run" / "epochs" / name).read_bytes() == (finished / "epochs" / name).read_bytes()
