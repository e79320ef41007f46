"""What is logged to MLflow and Weights & Biases: every epoch once, however often a run was stopped and resumed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from certtrain import resume, train
from certtrain.errors import MissingExtra, RunError
from certtrain.spec.preset import Preset
from certtrain.training.events import EpochDone, Event
from certtrain.training.logged import logged_numbers
from certtrain.training.tracking import MLflow, TrackedRun, WeightsAndBiases
from helpers.small_runs import PER_EPOCH, frequent, metrics, report, small, stop_before

pytestmark = pytest.mark.usefixtures("short")


class Recorded:
    """A stand-in for a service: it keeps what it is told."""

    name = "recorded"

    def __init__(self, fails_at: int | None = None) -> None:
        self.opened: list[str | None] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed: list[bool] = []
        self.fails_at = fails_at

    def open(self, folder: Path, preset: Preset, run: str | None) -> str:
        self.opened.append(run)
        if self.fails_at == 0:
            raise OSError("no server")
        return run or "id-1"

    def log(self, numbers: dict[str, float], epoch: int) -> None:
        if epoch == self.fails_at:
            raise OSError("the server is gone")
        self.logged.append((epoch, numbers))

    def close(self, *, finished: bool) -> None:
        self.closed.append(finished)

    @property
    def epochs(self) -> list[int]:
        return [epoch for epoch, numbers in self.logged if "training/eps" in numbers]


def test_every_epoch_and_the_results_with_their_numbers(tmp_path: Path) -> None:
    service = Recorded()
    train(small(), tmp_path / "out", frequent(emit=TrackedRun(service)))
    assert (service.opened, service.epochs, service.closed) == ([None], [1, 2, 3], [True])
    for line, (_, numbers) in zip(metrics(tmp_path / "out"), service.logged, strict=False):
        assert numbers["accuracy/certified_accuracy"] == line["certified_accuracy"]
        assert numbers["loss/loss"] == line["loss"]
        assert numbers["unstable/conv2_relu"] == line["layers"][1]["unstable"]
    results = report(tmp_path / "out")["results"]
    assert service.logged[-1][1]["result/test_certified_accuracy"] == results["certified_accuracy"]
    record = json.loads((tmp_path / "out" / "tracking.json").read_text())
    assert record == {"recorded": {"run": "id-1", "epoch": 3}}


def test_a_resumed_run_goes_on_in_the_same_one(tmp_path: Path) -> None:
    service = Recorded()
    emit = TrackedRun(service)
    train(small(), tmp_path / "out", frequent(emit=emit, should_stop=stop_before(PER_EPOCH + 3)))
    assert (service.epochs, service.closed) == ([1], [False])
    resume(tmp_path / "out", frequent(emit=TrackedRun(service)))
    assert (service.opened, service.epochs, service.closed) == ([None, "id-1"], [1, 2, 3], [False, True])


def test_epochs_that_were_trained_without_it_are_logged_when_it_begins(tmp_path: Path) -> None:
    train(small(), tmp_path / "out", frequent(should_stop=stop_before(PER_EPOCH + 3)))
    service = Recorded()
    resume(tmp_path / "out", frequent(emit=TrackedRun(service)))
    assert service.epochs == [1, 2, 3]


def test_a_killed_run_logs_no_epoch_twice(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    service = Recorded()
    tracked = TrackedRun(service)

    def emit(event: Event) -> None:
        tracked(event)
        if isinstance(event, EpochDone) and event.record.epoch == 2:
            raise Killed

    with pytest.raises(Killed):  # before the checkpoint of this epoch
        train(small(), tmp_path / "out", frequent(emit=emit))
    resume(tmp_path / "out", frequent(emit=TrackedRun(service)))
    assert service.epochs == [1, 2, 3]


def test_a_service_that_cannot_be_used_is_an_error_at_once_and_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="recorded cannot be used: no server"):
        train(small(), tmp_path / "out", frequent(emit=TrackedRun(Recorded(fails_at=0))))
    assert not (tmp_path / "out").exists()


def test_a_service_that_fails_later_does_not_end_the_training(tmp_path: Path) -> None:
    service = Recorded(fails_at=2)
    with pytest.warns(UserWarning, match="recorded failed, and the run goes on without it: the server is gone"):
        train(small(), tmp_path / "out", frequent(emit=TrackedRun(service), should_stop=stop_before(2 * PER_EPOCH + 3)))
    assert service.epochs == [1]
    service.fails_at = None
    resume(tmp_path / "out", frequent(emit=TrackedRun(service)))
    assert service.epochs == [1, 2, 3]


@pytest.mark.parametrize(("package", "service"), [("mlflow", MLflow), ("wandb", WeightsAndBiases)])
def test_a_package_that_is_missing_is_named(package: str, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf'pip install "certtrain\[{package}\]"'):
        service()


# --- the packages themselves -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_has_every_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="this needs the extra 'mlflow'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    out = tmp_path / "out"
    train(small(), out, frequent(emit=TrackedRun(MLflow()), should_stop=stop_before(PER_EPOCH + 3)))
    client = mlflow.MlflowClient()
    run = json.loads((out / "tracking.json").read_text())["mlflow"]["run"]
    assert client.get_run(run).info.status == "KILLED"
    resume(out, frequent(emit=TrackedRun(MLflow())))
    found = client.get_run(run)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "out")
    assert (found.data.params["train.epochs"], found.data.params["objective.name"]) == ("3", "ibp")
    history = client.get_metric_history(run, "accuracy/certified_accuracy")
    logged = sorted((point.step, point.value) for point in history)
    assert logged == [(line["epoch"], pytest.approx(line["certified_accuracy"])) for line in metrics(out)]
    certified = report(out)["results"]["certified_accuracy"]
    assert found.data.metrics["result/test_certified_accuracy"] == pytest.approx(certified)
    assert len(client.search_runs([found.info.experiment_id])) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Weights & Biases' own
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="this needs the extra 'wandb'")
    for name, value in {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    sent: list[dict[str, Any]] = []
    service = WeightsAndBiases()
    tracked = TrackedRun(service)
    train(small(), out, frequent(emit=tracked, should_stop=stop_before(PER_EPOCH + 3)))
    again = WeightsAndBiases()
    resumed = TrackedRun(again)

    def emit(event: Event) -> None:
        resumed(event)
        if isinstance(event, EpochDone):
            sent.append(dict(again.run.summary))

    resume(out, frequent(emit=emit))
    assert service.run.id == again.run.id
    assert [summary["epoch"] for summary in sent] == [2, 3]
    for summary, line in zip(sent, metrics(out)[1:], strict=True):
        assert summary["accuracy/certified_accuracy"] == line["certified_accuracy"]
    files = list((out / "wandb").glob(f"offline-run-*-{again.run.id}/run-{again.run.id}.wandb"))
    assert len(files) == 2
    assert all(file.stat().st_size > 0 for file in files)


def test_numbers_that_are_not_known_are_left_out(tmp_path: Path) -> None:
    events: list[Event] = []
    train(small(train__epochs=1), tmp_path / "out", frequent(emit=events.append))
    (record,) = [event.record for event in events if isinstance(event, EpochDone)]
    numbers = logged_numbers(record)
    assert all(isinstance(value, float) for value in numbers.values())
    assert "training/step" not in numbers
