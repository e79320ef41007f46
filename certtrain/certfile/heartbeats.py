"""Heartbeats of processes on several machines: torchrun does not always notice that a machine is gone."""

import threading
import time
from typing import Any

import torch.distributed as dist

BEAT = 1.0  # seconds between two heartbeats of a process
GIVEN_UP_AFTER = 30.0  # seconds without one after which rank 0 waits for a process no longer


class Heartbeats:
    """What rank 0 of `size` processes knows of the others' heartbeats in the store."""

    def __init__(self, store: Any, size: int) -> None:
        self.store = store
        # By rank: the number of heartbeats, and the time since which it has been this number.
        self.counts = dict.fromkeys(range(1, size), (-1, time.monotonic()))
        self.last_look = -BEAT

    def silent(self) -> frozenset[int]:
        """The ranks without a heartbeat for `GIVEN_UP_AFTER` seconds; one of them may send some again."""
        now = time.monotonic()
        if now - self.last_look >= BEAT:
            if now - self.last_look > GIVEN_UP_AFTER / 2:  # nobody has looked meanwhile
                self.counts = {rank: (count, now) for rank, (count, _) in self.counts.items()}
            self.last_look = now
            for rank, (before, _) in self.counts.items():
                if (count := self.store.add(_key(rank), 0)) != before:
                    self.counts[rank] = count, now
        return frozenset(rank for rank, (_, since) in self.counts.items() if now - since > GIVEN_UP_AFTER)


def start_beating(store: Any, rank: int) -> None:
    """Send heartbeats of this process from now on, also while it computes."""
    threading.Thread(target=_beat, args=(store, rank), daemon=True).start()


def _beat(store: Any, rank: int) -> None:
    while True:
        try:
            store.add(_key(rank), 1)
        except dist.DistError:  # rank 0 has ended; the process finds out itself
            return
        time.sleep(BEAT)


def _key(rank: int) -> str:
    return f"alive/{rank}"
