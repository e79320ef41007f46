"""Several processes that train one network, each with its share of every batch.

torchrun starts them and gives each its rank. Sums over the ranks use nccl
between GPUs and gloo between CPUs. Decisions and other Python values always use
gloo, so that no process waits for a GPU's stream. Rank 0 is the leader: it
decides what depends on the clock, emits events, writes files and verifies.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from certtrain.errors import CerttrainError, DeviceError

LEADER_TIMEOUT = timedelta(days=7)
"""How long the other ranks wait for rank 0, which verifies alone; the death of a rank is noticed at once."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Group:
    """One of `size` processes, by its `rank`. `host` is the gloo group for Python values; None if `size` is 1."""

    rank: int = 0
    size: int = 1
    host: dist.ProcessGroup | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    # --- sums, on the device -----------------------------------------------------------------------------

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, which have one shape; its gradients are summed over the ranks too."""
        if self.size == 1:
            return tensor
        result: Tensor = _Sum.apply(tensor)
        return result

    def gather(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors, which have one shape (…), as rows (size, …); with gradients."""
        rows = [tensor if rank == self.rank else torch.zeros_like(tensor) for rank in range(self.size)]
        return self.sum(torch.stack(rows))

    @torch.no_grad()
    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, all in one message."""
        if self.size == 1:
            return
        message = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(message)
        for tensor, part in zip(tensors, torch.split(message, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    # --- Python values, by gloo --------------------------------------------------------------------------

    def agree(self, answer: bool) -> bool:
        """Rank 0's answer, on every rank."""
        if self.size == 1:
            return answer
        message = torch.tensor(answer, dtype=torch.uint8)
        dist.broadcast(message, 0, group=self.host)
        return bool(message)

    def on_leader(self, work: Callable[[], _Result]) -> _Result:
        """Do `work` on rank 0 only, and return its result on every rank.

        If it raises a CerttrainError, every rank raises it, so that none waits for ever.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = [_attempt(work) if self.is_leader else None]
        dist.broadcast_object_list(outcome, 0, group=self.host)
        if isinstance(outcome[0], CerttrainError):
            raise outcome[0]
        result: _Result = outcome[0]
        return result

    def leader_first(self, work: Callable[[], _Result]) -> _Result:
        """Do `work` on every rank, on rank 0 first: the other ranks then find what it downloaded or cached."""
        done: list[_Result] = []
        self.on_leader(lambda: done.append(work()))
        return done[0] if done else work()

    def first_text(self, text: str | None) -> str | None:
        """The text of the lowest rank that has one."""
        if self.size == 1:
            return text
        texts: list[str | None] = [None] * self.size
        dist.all_gather_object(texts, text, group=self.host)
        return next((found for found in texts if found is not None), None)


SINGLE_PROCESS = Group()


@contextmanager
def process_group(device: str) -> Iterator[Group]:
    """The group of processes that torchrun started, until the context ends; SINGLE_PROCESS without torchrun.

    On "cuda" each process uses the GPU of its local rank. Raises DeviceError if
    there are fewer GPUs than processes, or if torchrun's environment variables are
    incomplete.
    """
    rank, local_rank, size = _ranks()
    if size == 1:
        yield SINGLE_PROCESS
        return
    if device == "cuda":
        _take_gpu(local_rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        host = dist.new_group(backend="gloo", timeout=LEADER_TIMEOUT)
        assert isinstance(host, dist.ProcessGroup)  # which it is, since every rank is a member
        yield Group(rank, size, host)
    finally:
        dist.destroy_process_group()


def _ranks() -> tuple[int, int, int]:
    """Rank, rank on this machine, and number of ranks, from the environment that torchrun sets."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return 0, 0, 1
    try:
        return int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), size
    except KeyError as error:
        raise DeviceError(
            f"WORLD_SIZE is {size}, but {error} is not set; start several processes by "
            f"torchrun --nproc-per-node {size} -m certtrain train …, or unset WORLD_SIZE"
        ) from error


def _take_gpu(local_rank: int) -> None:
    if local_rank >= torch.cuda.device_count():
        raise DeviceError(
            f"there is no GPU for process {local_rank} of this machine, which has {torch.cuda.device_count()}; "
            "start at most one process for each GPU, or use --device cpu"
        )
    torch.cuda.set_device(local_rank)


def _attempt(work: Callable[[], _Result]) -> _Result | CerttrainError:
    try:
        return work()
    except CerttrainError as error:
        return error


class _Sum(torch.autograd.Function):
    """The sum over the ranks.

    Each rank's loss depends on the sum, and the total loss is the sum of the
    ranks' losses; so the gradient of each summand is the sum of the ranks' gradients.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(tensor: Tensor) -> Tensor:
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result)
    # When torch 2.11 compiles a function that returns a tensor changed in place, the gradient is lost silently.
    return result.clone()
