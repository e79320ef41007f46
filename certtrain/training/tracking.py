"""The curves and results of a run in MLflow or Weights & Biases, by the same events as TensorBoard's.

The run's id there, and the last epoch that is logged, are kept in tracking.json in the run's folder, so that a resumed
run goes on in the same one, with every epoch once.
"""

import os
import secrets
import time
import warnings
from pathlib import Path
from typing import Any, Protocol

from certtrain.errors import MissingExtra, RunError
from certtrain.runs.agreement import flat_fields
from certtrain.runs.history import read_epochs
from certtrain.runs.runfiles import TRACKING, tracking_record
from certtrain.spec.preset import Preset
from certtrain.storage import write_json
from certtrain.training.events import EpochDone, Event, Finished, Started, Stopped
from certtrain.training.logged import logged_numbers, result_numbers

PROJECT = "certtrain"  # the experiment or project, unless the service's own environment variable names another
LONGEST_PARAMETER, MOST_PARAMETERS = 500, 100  # characters of a value, and values in a request, that MLflow takes


class Service(Protocol):
    """Where the numbers of a run go. Its methods may raise any error of the package behind it."""

    name: str

    def open(self, folder: Path, preset: Preset, run: str | None) -> str:
        """Begin a run, or go on with the one of this id; gives the id."""

    def log(self, numbers: dict[str, float], epoch: int) -> None:
        """Add the numbers of an epoch."""

    def close(self, *, finished: bool) -> None:
        """End the run, which is finished or may be resumed."""


class TrackedRun:
    """A listener that logs each epoch, and the results, to a service.

    Raises RunError if the service cannot be used when the run begins. If it fails later, there is a warning, and the
    training goes on without it; what it lacks is logged when the run is resumed.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.folder, self.run, self.epoch = service, Path(), "", 0
        self.works = False

    def __call__(self, event: Event) -> None:
        """Log the numbers of one event."""
        match event:
            case Started():
                self._open(event)
            case EpochDone(record=record):
                self._try(lambda: self._log(logged_numbers(record), record.epoch))
            case Finished(report=report):
                self._try(lambda: self.service.log(result_numbers(report.to_dict()), self.epoch))
                self._try(lambda: self.service.close(finished=True))
            case Stopped():
                self._try(lambda: self.service.close(finished=False))

    def _open(self, event: Started) -> None:
        """Begin or go on, and log the epochs that were not logged before."""
        self.folder = event.folder
        known = tracking_record(self.folder).get(self.service.name, {})
        self.epoch = known.get("epoch", 0)
        try:
            self.run = self.service.open(event.folder, event.preset, known.get("run"))
        except Exception as error:  # the packages have many kinds
            raise RunError(f"{self.service.name} cannot be used: {error}") from error
        self.works = True
        self._keep()
        for record in read_epochs(event.folder):
            self._try(lambda record=record: self._log(logged_numbers(record), record.epoch))

    def _log(self, numbers: dict[str, float], epoch: int) -> None:
        if epoch > self.epoch:
            self.service.log(numbers, epoch)
            self.epoch = epoch
            self._keep()

    def _keep(self) -> None:
        write_json(
            self.folder / TRACKING,
            tracking_record(self.folder) | {self.service.name: {"run": self.run, "epoch": self.epoch}},
        )

    def _try(self, work: Any) -> None:
        """Do this unless the service has failed before; a failure must not end a training of hours."""
        if not self.works:
            return
        try:
            work()
        except Exception as error:
            self.works = False
            warnings.warn(f"{self.service.name} failed, and the run goes on without it: {error}", stacklevel=2)


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI or in its own default place. Raises MissingExtra if it is not installed."""

    name = "mlflow"

    def __init__(self) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise MissingExtra('--mlflow needs MLflow: pip install "certtrain[mlflow]"') from error
        self.mlflow = mlflow
        self.client: Any = None
        self.run = ""

    def open(self, folder: Path, preset: Preset, run: str | None) -> str:
        """As `Service`; the preset's fields are the parameters of a new run."""
        self.client = self.mlflow.MlflowClient()
        if run is not None:
            self.run = run
            self.client.update_run(run, status="RUNNING")
            return run
        made = self.client.create_run(self._experiment(), run_name=folder.name)
        self.run = made.info.run_id
        fields = flat_fields(preset.model_dump(mode="json"))
        parameters = [self.mlflow.entities.Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in fields]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self.client.log_batch(self.run, params=parameters[first : first + MOST_PARAMETERS])
        self.client.set_tag(self.run, "certtrain.folder", str(folder.absolute()))
        return self.run

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment: str = self.client.create_experiment(name) if found is None else found.experiment_id
        return experiment

    def log(self, numbers: dict[str, float], epoch: int) -> None:
        """As `Service`."""
        now = int(1000 * time.time())
        metrics = [self.mlflow.entities.Metric(name, value, now, epoch) for name, value in numbers.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        """As `Service`."""
        self.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


class WeightsAndBiases:
    """Weights & Biases, as its environment variables say. Raises MissingExtra if it is not installed."""

    name = "wandb"

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra('--wandb needs Weights & Biases: pip install "certtrain[wandb]"') from error
        self.wandb = wandb
        self.run: Any = None

    def open(self, folder: Path, preset: Preset, run: str | None) -> str:
        """As `Service`; the preset is the configuration, and its files are in the run's folder."""
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=run or secrets.token_hex(4),
            resume="allow",
            dir=str(folder),
            config=preset.model_dump(mode="json"),
            settings=self.wandb.Settings(console="off", silent=True),
        )
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")
        return str(self.run.id)

    def log(self, numbers: dict[str, float], epoch: int) -> None:
        """As `Service`."""
        self.run.log({"epoch": epoch, **numbers})

    def close(self, *, finished: bool) -> None:
        """As `Service`."""
        self.run.finish(exit_code=0 if finished else 1)
