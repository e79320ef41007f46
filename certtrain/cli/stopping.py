"""Stopping a command from outside: after some time, or by Ctrl-C."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def _say_stopping() -> None:
    """Say on the error stream that the command will stop."""
    from certtrain import render

    render.say_stopping()


class Stopper:
    """Says whether to stop: after this many `seconds`, or on SIGINT or SIGTERM. A second signal ends the process.

    on_interrupt: called at once when the first signal arrives; by default it says that the command will stop.
    """

    def __init__(self, seconds: float | None, on_interrupt: Callable[[], None] = _say_stopping) -> None:
        self.seconds, self.start, self.interrupted = seconds, time.monotonic(), False
        self.on_interrupt, self.raises = on_interrupt, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(number, signal.SIG_DFL)
        self.on_interrupt()
        if self.raises:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A context in which the first signal raises KeyboardInterrupt, for work that asks for no reason to stop."""
        self.raises = True
        try:
            yield
        finally:
            self.raises = False

    def reason(self) -> str | None:
        """The reason to stop; None to continue."""
        if self.interrupted:
            return "interrupted"
        over = self.seconds is not None and time.monotonic() - self.start >= self.seconds
        return "the time budget is spent" if over else None
