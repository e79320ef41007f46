"""The curves and results of a run as TensorBoard event files."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from certtrain.errors import MissingExtra, StorageError
from certtrain.runs.epoch import Epoch
from certtrain.runs.history import read_epochs
from certtrain.training.events import EpochDone, Event, Finished, Started, Stopped
from certtrain.training.logged import logged_numbers, result_numbers


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
                    self._add_results(result_numbers(event.report.to_dict()))
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
        for tag, value in logged_numbers(record).items():
            self._writer.add_scalar(tag, value, record.epoch, when)
        self._epoch = record.epoch

    def _add_results(self, results: dict[str, float]) -> None:
        assert self._writer is not None  # as above
        for tag, value in results.items():
            self._writer.add_scalar(tag, value, self._epoch)


def _seconds(epoch: Epoch) -> float:
    return epoch.measured.get("seconds") or 0.0


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write event files to {folder}: {error.strerror or error}") from error
