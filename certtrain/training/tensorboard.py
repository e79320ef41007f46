"""The curves and results of a run as TensorBoard event files."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certtrain.errors import MissingExtra, StorageError
from certtrain.runs.epoch import Epoch, LayerState
from certtrain.runs.history import read_epochs
from certtrain.training.events import EpochDone, Event, Finished, Started, Stopped

LAYER_NUMBERS = ("active", "unstable", "inactive", "dead", "width", "growth")
RESULTS = ("natural_accuracy", "pgd_accuracy", "certified_accuracy", "verified_error")


class TensorBoardLog:
    """A listener that writes each epoch's numbers to `tensorboard/` in the run's folder.

    A resumed run writes all its epochs again, which replace those that were
    written before it was stopped, so that the files hold the same epochs as
    metrics.jsonl. Raises MissingExtra if the package tensorboard is not
    installed, StorageError if a file cannot be written.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra('event files need tensorboard: pip install "certtrain[tensorboard]"') from error
        self._make = SummaryWriter
        self._writer: SummaryWriter | None = None
        self._epoch = 0

    def __call__(self, event: Event) -> None:
        """Write the numbers of one event."""
        match event:
            case Started():
                with _written(event.folder / "tensorboard"):
                    self._open(event)
            case EpochDone() if self._writer is not None:
                with _written(Path(self._writer.log_dir)):
                    self._add(event.record)
                    self._writer.flush()  # so that the files of a killed run have all its epochs
            case Finished() if self._writer is not None:
                with _written(Path(self._writer.log_dir)):
                    self._add_results(event.report.split, event.report.to_dict())
                    self._writer.close()
            case Stopped() if self._writer is not None:
                with _written(Path(self._writer.log_dir)):
                    self._writer.close()

    def _open(self, event: Started) -> None:
        self._writer = self._make(str(event.folder / "tensorboard"), purge_step=0)
        self._writer.add_text("preset", f"```json\n{event.preset.model_dump_json(indent=2)}\n```", 0)
        self._replay(read_epochs(event.folder))
        self._writer.flush()

    def _replay(self, epochs: tuple[Epoch, ...]) -> None:
        """Write the epochs from before a resumption, at times that differ by their seconds of training."""
        now, last = time.time(), _seconds(epochs[-1]) if epochs else 0.0
        for epoch in epochs:
            self._add(epoch, now - last + _seconds(epoch))

    def _add(self, record: Epoch, when: float | None = None) -> None:
        assert self._writer is not None  # a run starts before its first epoch ends
        numbers = {_tag(name): value for name, value in record.numbers.items() if name != "step"}
        for layer in map(LayerState.to_dict, record.layers):
            numbers |= {f"{name}/{layer['name']}": layer[name] for name in LAYER_NUMBERS}
        for tag, value in numbers.items():
            if value is not None:
                self._writer.add_scalar(tag, value, record.epoch, when)
        self._epoch = record.epoch

    def _add_results(self, split: str, results: dict[str, Any]) -> None:
        assert self._writer is not None  # as above
        for name in RESULTS:
            self._writer.add_scalar(f"result/{split}_{name}", results[name], self._epoch)


def _tag(name: str) -> str:
    """A number's name, with the group in which TensorBoard shows it."""
    if name.endswith("accuracy"):
        return f"accuracy/{name}"
    if name.endswith("loss"):
        return f"loss/{name}"
    return f"training/{name}"


def _seconds(epoch: Epoch) -> float:
    return epoch.measured.get("seconds") or 0.0


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write event files to {folder}: {error.strerror or error}") from error
