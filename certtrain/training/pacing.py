"""How often a training reads its measures, computes layer diagnostics and saves checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Pacing:
    """Seconds between two readings, diagnostics or checkpoints, and the largest share of the time that they may take.

    None of it changes the trained network.
    """

    reading: float = 0.25
    """Between two readings of the measures. A reading waits for the device."""
    diagnostics: float = 20.0
    """Between two diagnostics of the ReLU layers; they are also computed at the end of every epoch."""
    diagnostics_share: float = 0.05
    """If diagnostics would take a larger share of the time than this, they are less frequent."""
    epoch_checkpoint: float = 20.0
    """Between two checkpoints, at the end of an epoch."""
    checkpoint: float = 300.0
    """Between two checkpoints, within an epoch."""
    checkpoint_share: float = 0.01
    """If checkpoints at the ends of epochs would take a larger share of the time than this, they are less frequent."""


DEFAULT_PACING = Pacing()


class Stopwatch:
    """Measures time since it was made or last restarted."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def seconds(self) -> float:
        """The seconds until now."""
        return time.monotonic() - self.start

    def restart(self) -> float:
        """Start again from now, and return the seconds until now."""
        seconds = self.seconds()
        self.start += seconds
        return seconds


class Recurring:
    """When some work is due: `seconds` after it was last done, or later if it takes more than `share` of the time."""

    def __init__(self, seconds: float, share: float) -> None:
        self.shortest, self.share = seconds, share
        self.pause, self.watch = seconds, Stopwatch()

    def due(self, seconds: float | None = None) -> bool:
        """Whether the work is due; `seconds`, if given, replaces the pause for this call."""
        return self.watch.seconds() >= (self.pause if seconds is None else seconds)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The context in which the work is done, which measures its time."""
        self.watch.restart()
        yield
        self.pause = max(self.shortest, self.watch.restart() / self.share)
