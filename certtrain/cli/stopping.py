"""Stopping a command from outside: after some time, or by Ctrl-C."""

import signal
import time
from types import FrameType


class Stopper:
    """Says whether to stop: after this many `seconds`, or on SIGINT or SIGTERM. A second signal ends the process."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.start, self.interrupted = seconds, time.monotonic(), False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(number, signal.SIG_DFL)

    def reason(self) -> str | None:
        """The reason to stop; None to continue."""
        if self.interrupted:
            return "interrupted"
        over = self.seconds is not None and time.monotonic() - self.start >= self.seconds
        return "the time budget is spent" if over else None
