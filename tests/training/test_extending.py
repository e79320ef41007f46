"""More epochs for a run: the same as if it had had them from the start, and nothing of it is lost."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from certtrain import train
from certtrain.errors import RunError
from certtrain.runs import extending
from certtrain.runs.extending import extend_run
from certtrain.training.api import resume_run
from certtrain.training.events import Event, Note
from helpers.small_runs import PER_EPOCH, assert_same_run, frequent, report, small, stop_before

pytestmark = pytest.mark.usefixtures("short")
RESULTS = ("model.safetensors", "report.json", "report.html")


def finished(folder: Path, **changes: Any) -> Path:
    assert train(small(train__epochs=2, **changes), folder, frequent()) is not None
    return folder


@pytest.mark.parametrize(
    "changes",
    [{}, {"train__average": 0.9}, {"train__average_from": 2}, {"train__batch_norm_refresh": True}],
    ids=["plain", "moving average", "mean of epochs", "refreshed statistics"],
)
def test_more_epochs_give_the_run_that_had_them_from_the_start(changes: dict[str, Any], tmp_path: Path) -> None:
    run = finished(tmp_path / "run", **changes)
    assert resume_run(run, frequent(), epochs=4) is not None
    assert train(small(train__epochs=4, **changes), tmp_path / "whole", frequent()) is not None
    assert_same_run(run, tmp_path / "whole")
    assert (run / "preset.json").read_bytes() == (tmp_path / "whole" / "preset.json").read_bytes()


def test_the_finished_run_is_kept(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in (*RESULTS, "preset.json")}
    (run / "README.md").write_text("mine")
    events: list[Event] = []
    resume_run(run, frequent(emit=events.append), epochs=3)
    kept = run / "earlier" / "epochs-0002"
    assert {name: (kept / name).read_bytes() for name in before} == before
    assert (kept / "README.md").read_text() == "mine"
    (note,) = [event.text for event in events if isinstance(event, Note) and "goes on" in event.text]
    assert note.startswith(f"the run goes on from 2 to 3 epochs; its model and report so far are in {kept}; all sched")
    resume_run(run, frequent(), epochs=4)
    assert sorted(path.name for path in (run / "earlier").iterdir()) == ["epochs-0002", "epochs-0003"]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_rate_that_depends_on_the_number_of_epochs_is_said(schedule: str, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", train__schedule=schedule)
    events: list[Event] = []
    assert resume_run(run, frequent(emit=events.append), epochs=3) is not None
    (note,) = [event.text for event in events if isinstance(event, Note) and "goes on from" in event.text]
    assert f'train.schedule = "{schedule}" the learning rate depends on the number of epochs' in note
    assert "not the same as a run of 3 epochs" in note


def test_an_unfinished_run_gets_more_epochs_too(tmp_path: Path) -> None:
    train(small(train__epochs=2), tmp_path / "run", frequent(should_stop=stop_before(PER_EPOCH + 3)))
    assert resume_run(tmp_path / "run", frequent(), epochs=3) is not None
    train(small(), tmp_path / "whole", frequent())
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert not (tmp_path / "run" / "earlier").exists()


@pytest.mark.parametrize("moment", ["_write_preset", "write_json", "_keep_results"])
def test_an_interrupted_change_is_done_by_the_same_command(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(tmp_path / "run")
    model = (run / "model.safetensors").read_bytes()

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(extending, moment, fail)
        with pytest.raises(KeyboardInterrupt):
            extend_run(run, 3)
    kept = run / "earlier" / "epochs-0002" / "model.safetensors"
    assert (kept if kept.exists() else run / "model.safetensors").read_bytes() == model
    assert resume_run(run, frequent(), epochs=3) is not None
    train(small(), tmp_path / "whole", frequent())
    assert_same_run(run, tmp_path / "whole")
    assert kept.read_bytes() == model


def test_what_cannot_go_on_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    before = report(run)
    for epochs in (1, 2):
        with pytest.raises(RunError, match=f"has 2 epochs; train.epochs must be more than that, not {epochs}"):
            extend_run(run, epochs)
    with pytest.raises(RunError, match="is not a folder"):
        extend_run(tmp_path / "none", 3)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    shutil.rmtree(other / "checkpoints")
    with pytest.raises(RunError, match="no checkpoint that can be read"):
        extend_run(other, 3)
    preset = json.loads((run / "preset.json").read_text())
    (run / "preset.json").write_text(json.dumps(preset | {"seed": 9}))
    with pytest.raises(RunError, match="was changed after the run began: seed was 0 and is 9"):
        extend_run(run, 3)
    assert report(run) == report(other) == before
