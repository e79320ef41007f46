"""Stopping a command from outside: after some time, or by Ctrl-C."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


def _say_stopping() -> None:
    """Say on the error stream that the command will stop."""
    from certtrain import render

    render.say_stopping()


def how_to_continue(out: Path | None) -> str:
    """How a verification goes on whose certificates are in `out`, if it was given."""
    if out is None:
        return "without --out FILE no results are kept"
    again = shlex.join([*_program(), *(word for word in sys.argv[1:] if word != "--force")])
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:  # torchrun does not tell its processes of all its options
        return f"continue with the same torchrun command on each machine: torchrun … -m {again}"
    return f"continue with: {again}"


def _program() -> list[str]:
    """The words that start the program: torchrun's, if it started this process on one machine."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        return ["certtrain"]
    return ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], "-m", "certtrain"]


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
        """A context in which the first signal, and the end of the time, raise KeyboardInterrupt.

        It is for work that asks for no reason to stop.
        """
        self.raises = True
        try:
            with self._alarm():
                yield
        finally:
            self.raises = False

    @contextmanager
    def _alarm(self) -> Iterator[None]:
        """A context in which the end of the time raises KeyboardInterrupt; Windows has no such signal."""
        if self.seconds is None or sys.platform == "win32":
            yield
            return
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        left = self.start + self.seconds - time.monotonic()
        # A moment late: then `reason` knows that the time is over, and no time at all would mean no alarm.
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.0) + 1e-3)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def reason(self) -> str | None:
        """The reason to stop; None to continue."""
        if self.interrupted:
            return "interrupted"
        over = self.seconds is not None and time.monotonic() - self.start >= self.seconds
        return "the time budget is spent" if over else None
