"""The number of threads that compute, and how they wait for each other.

PyTorch uses one thread for each core, and OpenMP's threads wait for each other in a busy loop. If another program
needs a core, one thread is delayed, and all others wait for it and keep their cores busy: a training then takes
several times as long. Threads that wait passively release their cores. That costs small operations more time than a
second thread saves, so small steps use one thread. `benchmarks/threads.py` measures both.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SMALL = 300_000_000  # multiplications of inference for a batch, below which a second thread saves no time
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # with which users choose how threads wait


def wait_passively() -> None:
    """Make threads wait passively, unless the user chose otherwise; without effect if torch is loaded already."""
    if "torch" not in sys.modules and not any(name in os.environ for name in CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def use_threads(count: int | None) -> None:
    """Compute with so many threads on a CPU, whatever the size of the work; None leaves the choice as it is.

    Processes that this one starts do the same.
    """
    if count is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


@contextmanager
def threads_for(work: int, device: str) -> Iterator[None]:
    """A context in which a CPU uses one thread if `work`, the multiplications of inference for a batch, is small.

    Otherwise, or if OMP_NUM_THREADS is set, the number of threads stays as it is.
    """
    import torch

    before = torch.get_num_threads()
    chosen = 1 if device == "cpu" and work < SMALL and "OMP_NUM_THREADS" not in os.environ else before
    torch.set_num_threads(chosen)
    try:
        yield
    finally:
        torch.set_num_threads(before)
