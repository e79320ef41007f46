"""A run from its preset to its report: what it leaves, how it stops and goes on, and how it fails."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from certtrain import load_model, resume, train
from certtrain.data import Batches
from certtrain.diagnostics.model_states import model_layer_states
from certtrain.errors import DataError, DeviceError, NonFiniteError, PresetError, RunError, StorageError
from certtrain.network.assembly import load_run_images
from certtrain.runs.agreement import check_unchanged
from certtrain.runs.checkpoint import RunFolder, load_checkpoint
from certtrain.runs.epoch import LayerState
from certtrain.spec.preset import Preset, load_preset
from certtrain.training import completion
from certtrain.training.batch_norm_refresh import BatchNormRefresh
from certtrain.training.distributed import SINGLE_PROCESS
from certtrain.training.evaluation import natural_accuracy
from certtrain.training.events import EpochDone, Event, Finished, Note, Started, StepDone, Stopped, Verifying
from certtrain.training.trainer import Trainer
from helpers import processes
from helpers.run_processes import MOMENTS, resume_on_a_full_disk, stand_still, train_until_killed
from helpers.small_runs import (
    EPS,
    PER_EPOCH,
    STATE_EXAMPLES,
    STEPS,
    assert_same_run,
    frequent,
    metrics,
    report,
    small,
    stop_before,
    without_seconds,
)

pytestmark = pytest.mark.usefixtures("short")
ROOT = Path(__file__).parents[2]


def new_folder(path: Path, preset: Preset) -> RunFolder:
    """The folder of a run that has just begun."""
    folder = RunFolder(path)
    folder.create(preset)
    return folder


@pytest.fixture(scope="module")
def events() -> list[Event]:
    """What the uninterrupted run reported."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("run") / "out"
    assert train(small(), folder, frequent(emit=events.append)) is not None
    return folder


# --- what a run leaves -----------------------------------------------------------------------------------


def test_a_run_leaves_all_its_files(finished: Path):
    found = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    checkpoints = [f"checkpoints/step-{step:09d}.safetensors" for step in (20, 30)]
    assert found == [
        "README.md",
        *checkpoints,
        "metrics.jsonl",
        "model.safetensors",
        "preset.json",
        "report.html",
        "report.json",
    ]


def test_the_resolved_preset_is_kept(finished: Path):
    assert load_preset(str(finished / "preset.json")) == small()


def test_metrics_have_one_line_an_epoch(finished: Path):
    lines = metrics(finished)
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 10), (2, 20), (3, 30)]
    assert [line["learning_rate"] for line in lines] == pytest.approx([2e-3, 2e-3, 4e-4])
    assert [line["eps"] == EPS for line in lines] == [False, False, True]
    assert [line["tightness_loss"] > 0 for line in lines] == [True, True, False]
    assert all(0 <= line["certified_accuracy"] <= line["natural_accuracy"] <= 1 for line in lines)
    assert all(line["loss"] > 0 and line["gradient_norm"] > 0 for line in lines)


def test_metrics_hold_the_state_of_each_layer(finished: Path):
    names = ["conv1_relu", "conv2_relu", "linear1_relu"]
    for line in metrics(finished):
        assert [layer["name"] for layer in line["layers"]] == names
        assert all(
            layer["active"] + layer["inactive"] + layer["unstable"] == pytest.approx(1) for layer in line["layers"]
        )


def test_the_state_of_each_layer_is_what_stats_says_of_the_network(finished: Path):
    last = metrics(finished)[-1]
    images = load_run_images(small(), None).train.take(STATE_EXAMPLES)
    found = model_layer_states(load_model(finished / "model.safetensors"), images, last["eps"])
    for layer, expected in zip(last["layers"], found, strict=True):
        assert LayerState(**layer).name == expected.name
        numbers = {name: value for name, value in layer.items() if name != "name"}
        assert numbers == pytest.approx({name: getattr(expected, name) for name in numbers}, rel=1e-4)


def test_an_explosion_is_noted_once_with_its_sentence(tmp_path: Path):
    """Wide linear layers by the kaiming scheme multiply the bounds; without BatchNorm nothing scales them back."""
    events: list[Event] = []
    deep = {"name": "mlp", "hidden": [64] * 6, "batch_norm": False}
    preset = load_preset(
        "digits", {"model": deep, "init": "kaiming", "train.epochs": 2, "eps.max": 0.1, "eps.start": 1, "eps.length": 0}
    )
    train(preset, tmp_path / "out", frequent(emit=events.append))
    notes = [event.text for event in events if isinstance(event, Note) and "explode" in event.text]
    assert len(notes) == 1
    assert notes[0].startswith("epoch 1: bounds explode: at 'linear")


def test_the_model_says_what_it_is(finished: Path):
    model = load_model(finished / "model.safetensors")
    about = model.metadata
    assert (about.dataset, about.input_shape, about.eps, about.seed) == ("digits", (1, 8, 8), EPS, 0)
    assert Preset.model_validate(about.preset) == small()
    assert about.results == report(finished)["results"]
    assert (
        about.versions["torch"] == torch.__version__.partition("+")[0] or about.versions["torch"] == torch.__version__
    )


def test_the_report_adds_up(finished: Path):
    results = report(finished)["results"]
    counts = [results[name] for name in ("certified", "open", "falsified", "misclassified")]
    assert sum(counts) == results["examples"] == 360
    assert results["certified_accuracy"] <= results["attacked_accuracy"] <= results["natural_accuracy"]
    assert results["certified"] > 0
    assert results["natural_accuracy"] > 0.3  # ten classes: it has learnt something


@pytest.mark.parametrize("error", [StorageError("the disk is full"), ValueError("a fault")], ids=["storage", "fault"])
def test_a_run_without_its_page_is_a_whole_run(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(run: Path, path: Path) -> None:
        assert report(run)["results"]["examples"] == 360  # the results are safe before the page is drawn
        raise error

    events: list[Event] = []
    monkeypatch.setattr("certtrain.training.completion.write_report", fail)
    assert train(small(train__epochs=1), tmp_path / "out", frequent(emit=events.append)) is not None
    (note,) = [event.text for event in events if isinstance(event, Note) and "report.html" in event.text]
    assert note.endswith(str(error))
    (done,) = [event for event in events if isinstance(event, Finished)]
    assert done.page is None


def test_the_report_says_when_the_run_was_over(finished: Path):
    when = datetime.fromisoformat(report(finished)["training"]["finished"])
    assert abs(datetime.now(UTC) - when) < timedelta(hours=1)


def test_a_run_reports_what_it_does(events: list[Event], finished: Path):
    def of(kind: type[Event]) -> list[Any]:
        return [event for event in events if isinstance(event, kind)]

    (started,), (done,) = of(Started), of(Finished)
    assert (started.step, started.steps, started.steps_per_epoch, started.examples) == (0, STEPS, PER_EPOCH, 600)
    assert [event.step for event in of(StepDone)] == list(range(1, STEPS + 1))
    assert [event.record.epoch for event in of(EpochDone)] == [1, 2, 3]
    assert [(event.done, event.total) for event in of(Verifying)][-1] == (360, 360)
    assert done.model == finished / "model.safetensors"
    assert done.report.to_dict()["certified"] == report(finished)["results"]["certified"]


def test_eps_follows_its_schedule(events: list[Event]):
    eps = [event.eps for event in events if isinstance(event, StepDone)]
    assert eps[: PER_EPOCH + 1] == [0.0] * (PER_EPOCH + 1)
    assert 0 < eps[PER_EPOCH + 1] < eps[2 * PER_EPOCH - 1] < EPS
    assert eps[2 * PER_EPOCH :] == [EPS] * PER_EPOCH


def test_the_training_ramp_may_end_above_eps(tmp_path: Path):
    events: list[Event] = []
    train(small(eps__train_factor=1.5, eps__length=0, eps__start=1), tmp_path / "out", frequent(
        emit=events.append, should_stop=stop_before(2)
    ))  # fmt: skip
    assert [event.eps for event in events if isinstance(event, StepDone)] == pytest.approx([1.5 * EPS] * 2)


def test_another_seed_gives_another_run(finished: Path, tmp_path: Path):
    train(small(seed=1, train__epochs=1), tmp_path / "other", frequent())
    assert without_seconds(metrics(tmp_path / "other")[0]) != without_seconds(metrics(finished)[0])


def test_the_same_preset_gives_the_same_run_whatever_the_global_random_numbers(finished: Path, tmp_path: Path):
    with torch.random.fork_rng():
        torch.manual_seed(123)
        train(small(), tmp_path / "again", frequent())
    assert_same_run(finished, tmp_path / "again")


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """What training changes in the network, as it was after that many steps."""
    tensors = load_file(folder / "checkpoints" / f"step-{step:09d}.safetensors")
    return {name: t for name, t in tensors.items() if name.startswith("network/") and name.endswith(("weight", "bias"))}


def moved(folder: Path) -> float:
    """The largest change of any weight from the end of the first epoch to that of the second."""
    before, after = weights(folder, 10), weights(folder, 20)
    return max((after[name] - before[name]).abs().max().item() for name in before)


@pytest.mark.parametrize(
    ("settings", "still"),
    [
        ({}, False),
        ({"train__milestones": [1], "train__decay": 1e-9}, True),
        ({"train__clip_norm": 1e-15}, True),
    ],
    ids=["plain", "without learning rate", "gradients cut to nothing"],
)
def test_learning_rate_and_clipping_are_applied(settings: dict[str, Any], still: bool, tmp_path: Path):
    train(small(**settings), tmp_path / "out", frequent(should_stop=stop_before(20)))
    assert (moved(tmp_path / "out") < 1e-6) == still


@pytest.mark.parametrize(("tightness", "balance"), [(True, False), (False, True), (False, False)])
def test_each_regulariser_can_be_switched_off(tightness: bool, balance: bool, tmp_path: Path):
    settings = {"regularizer__tightness": tightness, "regularizer__relu_balance": balance}
    train(small(**settings), tmp_path / "out", frequent(should_stop=stop_before(10)))
    (line,) = metrics(tmp_path / "out")  # while ε is zero, the weight of each is the whole of λ = 0.5
    expected = line["natural_loss"] + 0.5 * (tightness * line["tightness_loss"] + balance * line["relu_balance_loss"])
    assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert (line["tightness_loss"] > 0) == (tightness or balance)


# --- ways to train ---------------------------------------------------------------------------------------

WAYS = {
    "centre statistics": {"train__batch_norm_statistics": "centre"},
    "moving average": {"train__average": 0.9},
    "linear rate": {"train__schedule": "linear", "train__warmup": 0.5},
    "bf16": {"train__precision": "bf16"},
    "adamw, cosine, L1": {
        "train__optimizer": "adamw",
        "train__weight_decay": 0.01,
        "train__schedule": "cosine",
        "train__l1": 1e-5,
    },
    "radam, mean of epochs": {
        "train__optimizer": "radam",
        "train__learning_rate": 0.02,
        "train__average_from": 1,
        "train__batch_norm_refresh": True,
    },
    "sgd": {"train__optimizer": "sgd", "train__learning_rate": 0.05, "train__weight_decay": 1e-4},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an uninterrupted run, for the name of a way."""

    @cache
    def run(name: str) -> Path:
        out = tmp_path_factory.mktemp("way") / "out"
        assert train(small(**WAYS[name]), out, frequent()) is not None
        return out

    return run


@pytest.mark.parametrize("name", WAYS)
def test_every_way_of_training_goes_on_as_if_it_had_not_stopped(
    name: str, finished: Path, trained: Callable[[str], Path], tmp_path: Path
):
    whole, parts = trained(name), tmp_path / "parts"
    train(small(**WAYS[name]), parts, frequent(should_stop=stop_before(13)))
    assert resume(parts, frequent()) is not None
    assert_same_run(whole, parts)
    assert (whole / "model.safetensors").read_bytes() != (finished / "model.safetensors").read_bytes()
    assert report(whole)["results"]["natural_accuracy"] > 0.3
    assert all(line["natural_accuracy"] > 0 for line in metrics(whole))


def test_without_a_clean_batch_nothing_is_said_of_its_loss(trained: Callable[[str], Path]):
    for line in metrics(trained("centre statistics")):
        assert "natural_loss" not in line
        assert line["certified_accuracy"] > 0


def test_the_moving_average_is_what_is_kept(trained: Callable[[str], Path]):
    out = trained("moving average")
    kept, last = load_file(out / "model.safetensors"), load_file(RunFolder(out).checkpoints()[-1])
    for name, tensor in kept.items():
        assert torch.equal(tensor, last[f"average/{name}"]), name
    assert not torch.equal(kept["conv1.weight"], last["network/conv1.weight"])


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Preset, Path]:
    """A run of two epochs, the last of which is the mean's first, with statistics computed anew."""
    out = tmp_path_factory.mktemp("averaged") / "out"
    preset = small(train__epochs=2, train__average_from=2, train__batch_norm_refresh=True)
    train(preset, out, frequent())
    return preset, out


def test_the_statistics_of_the_kept_network_are_those_of_the_training_set(averaged: tuple[Preset, Path]):
    preset, out = averaged
    images, kept = load_run_images(preset, None), load_model(out / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items() if "running" in name}
    batches = Batches(images.train.images, images.train.labels, batch_size=60, seed=preset.seed)
    assert len(before) == 6
    kept.to(memory_format=torch.channels_last)  # as in training
    BatchNormRefresh([kept], batches, SINGLE_PROCESS).run()
    assert all(torch.equal(kept.state_dict()[name], tensor) for name, tensor in before.items())


def test_accuracies_are_measured_and_checkpoints_saved_with_the_new_statistics(averaged: tuple[Preset, Path]):
    preset, out = averaged
    held_out = load_run_images(preset, None).validation
    assert held_out is not None
    about = load_model(out / "model.safetensors").metadata
    for line, path in zip(metrics(out), RunFolder(out).checkpoints(), strict=True):
        saved = load_checkpoint(path, about)
        assert line["validation_natural_accuracy"] == pytest.approx(natural_accuracy(saved, held_out, "cpu"))
        tensors = load_file(path)
        for name, tensor in saved.state_dict().items():
            assert torch.equal(tensor, tensors[f"average/{name}"])
            assert torch.equal(tensor, tensors[f"network/{name}"])  # the mean of one


def test_l1_is_in_the_metrics(tmp_path: Path):
    train(small(train__l1=1e-3), tmp_path / "out", frequent(should_stop=stop_before(10)))
    (line,) = metrics(tmp_path / "out")
    regularised = line["natural_loss"] + 0.5 * (line["tightness_loss"] + line["relu_balance_loss"])
    assert line["loss"] == pytest.approx(regularised + line["l1_loss"], rel=1e-5)
    assert line["l1_loss"] > 0.01


def test_the_linear_rate_rises_and_falls(tmp_path: Path):
    events: list[Event] = []
    settings = {"train__schedule": "linear", "train__warmup": 1.0, "train__learning_rate": 1e-3}
    train(small(**settings), tmp_path / "out", frequent(emit=events.append))
    rates = [event.learning_rate for event in events if isinstance(event, StepDone)]
    assert rates[:10] == pytest.approx([1e-4 * step for step in range(1, 11)])
    assert rates[10:] == pytest.approx([1e-3 * (30 - step) / 20 for step in range(10, 30)])


def test_settings_can_be_chosen_without_the_test_set(tmp_path: Path):
    train(small(data__verify_on="validation", train__epochs=1), tmp_path / "out", frequent())
    results = report(tmp_path / "out")["results"]
    assert (results["split"], results["examples"]) == ("validation", 237)


def test_tf32_is_for_gpus(tmp_path: Path):
    with pytest.raises(DeviceError, match="tf32 is an arithmetic of NVIDIA GPUs"):
        train(small(train__precision="tf32"), tmp_path / "out", frequent(device="cpu"))
    assert list(tmp_path.iterdir()) == []


# --- validation and test set -----------------------------------------------------------------------------


def test_the_held_out_examples_are_watched(finished: Path):
    for line in metrics(finished):
        natural, certified = line["validation_natural_accuracy"], line["validation_certified_accuracy"]
        assert 0 <= certified <= natural * (1 + 1e-12) <= 1 + 1e-12  # they are equal, but for rounding, where ε is zero


def test_without_held_out_examples_there_is_nothing_to_watch(tmp_path: Path):
    train(small(data__validation=0, train__epochs=1, train__batch_size=300), tmp_path / "out", frequent())
    assert not [name for name in metrics(tmp_path / "out")[0] if "validation" in name]


def test_the_test_set_is_verified_once_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, int]] = []
    original = completion.verify

    def counting(model: Any, images: Any, eps: float, **options: Any) -> Any:
        calls.append((images.split, len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines())))
        return original(model, images, eps, **options)

    monkeypatch.setattr(completion, "verify", counting)
    train(small(train__epochs=2), tmp_path / "out", frequent())
    assert calls == [("test", 2)]


def test_nothing_but_the_final_verification_sees_the_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = load_run_images(small(), None)
    blank = load_run_images(small(), None)
    blank.test.images.zero_()
    folders = []
    for number, made in enumerate((images, blank)):
        folders.append(tmp_path / str(number))
        Trainer(small(train__epochs=1), new_folder(folders[-1], small()), made, frequent()).run()
    first, second = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- stopping and going on -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 7, PER_EPOCH, 13, 2 * PER_EPOCH, STEPS - 1])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(steps: int, finished: Path, tmp_path: Path):
    events: list[Event] = []
    out = tmp_path / "out"
    assert train(small(), out, frequent(should_stop=stop_before(steps), emit=events.append)) is None
    assert replace(events[-1], seconds_left=None) == Stopped("time is up", steps, STEPS, out, None)
    assert (events[-1].seconds_left is None) == (steps < 2)
    assert not (out / "report.json").exists()
    assert not (out / "report.html").exists()
    assert resume(out, frequent(emit=events.append)) is not None
    assert [event.step for event in events if isinstance(event, Started)] == [0, steps]
    assert_same_run(finished, out)
    (done,) = [event for event in events if isinstance(event, Finished)]
    assert done.page == out / "report.html"
    assert done.page.read_text() == "drawn"


def test_a_run_may_be_stopped_again_and_again(finished: Path, tmp_path: Path):
    out = tmp_path / "out"
    train(small(), out, frequent(should_stop=stop_before(6)))
    for _ in range(3):
        assert resume(out, frequent(should_stop=stop_before(6))) is None
    assert resume(out, frequent()) is not None
    assert_same_run(finished, out)


def test_a_run_stopped_while_it_is_verified_verifies_again(finished: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert train(small(), out, frequent(should_stop=stop_before(STEPS))) is None
    assert not (out / "model.safetensors").exists()
    assert resume(out, frequent()) is not None
    assert_same_run(finished, out)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a run that was killed, for each moment."""
    place, folders = tmp_path_factory.mktemp("killed"), {}
    for number, moment in enumerate(MOMENTS):
        folders[moment] = place / str(number)
        process = processes.context().Process(target=train_until_killed, args=(moment, folders[moment]))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, moment
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(moment: str, finished: Path, killed: dict[str, Path]):
    out = killed[moment]
    assert not (out / "report.json").exists()
    assert resume(out, frequent()) is not None
    assert_same_run(finished, out)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped after two epochs, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("stopped") / "out"
    train(small(), folder, frequent(should_stop=stop_before(20)))
    assert [path.name[5:14] for path in RunFolder(folder).checkpoints()] == ["000000010", "000000020"]
    return folder


@pytest.fixture
def halfway(stopped: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(stopped, tmp_path / "out")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(b"\x07" * 5000),
    "of another network": lambda path: shutil.copy(ROOT / "tests" / "oracles" / "mlp.safetensors", path),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(name: str, finished: Path, halfway: Path):
    out, events = halfway, list[Event]()
    newest = RunFolder(out).checkpoints()[-1]
    DAMAGES[name](newest)
    resume(out, frequent(emit=events.append))
    assert [event.step for event in events if isinstance(event, Started)] == [10]
    assert any(str(newest) in event.text for event in events if isinstance(event, Note))
    assert_same_run(finished, out)


def test_without_any_readable_checkpoint_there_is_no_going_on(halfway: Path):
    for path in RunFolder(halfway).checkpoints():
        DAMAGES["truncated"](path)
    with pytest.raises(RunError, match=r"no checkpoint in .*checkpoints can be read; start a new run"):
        resume(halfway, frequent())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(RunError, match=r"not an empty folder; choose another folder \(--out\)$"):
        train(small(), tmp_path, frequent())
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_run_may_start_in_an_empty_folder(tmp_path: Path):
    assert train(small(), tmp_path, frequent(should_stop=stop_before(0))) is None
    assert (tmp_path / "preset.json").exists()


def test_a_finished_run_cannot_be_resumed(finished: Path):
    before = contents(finished)
    with pytest.raises(RunError, match=r"is finished; its model is .*model\.safetensors"):
        resume(finished, frequent())
    assert contents(finished) == before


def test_what_is_no_run_cannot_be_resumed(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match="holds no run to resume"):
            resume(folder, frequent())


def test_a_run_whose_preset_is_damaged_says_so(tmp_path: Path):
    (tmp_path / "preset.json").write_text("{", encoding="utf-8")
    with pytest.raises(PresetError, match=r"preset\.json' cannot be read"):
        resume(tmp_path, frequent())


def test_a_network_that_does_not_fit_leaves_no_folder_behind(tmp_path: Path):
    with pytest.raises(DataError, match="mean and std have 3 and 3"):
        train(small(data__mean=[0.1, 0.2, 0.3], data__std=[1, 1, 1]), tmp_path / "out", frequent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [DeviceError("too small"), OSError(28, "No space left on device"), SystemExit(1)])
@pytest.mark.parametrize("place", ["_begin", "_step"])
def test_a_run_that_fails_before_its_first_step_is_not_in_the_way_of_the_next(
    place: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(self: Trainer) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(Trainer, place, fail)
        with pytest.raises(type(error)):
            train(small(train__epochs=1), tmp_path / "out", frequent())
    assert list(tmp_path.iterdir()) == []
    assert train(small(train__epochs=1), tmp_path / "out", frequent()) is not None


def test_what_was_in_the_folder_stays_where_a_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".notes").write_text("mine", encoding="utf-8")
    monkeypatch.setattr(Trainer, "_step", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(small(), tmp_path, frequent())
    assert contents(tmp_path) == {".notes": b"mine"}


def test_a_run_that_fails_later_keeps_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = Trainer._step

    def fail(self: Trainer) -> None:
        if self.progress.step == 1:
            raise DeviceError("too small")
        step(self)

    monkeypatch.setattr(Trainer, "_step", fail)
    with pytest.raises(DeviceError):
        train(small(), tmp_path / "out", frequent())
    assert RunFolder(tmp_path / "out").checkpoints()


# --- one process at a time, and one preset ---------------------------------------------------------------


@contextmanager
def training(out: Path) -> Iterator[Any]:
    """Another process that trains the run in `out`, and stands still at its first step."""
    here, there = processes.context().Pipe()
    process = processes.context().Process(target=stand_still, args=(out, there))
    process.start()
    try:
        assert here.poll(60)
        assert here.recv() == "trains"
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("begun", [True, False], ids=["resumed", "new"])
def test_two_processes_do_not_train_one_run(begun: bool, tmp_path: Path):
    out = tmp_path / "out"
    if begun:
        train(small(), out, frequent(should_stop=stop_before(0)))
    with training(out) as process:
        before = contents(out)
        with pytest.raises(RunError, match=rf"another process is training the run in {out}; wait until it ends"):
            resume(out, frequent())
        with pytest.raises(RunError, match=f"{out} exists already"):
            train(small(), out, frequent())
        assert contents(out) == before
        process.kill()
        process.join()
        assert resume(out, frequent()) is not None  # the lock has ended with the process
    assert not (out / ".lock").exists()


def test_a_lock_that_is_held_names_no_run_that_is_not_there(tmp_path: Path):
    with pytest.raises(RunError, match="holds no run to resume"):
        resume(tmp_path / "none", frequent())
    assert list(tmp_path.iterdir()) == []


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of preset.json."""
    file = folder / "preset.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (values[section] if section else values)[field] = value
    file.write_text(json.dumps(values), encoding="utf-8")


EDITS = [
    ({"train__epochs": 2}, "train.epochs was 3 and is 2"),
    ({"eps__max": 0.3, "seed": 5}, "seed was 0 and is 5; eps.max was 0.004 and is 0.3"),
    ({"model__channels": [2, 2]}, r"model.channels was \[.*\] and is \[2, 2\]"),
    ({"model": {"name": "mlp", "hidden": [4]}}, "model.name was 'cnn' and is 'mlp'"),
]


@pytest.mark.parametrize(("changes", "named"), EDITS)
def test_a_run_whose_preset_was_changed_is_refused(changes: dict[str, Any], named: str, tmp_path: Path):
    out = tmp_path / "out"
    train(small(), out, frequent(should_stop=stop_before(3)))
    saved = (out / "preset.json").read_text(encoding="utf-8")
    edit(out, **changes)
    with pytest.raises(RunError, match=rf"preset\.json was changed after the run began: {named}.*--preset {out}"):
        resume(out, frequent(should_stop=stop_before(5)))
    (out / "preset.json").write_text(saved, encoding="utf-8")
    resume(out, frequent(should_stop=stop_before(5)))
    edit(out, **changes)
    with pytest.raises(RunError, match="was changed after"):  # a resumed run knows its preset as well
        resume(out, frequent())


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path):
    out = tmp_path / "out"
    train(small(train__epochs=1), out, frequent(should_stop=stop_before(3)))
    for path in RunFolder(out).checkpoints():
        with safe_open(path, framework="pt") as file:
            progress = json.loads(file.metadata()["progress"])
        del progress["preset"]
        save_file(load_file(path), path, {"progress": json.dumps(progress)})
    assert resume(out, frequent()) is not None


def test_a_field_that_the_run_did_not_have_yet_is_its_default(tmp_path: Path):
    preset = small()
    began = preset.model_dump(mode="json")
    del began["train"]["keep_every"]
    check_unchanged(began, preset, tmp_path)


def test_a_linear_rate_needs_time_to_fall():
    with pytest.raises(PresetError, match=r"train\.warmup must be shorter than train\.epochs"):
        small(train__schedule="linear", train__warmup=3)


def test_missing_data_leave_no_folder_behind(tmp_path: Path):
    with pytest.raises(DataError):
        train(small(data__name="tinyimagenet"), tmp_path / "out", frequent(data_dir=tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


# --- what is not finite ----------------------------------------------------------------------------------


def test_weights_that_are_not_a_number_stop_the_run(tmp_path: Path):
    out, preset = tmp_path / "out", small(train__epochs=2)

    def damage() -> None:
        if trainer.progress.step == 14:
            with torch.no_grad():
                trainer.stepper.network.conv2.weight[0, 0, 0, 0] = torch.nan

    trainer = Trainer(preset, new_folder(out, preset), load_run_images(preset, None), frequent(should_stop=damage))
    message = r"step 14: .* is nan; .*'conv2_relu'.*last good checkpoint is .*step-000000010\.safetensors"
    with pytest.raises(NonFiniteError, match=message):
        trainer.run()
    assert not (out / "model.safetensors").exists()
    assert resume(out, frequent()) is not None


def all_finite(path: Path) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())


def test_a_huge_learning_rate_stops_the_run(tmp_path: Path):
    message = r"step 0: after its update .*'conv1_relu'.*last good checkpoint is .*step-000000000\.safetensors"
    with pytest.raises(NonFiniteError, match=message):
        train(small(train__learning_rate=1e30), tmp_path / "out", frequent())
    (checkpoint,) = RunFolder(tmp_path / "out").checkpoints()
    assert all_finite(checkpoint)
    with pytest.raises(NonFiniteError, match=message):
        resume(tmp_path / "out", frequent())


@pytest.mark.parametrize("epochs", [1, 2])
def test_an_update_that_overflows_is_never_saved(epochs: int, tmp_path: Path):
    out, whole = tmp_path / "out", small(train__learning_rate=1e39, train__batch_size=600, train__epochs=epochs)
    with pytest.raises(NonFiniteError, match=r"step [01]: .*last good checkpoint is .*step-000000000\.safetensors"):
        train(whole, out, frequent())
    assert [all_finite(path) for path in RunFolder(out).checkpoints()] == [True]
    assert not (out / "model.safetensors").exists()


# --- where nothing can be written ------------------------------------------------------------------------


def test_a_file_in_the_way_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match=r"cannot make the folder .*file/out"):
        train(small(), tmp_path / "file" / "out", frequent())
    with pytest.raises(RunError, match="not an empty folder"):
        train(small(), tmp_path / "file", frequent())
    assert contents(tmp_path) == {"file": b"in the way"}


def test_a_checkpoint_folder_that_is_a_file_is_an_error(tmp_path: Path):
    out = tmp_path / "out"
    train(small(), out, frequent(should_stop=stop_before(0)))
    shutil.rmtree(out / "checkpoints")
    (out / "checkpoints").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match=r"cannot write .*step-000000000\.safetensors"):
        resume(out, frequent())


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(finished: Path, tmp_path: Path):
    out = tmp_path / "out"
    train(small(), out, frequent(should_stop=stop_before(0)))
    before = (out / "checkpoints" / "step-000000000.safetensors").read_bytes()
    here, there = processes.context().Pipe()
    process = processes.context().Process(target=resume_on_a_full_disk, args=(out, there))
    process.start()
    process.join()
    assert here.poll()
    checkpoint = out / "checkpoints" / "step-000000010.safetensors"
    assert here.recv() == f"cannot write {checkpoint}: File too large. Nothing was changed."
    assert [path.read_bytes() for path in (out / "checkpoints").iterdir()] == [before]
    assert resume(out, frequent()) is not None
    assert_same_run(finished, out)


# --- its data ---------------------------------------------------------------------------------------------


def test_a_run_goes_on_only_with_the_data_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    train(small(train__epochs=1), out, frequent(should_stop=stop_before(3)))
    changed = load_run_images(small(train__epochs=1), None)
    changed.train.images[0, 0, 0, 0] += 1
    monkeypatch.setattr("certtrain.training.api.load_run_images", lambda *arguments: changed)
    with pytest.raises(RunError, match="not those that the run"):
        resume(out, frequent())
    monkeypatch.undo()
    assert resume(out, frequent()) is not None
