"""A run's curves as TensorBoard event files."""

from pathlib import Path

from certtrain.errors import MissingExtra
from certtrain.events import EpochDone, Event, Finished, Started, Stopped

LAYER_NUMBERS = ("active", "unstable", "inactive", "dead", "growth")


class TensorBoardLog:
    """Listens to a training, and writes each epoch's numbers to `tensorboard/` in the run's folder.

    Raises MissingExtra where the package tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra('event files need tensorboard: pip install "certtrain[tensorboard]"') from error
        self._make = SummaryWriter
        self._writer: SummaryWriter | None = None

    def __call__(self, event: Event) -> None:
        """Hear of one event."""
        match event:
            case Started():
                self._open(event.folder / "tensorboard", event.step // event.steps_per_epoch)
            case EpochDone():
                self._add(event)
            case Stopped() | Finished() if self._writer is not None:
                self._writer.close()

    def _open(self, folder: Path, epoch: int) -> None:
        # Epochs after the checkpoint are trained again; their old numbers are dropped.
        self._writer = self._make(str(folder), purge_step=epoch + 1)

    def _add(self, event: EpochDone) -> None:
        numbers = {name: value for name, value in event.record.items() if name not in ("epoch", "step")}
        for layer in event.layers:
            numbers |= {f"{name}/{layer.name}": layer.to_dict()[name] for name in LAYER_NUMBERS}
        for name, value in numbers.items():
            if value is not None and self._writer is not None:
                self._writer.add_scalar(name, value, event.epoch)
