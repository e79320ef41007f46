"""How many threads compute, and how they wait for each other.

PyTorch computes with one thread a core, and OpenMP's threads wait for each other in a busy loop. Where another
program needs a core, a thread that is held up holds up all others, which keep the cores busy by waiting: a training
then takes several times as long. Threads that wait passively give their core away. That costs small operations more
than a second thread gains, so small steps have one thread. `benchmarks/threads.py` measures both.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SMALL = 300_000_000  # multiplications of a training step, below which a second thread gains nothing
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # by which a user says how threads wait


def wait_passively() -> None:
    """Let threads wait passively, where the user has not chosen; without effect once torch is loaded."""
    if "torch" not in sys.modules and not any(name in os.environ for name in CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


@contextmanager
def threads_for(work: int, device: str) -> Iterator[None]:
    """Within it, steps of `work` multiplications on a CPU have one thread if they are small.

    Other steps have as many as before, and so have all where OMP_NUM_THREADS says how many.
    """
    import torch

    before = torch.get_num_threads()
    chosen = 1 if device == "cpu" and work < SMALL and "OMP_NUM_THREADS" not in os.environ else before
    torch.set_num_threads(chosen)
    try:
        yield
    finally:
        torch.set_num_threads(before)
