"""Event files hold what the metrics do, however often a run was stopped, killed and resumed."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from certtrain import resume, train
from certtrain.errors import MissingExtra, StorageError
from certtrain.training.context import RunContext
from certtrain.training.events import EpochDone, Event
from certtrain.training.pacing import Pacing
from certtrain.training.tensorboard import TensorBoardLog
from helpers.small_runs import frequent, metrics, report, small, stop_before

pytestmark = pytest.mark.usefixtures("short")


@pytest.fixture(autouse=True)
def installed(request: pytest.FixtureRequest) -> None:
    """Only where event files can be written."""
    pytest.importorskip("tensorboard", reason="event files need the extra 'tensorboard'")


class Killed(Exception):
    """Stands for the end of a process."""


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def assert_events_are_the_metrics(folder: Path) -> None:
    found, lines = events(folder), metrics(folder)
    for tag, name in (
        ("loss/loss", "loss"),
        ("training/eps", "eps"),
        ("accuracy/natural_accuracy", "natural_accuracy"),
    ):
        points = [(point.step, pytest.approx(point.value, rel=1e-6)) for point in found.Scalars(tag)]
        assert points == [(line["epoch"], line[name]) for line in lines], tag
    for state in ("active", "dead", "growth"):
        points = [pytest.approx(point.value, rel=1e-6) for point in found.Scalars(f"{state}/conv2_relu")]
        assert points == [line["layers"][1][state] for line in lines], state


def test_a_run_leaves_its_numbers_its_results_and_its_preset(tmp_path: Path):
    out = tmp_path / "out"
    train(small(), out, frequent(emit=TensorBoardLog()))
    assert_events_are_the_metrics(out)
    results = report(out)["results"]
    for name in ("natural_accuracy", "attacked_accuracy", "certified_accuracy", "verified_error"):
        (point,) = events(out).Scalars(f"result/test_{name}")
        assert (point.step, point.value) == (3, pytest.approx(results[name]))
    (text,) = events(out).Tensors("preset/text_summary")
    assert b'"name": "digits"' in text.tensor_proto.string_val[0]


def test_every_number_of_the_metrics_is_there(tmp_path: Path):
    out = tmp_path / "out"
    train(small(), out, frequent(emit=TensorBoardLog()))
    last_parts = {tag.partition("/")[2] for tag in events(out).Tags()["scalars"]}
    assert set(metrics(out)[0]) - {"epoch", "step", "layers"} <= last_parts


def test_a_killed_run_leaves_all_epochs_that_were_done(tmp_path: Path):
    log = TensorBoardLog()

    def until_killed(event: Event) -> None:
        log(event)
        if isinstance(event, EpochDone) and event.record.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        train(small(), tmp_path / "out", frequent(emit=until_killed))
    assert [point.step for point in events(tmp_path / "out").Scalars("loss/loss")] == [1, 2]


@pytest.mark.parametrize("logged", [(True, True, True), (True, False, True), (False, False, True)])
def test_a_resumed_run_has_every_epoch_once(logged: tuple[bool, bool, bool], tmp_path: Path):
    out = tmp_path / "out"
    first, second, third = (TensorBoardLog() if wanted else lambda event: None for wanted in logged)
    train(small(), out, frequent(emit=first, should_stop=stop_before(13)))
    resume(out, frequent(emit=second, should_stop=stop_before(10)))
    resume(out, frequent(emit=third))
    assert_events_are_the_metrics(out)


def test_epochs_trained_again_are_written_once(tmp_path: Path):
    out, log = tmp_path / "out", TensorBoardLog()

    def until_killed(event: Event) -> None:
        log(event)
        if isinstance(event, EpochDone) and event.record.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        train(small(), out, RunContext(emit=until_killed, pacing=Pacing(epoch_checkpoint=1e9)))
    time.sleep(1.1)  # files of one second differ in a counter alone, whose 10 sorts before its 9
    resume(out, frequent(emit=TensorBoardLog()))  # from the beginning: there was no checkpoint since
    assert_events_are_the_metrics(out)


def test_epochs_written_again_keep_their_distances_in_time(tmp_path: Path):
    out = tmp_path / "out"
    train(small(), out, frequent(should_stop=stop_before(25)))
    resume(out, frequent(emit=TensorBoardLog()))
    first, second, _ = (point.wall_time for point in events(out).Scalars("loss/loss"))
    seconds = [line["seconds"] for line in metrics(out)]
    assert second - first == pytest.approx(seconds[1] - seconds[0], abs=1e-3)


def test_without_tensorboard_it_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtra, match=r'event files need tensorboard: pip install "certtrain\[tensorboard\]"'):
        TensorBoardLog()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path):
    log = TensorBoardLog()

    def in_the_way(event: Event) -> None:
        (tmp_path / "out" / "tensorboard").write_text("in the way")
        log(event)

    with pytest.raises(StorageError, match=r"cannot write event files to .*tensorboard"):
        train(small(), tmp_path / "out", frequent(emit=in_the_way))
