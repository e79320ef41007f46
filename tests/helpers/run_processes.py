"""What processes do that train a small run and are killed or find the disk full: each imports this module."""

import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from certtrain import RunContext, resume, storage, train
from certtrain.errors import StorageError
from certtrain.training.events import EpochDone, Event, StepDone, Verifying
from helpers.small_runs import FREQUENT, frequent, short_runs, small

# When a run is killed: by its last event, which is None while a file is written, and the files that it has synced.
MOMENTS: dict[str, Callable[[Event | None, int], bool]] = {
    "after a step, before its checkpoint": lambda event, syncs: isinstance(event, StepDone) and event.step == 17,
    "between an epoch's metrics and its checkpoint": lambda event, syncs: (
        isinstance(event, EpochDone) and event.record.epoch == 2
    ),
    "while a checkpoint is written": lambda event, syncs: event is None and syncs == 9,
    "while the first checkpoint is written": lambda event, syncs: event is None and syncs == 2,
    "while the model is written": lambda event, syncs: event is None and syncs == 33,
    "while the report is written": lambda event, syncs: event is None and syncs == 34,
    "while it is verified": lambda event, syncs: isinstance(event, Verifying),
}


def train_until_killed(moment: str, out: Path) -> None:
    """Train in the folder, with a checkpoint after every step, until the process kills itself at that moment."""
    torch.set_num_threads(1)
    syncs, sync = 0, os.fsync

    def look(event: Event | None) -> None:
        if MOMENTS[moment](event, syncs):
            os.kill(os.getpid(), signal.SIGKILL)

    def counted_sync(handle: int) -> None:
        nonlocal syncs
        syncs += 1
        look(None)
        sync(handle)

    storage.os.fsync = counted_sync  # type: ignore[attr-defined]
    with short_runs():
        train(small(), out, RunContext(emit=look, pacing=replace(FREQUENT, checkpoint=0.0)))


def stand_still(out: Path, told: Connection) -> None:
    """Train the run in the folder, and stand still before the first step."""

    def wait() -> None:
        told.send("trains")
        time.sleep(60)

    torch.set_num_threads(1)
    context = frequent(should_stop=wait)
    resume(out, context) if out.exists() else train(small(), out, context)


def resume_on_a_full_disk(out: Path, told: Connection) -> None:
    """Go on with the run where no file can be longer than its first checkpoint, and tell the error."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = (out / "checkpoints" / "step-000000000.safetensors").stat().st_size + 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        with short_runs():
            resume(out, frequent())
    except StorageError as error:
        told.send(str(error))
