"""That the layers which were read are what the network computes: both are run once, operation by operation.

What a forward pass does may depend on what tracing cannot show it, as on the
class or the type of a value, or on arguments with defaults. So the network and
its layers are run on the same numbers, and every operation of PyTorch's that
computes something must be the same, in the same order, with the same result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.modules import restored
from certtrain.errors import DataError, UnsupportedLayer
from certtrain.runtime.device import device_of
from certtrain.spec.shapes import Shape

REPLAYED = 2
# These compute nothing: they make other shapes and copies. What they give shows in the operations that take it.
MOVING = frozenset(
    ("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "t", "transpose", "permute", "detach", "alias",
     "clone", "contiguous", "expand", "unsqueeze", "squeeze", "_to_copy", "lift_fresh", "empty", "empty_like")
)  # fmt: skip


class Operation(NamedTuple):
    """One of PyTorch's own, without the mark of those that work in place, and the tensors that it gave."""

    name: str
    results: list[Tensor]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if name not in MOVING:
            tensors = found if isinstance(found, (tuple, list)) else [found]
            self.operations.append(Operation(name, [t.detach().clone() for t in tensors if isinstance(t, Tensor)]))
        return found


def check_replay(model: nn.Module, graph: LayerGraph, result: int, shape: Shape) -> None:
    """Raise UnsupportedLayer unless `model` does just what `graph` does, value `result` being its output.

    `graph` has all calls, those that nothing uses as well. `shape` is that of one input, without the batch.
    Raises DataError if the network does not take such inputs.
    """
    generator = Generator().manual_seed(0)
    like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), torch.zeros(()))
    x = torch.rand(REPLAYED, *shape, generator=generator).to(device_of(model), like.dtype)
    with _unchanged(model):
        output, theirs = _run(model, x)
    with _unchanged(model):
        outputs, ours = _run(lambda x: list(graph.results(x)), x)
    for mine, other in zip_longest(ours, theirs):
        if mine is None or other is None or not _same(mine, other):
            raise _otherwise(model, mine, other)
    if not isinstance(output, Tensor) or not _close(outputs[result - 1], output):
        raise _otherwise(model, None, None)


def _run(function: Any, x: Tensor) -> tuple[Any, list[Operation]]:
    with torch.no_grad(), _Recorder() as recorder:
        try:
            return function(x.clone()), recorder.operations
        except RuntimeError as error:
            raise DataError(f"inputs of shape {tuple(x.shape)} do not fit the network: {error}") from error


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Let attributes, running statistics and random numbers be the same afterwards, as if nothing had run."""
    kept = [(buffer, buffer.detach().clone()) for m in model.modules() if m.training for buffer in m.buffers(False)]
    with restored(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    with torch.no_grad():
        for buffer, value in kept:
            buffer.copy_(value)


def _same(mine: Operation, other: Operation) -> bool:
    return mine.name == other.name and all(map(_close, mine.results, other.results))


def _close(mine: Tensor, other: Tensor) -> bool:
    """Equal but for what another order in memory may round otherwise."""
    return mine.numel() == other.numel() and torch.allclose(
        mine.flatten().double(), other.flatten().double(), rtol=1e-4, atol=1e-5, equal_nan=True
    )


def _otherwise(model: nn.Module, mine: Operation | None, other: Operation | None) -> UnsupportedLayer:
    does = "gives another result" if other is None else f"computes {other.name!r}"
    read = "" if mine is None else f", where its layers were read as {mine.name!r}"
    return UnsupportedLayer(
        f"the forward pass of {type(model).__name__} {does}{read}: what it does depends on something that cannot be "
        "followed, as on a value's class or type. Write it as layers and functions of its input alone"
    )
