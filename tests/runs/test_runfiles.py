"""Where networks are on disk: model files, run folders, checkpoints, and what to call them."""

import os
import shutil
from pathlib import Path

import pytest

from certtrain.errors import ModelFileError, RunError
from certtrain.runs.runfiles import (
    NetworkFile,
    RunNetwork,
    check_run,
    find_networks,
    find_run_networks,
    newest_run,
    short_names,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder whose files are empty: only their names matter here."""
    folder = tmp_path / "run"
    for name in ("preset.json", "checkpoints/step-000000010.safetensors", "checkpoints/step-000000123.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:09d}.safetensors"


def test_a_model_file_is_itself(tmp_path: Path):
    (tmp_path / "m.safetensors").touch()
    assert find_networks(tmp_path / "m.safetensors") == [NetworkFile(tmp_path / "m.safetensors")]


def test_a_checkpoint_knows_its_run(run: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_networks(checkpoint(run, 10)) == [NetworkFile(checkpoint(run, 10), run)]
    monkeypatch.chdir(run / "checkpoints")
    (here,) = find_networks(Path("step-000000010.safetensors"))
    assert here.run == run


def test_a_checkpoint_elsewhere_is_taken_for_a_model_file(run: Path, tmp_path: Path):
    moved = shutil.copy(checkpoint(run, 10), tmp_path)
    assert find_networks(Path(moved)) == [NetworkFile(Path(moved))]


def test_of_a_running_run_the_newest_checkpoint_comes_first(run: Path):
    assert find_networks(run) == [NetworkFile(checkpoint(run, 123), run), NetworkFile(checkpoint(run, 10), run)]


def test_of_a_finished_run_it_is_the_model(run: Path):
    (run / "model.safetensors").touch()
    assert find_networks(run) == [NetworkFile(run / "model.safetensors")]


def test_what_is_not_there_is_an_error(tmp_path: Path, run: Path):
    with pytest.raises(ModelFileError, match="no model file"):
        find_networks(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"holds no run: it has no preset\.json"):
        find_networks(tmp_path / "empty")
    with pytest.raises(RunError, match="is not a folder"):
        check_run(tmp_path / "absent")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="no checkpoint yet"):
        find_networks(run)


def test_networks_come_in_the_order_of_the_epochs(run: Path):
    for epoch in (2, 10):
        kept = run / "epochs" / f"epoch-{epoch:04d}.safetensors"
        kept.parent.mkdir(exist_ok=True)
        kept.touch()
    (run / "model.safetensors").touch()
    networks = find_run_networks(run, steps_per_epoch=10, epochs=20)
    assert [(network.step, network.epoch, network.file.path.stem) for network in networks] == [
        (10, 1.0, "step-000000010"),
        (20, 2, "epoch-0002"),
        (100, 10, "epoch-0010"),
        (123, 12.3, "step-000000123"),
        (200, 20, "model"),
    ]


def test_of_the_same_network_one_is_left_out(run: Path):
    (run / "model.safetensors").touch()
    networks = find_run_networks(run, steps_per_epoch=41, epochs=3)
    assert [network.file.path.stem for network in networks] == ["step-000000010", "model"]


def test_before_the_first_epoch_is_over_only_the_start_has_a_number(run: Path):
    checkpoint(run, 0).touch()
    networks = find_run_networks(run, steps_per_epoch=None, epochs=3)
    assert [(network.step, network.epoch) for network in networks] == [(0, 0), (10, None), (123, None)]


def test_other_files_in_the_folder_are_no_checkpoints(run: Path):
    for name in ("step-x.safetensors", ".step-000000001.safetensors.abc", "notes.txt"):
        (run / "checkpoints" / name).touch()
    assert [network.step for network in find_run_networks(run, 10, 3)] == [10, 123]


def test_an_empty_run_has_no_networks(tmp_path: Path):
    assert find_run_networks(tmp_path, 10, 3) == list[RunNetwork]()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.safetensors"], ["a"]),
        (["x/a.safetensors", "x/b.safetensors"], ["a", "b"]),
        (["x/a.safetensors", "y/a.safetensors"], ["x/a", "y/a"]),
        (["x/z/a.safetensors", "y/z/a.safetensors", "y/z/b"], ["x/z/a", "y/z/a", "y/z/b"]),
        (["run.v2", "run.v3"], ["run.v2", "run.v3"]),
        (["a.safetensors", "a.safetensors"], ["a", "a"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths: list[str], names: list[str]):
    assert short_names([Path(path) for path in paths]) == names


def test_a_runs_model_is_named_after_the_run(run: Path):
    assert short_names([run / "model.safetensors", Path("model.safetensors")]) == ["run", "model"]


def test_the_newest_run_is_the_one_whose_network_was_written_last(tmp_path: Path):
    with pytest.raises(RunError, match="there is no run with a network"):
        newest_run(tmp_path)
    for name, time in {"b": 3, "a": 2, "c": 1}.items():
        checkpoint_file = tmp_path / name / "checkpoints" / "step-000000001.safetensors"
        checkpoint_file.parent.mkdir(parents=True)
        (tmp_path / name / "preset.json").touch()
        checkpoint_file.touch()
        os.utime(checkpoint_file, (time, time))
    (tmp_path / "without a network").mkdir()
    (tmp_path / "without a network" / "preset.json").touch()
    assert newest_run(tmp_path) == tmp_path / "b"
    (tmp_path / "c" / "model.safetensors").touch()  # now
    assert newest_run(tmp_path) == tmp_path / "c"


def test_a_folder_of_runs_lists_them_the_newest_first(tmp_path: Path):
    runs = tmp_path / "runs"
    for number in range(7):
        (runs / f"r{number}").mkdir(parents=True)
        for name in ("preset.json", "model.safetensors"):
            (runs / f"r{number}" / name).touch()
        os.utime(runs / f"r{number}" / "model.safetensors", (number, number))
    listed = ", ".join(str(runs / f"r{number}") for number in (6, 5, 4, 3, 2))
    with pytest.raises(RunError, match=f"a folder of runs, not a run; .*: {listed} and 2 older ones$"):
        check_run(runs)
    assert newest_run(runs) == runs / "r6"
