"""Several processes that train one network, each with its share of every batch.

torchrun starts them and gives each its rank. Sums over the ranks travel by nccl
between GPUs and by gloo between CPUs; what the hosts agree on travels by gloo
always, so that no process waits for a GPU's stream. Rank 0 is the leader: it
decides what depends on the clock, emits events, writes and verifies.
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
"""How long the others wait for rank 0, which verifies alone; a rank that dies is noticed at once."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Group:
    """One process among `size`, by its `rank`; `host` connects what the hosts agree on, None where one is alone."""

    rank: int = 0
    size: int = 1
    host: dist.ProcessGroup | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    # --- sums, on the device -----------------------------------------------------------------------------

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, of one shape everywhere; so is the gradient that flows back."""
        if self.size == 1:
            return tensor
        result: Tensor = _Sum.apply(tensor)
        return result

    def gather(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors (…) of one shape as rows (size, …), with their gradients."""
        rows = [tensor if rank == self.rank else torch.zeros_like(tensor) for rank in range(self.size)]
        return self.sum(torch.stack(rows))

    @torch.no_grad()
    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over the ranks in the place of each tensor, all in one message."""
        if self.size == 1:
            return
        message = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(message)
        for tensor, part in zip(tensors, torch.split(message, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    # --- agreement, between the hosts --------------------------------------------------------------------

    def agree(self, answer: bool) -> bool:
        """Rank 0's answer, on every rank."""
        if self.size == 1:
            return answer
        message = torch.tensor(answer, dtype=torch.uint8)
        dist.broadcast(message, 0, group=self.host)
        return bool(message)

    def on_leader(self, work: Callable[[], _Result]) -> _Result:
        """Do `work` on rank 0 alone; its result, on every rank.

        A CerttrainError of it is raised on every rank, so that none waits in vain.
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
        """Do `work` on every rank, on rank 0 before the others: what it downloads or caches is there for them."""
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


ALONE = Group()


@contextmanager
def process_group(device: str) -> Iterator[Group]:
    """The group that torchrun has started, for as long as the context lasts; ALONE without torchrun.

    On "cuda" each process takes the GPU of its place on its machine. Raises
    DeviceError if there are fewer GPUs than processes, or the environment
    names a part of the place alone.
    """
    rank, local_rank, size = _place()
    if size == 1:
        yield ALONE
        return
    if device == "cuda":
        _take_gpu(local_rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        host = dist.new_group(backend="gloo", timeout=LEADER_TIMEOUT)
        assert isinstance(host, dist.ProcessGroup)  # every rank is in it
        yield Group(rank, size, host)
    finally:
        dist.destroy_process_group()


def _place() -> tuple[int, int, int]:
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
            f"process {local_rank} of this machine has no GPU, since there are {torch.cuda.device_count()}; "
            "give torchrun as many processes as GPUs, or --device cpu"
        )
    torch.cuda.set_device(local_rank)


def _attempt(work: Callable[[], _Result]) -> _Result | CerttrainError:
    try:
        return work()
    except CerttrainError as error:
        return error


class _Sum(torch.autograd.Function):
    """The sum over the ranks.

    Each rank's loss depends on the sum, and the whole loss is the sum of
    theirs; so the gradient of each summand is the sum of the ranks' gradients.
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
    # Compiled by torch 2.11, a function that returns what it has changed in place silently loses its gradient.
    return result.clone()
