"""How work is stopped from outside: after a time, or by Ctrl-C."""

import signal
import time
from types import FrameType


class Stopper:
    """Asks work to stop when its time is over or the user interrupts; a second interrupt is not held back."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.start, self.interrupted = seconds, time.monotonic(), False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(number, signal.SIG_DFL)

    def reason(self) -> str | None:
        if self.interrupted:
            return "interrupted"
        over = self.seconds is not None and time.monotonic() - self.start >= self.seconds
        return "the time budget is spent" if over else None
