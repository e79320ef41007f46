"""How often a training does what does not decide its result: readings, layer diagnostics and checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Pacing:
    """Seconds between two readings, diagnostics and checkpoints, and shares of the time that they may take at most.

    None of it changes what is trained.
    """

    reading: float = 0.25
    """Between two readings of what the steps have measured, each of which waits for the device."""
    diagnostics: float = 20.0
    """Between two diagnostics of the ReLU layers; the end of an epoch has one in any case."""
    diagnostics_share: float = 0.05
    """Where diagnostics would take more of the time than this, they come less often."""
    epoch_checkpoint: float = 20.0
    """From one checkpoint to the next at the end of an epoch."""
    checkpoint: float = 300.0
    """From one checkpoint to the next within an epoch."""
    checkpoint_share: float = 0.01
    """Where checkpoints at the ends of epochs would take more of the time than this, they come less often."""


DEFAULT_PACING = Pacing()


class Stopwatch:
    """Measures time from its making or its last restart."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def seconds(self) -> float:
        """So far."""
        return time.monotonic() - self.start

    def restart(self) -> float:
        """The seconds until now, from which it starts again."""
        seconds = self.seconds()
        self.start += seconds
        return seconds


class Recurring:
    """Work that is due again some seconds after it was done; later, where it takes more than `share` of the time."""

    def __init__(self, seconds: float, share: float) -> None:
        self.shortest, self.share = seconds, share
        self.pause, self.watch = seconds, Stopwatch()

    def due(self, seconds: float | None = None) -> bool:
        """Whether its pause is over; `seconds` may give another pause for this once."""
        return self.watch.seconds() >= (self.pause if seconds is None else seconds)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Within it the work is done."""
        self.watch.restart()
        yield
        self.pause = max(self.shortest, self.watch.restart() / self.share)
