"""Several processes for one verification: those that torchrun started, or those of --workers on this machine."""

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from certtrain.cli.exit_codes import ExitCode
from certtrain.errors import CerttrainError, DeviceError, RunError
from certtrain.runtime.threads import use_threads

if TYPE_CHECKING:
    from certtrain.certfile.sharing import Shared
    from certtrain.data import ImageSet

CONNECT = timedelta(minutes=5)  # within which all processes must have started
CONNECT_HERE = timedelta(seconds=10)  # the same for a process that rank 0 has started itself
LEAVE = 1.0  # seconds in which the other processes must end by themselves, once rank 0 has all results
READY = "certtrain is ready"  # which rank 0 says once it has loaded the data, so that no other downloads them too


@dataclass
class Ranks:
    """This process among several: its `rank`, how many there are (`size`), and the store that all of them reach."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None
    started: list[BaseProcess] = field(default_factory=list)
    shared: "Shared | None" = None

    @property
    def leads(self) -> bool:
        """Whether this process shows and writes the results."""
        return self.rank == 0

    def share(self, images: "ImageSet") -> "Shared | None":
        """The share of a verification of `images`; None for a process alone."""
        if self.size == 1:
            return None
        from certtrain.certfile.heartbeats import Heartbeats, start_beating
        from certtrain.certfile.sharing import Shared

        if self.shared is None:
            if not self.leads:
                start_beating(self.store, self.rank)
            ended = self.ended if self.started else Heartbeats(self.store, self.size).silent
            self.shared = Shared(self.store, self.rank, self.size, images, ended)
        return self.shared

    def ended(self) -> frozenset[int]:
        """The ranks of the processes that this one started and that have ended."""
        return frozenset(rank for rank, process in enumerate(self.started, start=1) if not process.is_alive())

    def take_device(self, device: str) -> None:
        """On a GPU, let each process of a machine use one of its own. Raises DeviceError."""
        if self.size == 1 or device == "cpu":
            return
        import torch

        if torch.cuda.is_available():
            count = torch.cuda.device_count()
            if self.local_rank >= count:
                raise DeviceError(
                    f"there is no GPU for process {self.local_rank} of this machine, which has {count}; start at most "
                    "one process for each GPU, or use --device cpu"
                )
            torch.cuda.set_device(self.local_rank)

    def ready(self) -> None:
        """Let the other processes load what rank 0 has loaded."""
        if self.size > 1 and self.leads:
            self.store.set(READY, "1")


@contextmanager
def ranks_of(workers: int | None) -> "Iterator[Ranks]":
    """This process among those that torchrun started, or that are started here, `workers` with this one.

    All but rank 0 wait until it has loaded the data, and show nothing but errors. Raises DeviceError and RunError.
    """
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        if workers is not None:
            raise RunError("torchrun has started the processes already; leave --workers out")
        found = _of_torchrun()
    elif workers is None or workers == 1:
        yield Ranks()
        return
    else:
        found = _start(workers)
    with _left_in_order(found), _silent_unless(found.leads):
        if not found.leads:
            _wait_until_ready(found)
        yield found


def _of_torchrun() -> Ranks:
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise DeviceError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {missing[0]} is not set; start several processes by "
            "torchrun --nproc-per-node N -m certtrain verify …, or unset WORLD_SIZE"
        )
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    started_here = multiprocessing.parent_process() is not None
    try:
        store, rank, size = next(rendezvous("env://", timeout=CONNECT_HERE if started_here else CONNECT))
    except (dist.DistError, RuntimeError) as error:
        raise RunError(f"the processes do not reach each other: {error}") from error
    return Ranks(rank, size, int(os.environ["LOCAL_RANK"]), store)


def _start(workers: int) -> Ranks:
    """Start the other processes; this one is rank 0."""
    if "OMP_NUM_THREADS" not in os.environ:  # for the others too; torchrun does the same
        use_threads(max(1, (os.cpu_count() or 1) // workers))
    import torch.distributed as dist

    make: Any = dist.TCPStore  # type: ignore[attr-defined]
    store = make("127.0.0.1", 0, workers, is_master=True, timeout=CONNECT, wait_for_workers=False)
    context, started = multiprocessing.get_context("spawn"), list[BaseProcess]()
    for rank in range(1, workers):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "MASTER_PORT": store.port}
        environment = {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
        process = context.Process(target=_work, args=(sys.argv, environment), daemon=True)
        process.start()
        started.append(process)
    return Ranks(0, workers, 0, store, started)


def _work(words: list[str], environment: dict[str, str]) -> None:
    """What a started process does: the same command, as one of the ranks."""
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the verification begins; rank 0 stops all of them
    os.environ.update(environment)
    sys.argv = list(_without_workers(words))
    runpy.run_module("certtrain", run_name="__main__")


def _end_with_rank_0() -> None:
    """End this process when rank 0 ends, also if it was killed; nobody would read results any more.

    The store would report that much later: its client tries to connect again for a long time.
    """
    rank_0 = multiprocessing.parent_process()
    assert rank_0 is not None
    rank_0.join()
    os._exit(ExitCode.ERROR)


def _without_workers(words: list[str]) -> Iterator[str]:
    """The command line without --workers N."""
    rest = iter(words)
    for word in rest:
        if word == "--workers":
            next(rest, None)
        elif not word.startswith("--workers="):
            yield word


@contextmanager
def _left_in_order(ranks: Ranks) -> Iterator[None]:
    """Let rank 0 know the error of another process, and let the others stop when rank 0 has ended."""
    whole = False
    try:
        yield
        whole = True
    except CerttrainError as error:
        if not ranks.leads:
            _tell(ranks, error)
        raise
    finally:
        if ranks.leads:
            _ignoring_lost_connections(lambda: ranks.store.set("stop", "1"))
            _ignoring_lost_connections(ranks.ready)
        for process in ranks.started:
            _wait_for_end(process, whole)


def _wait_for_end(process: BaseProcess, whole: bool) -> None:
    """Wait until a process has ended; it is ended if it takes too long.

    whole: whether the verification came to its end; then a note says if a signal or an error ended the process.
    """
    from certtrain import render

    process.join(LEAVE)
    if process.is_alive():
        process.terminate()
    elif whole and process.exitcode:
        render.note(f"one of the processes ended early (exit code {process.exitcode}); the others did its examples")


def _tell(ranks: Ranks, error: CerttrainError) -> None:
    if ranks.shared is not None:
        shared = ranks.shared
        _ignoring_lost_connections(lambda: shared.fail(error))


def _ignoring_lost_connections(act: Callable[[], object]) -> None:
    """Do what has no effect if the other process has ended."""
    import torch.distributed as dist

    try:
        act()
    except (dist.DistError, RunError):
        return


@contextmanager
def _silent_unless(leads: bool) -> Iterator[None]:
    if leads:
        yield
        return
    from certtrain import render

    with render.silent():
        yield


def _wait_until_ready(ranks: Ranks) -> None:
    import torch.distributed as dist

    try:
        ranks.store.wait([READY], timedelta(days=7))
    except dist.DistError as error:
        raise RunError(f"rank {ranks.rank} cannot reach rank 0: {error}") from error
