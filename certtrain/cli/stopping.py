"""How work is stopped from outside: after a time, or by Ctrl-C."""

import signal
import time
from types import FrameType

import typer


def seconds(text: str) -> float:
    """Seconds from 90, 90s, 9m or 2h."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        value = float(text[:-1] if unit else text) * (unit or 1)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a time; write it like 90s, 9m or 2h") from error
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{text!r} is not a time above zero")
    return value


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
