"""A check that the traced layers compute what the network computes: both are run and compared, operation by operation.

A forward pass may depend on things that tracing does not show, such as the class
or dtype of a value, or arguments with defaults. So the network and its layers are
run on the same inputs. All of PyTorch's operations that compute something must be
the same, in the same order, with the same numbers and results. That is so with
gradients and without, in inference mode, with autocast, and in a batch of one.
The forward pass may not read numbers or properties of a value, other than shapes
that tracing has seen.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from certtrain.bounds.modules import restored
from certtrain.bounds.reading import ForwardPass
from certtrain.bounds.reads import Reads
from certtrain.bounds.statistics import BatchNorm
from certtrain.errors import DataError, UnsupportedLayer
from certtrain.runtime.device import device_of
from certtrain.spec.shapes import Shape

REPLAY_BATCH = 2
# These only copy and reshape. Their results are compared where other operations take them.
SHAPE_OPERATIONS = frozenset(
    ("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "t", "transpose", "permute", "detach", "alias",
     "clone", "contiguous", "expand", "unsqueeze", "squeeze", "_to_copy", "lift_fresh", "empty", "empty_like")
)  # fmt: skip


class Operation(NamedTuple):
    """One operation of PyTorch: its name without the underscore of in-place operations, its numbers and results.

    numbers: its arguments that are single numbers, such as the ends of a clamp, by their names.
    """

    name: str
    numbers: dict[str, float]
    results: list[Tensor]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch would load its compiler for this mode, although nothing here is compiled

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode functions come that are made of others
            if (found := func.decompose(*args, **kwargs)) is not NotImplemented:
                return found
        found = func(*args, **kwargs)
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::").rstrip("_")
        if name not in SHAPE_OPERATIONS:
            tensors, numbers = found if isinstance(found, (tuple, list)) else [found], _numbers(func, args, kwargs)
            results = [value.detach().clone() for value in tensors if isinstance(value, Tensor)]
            self.operations.append(Operation(name, numbers, results))
        return found


def _numbers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, float]:
    """The arguments of an operation that are numbers, with those that have their default."""
    arguments = func._schema.arguments
    given = {argument.name: value for argument, value in zip(arguments[: len(args)], args, strict=True)} | kwargs
    values = {argument.name: given.get(argument.name, argument.default_value) for argument in arguments}
    return {name: value for name, value in values.items() if type(value) in (int, float)}


def check_replay(model: nn.Module, read: ForwardPass, shape: Shape, *, everywhere: bool) -> None:
    """Raise UnsupportedLayer unless `model` computes what was read of it.

    `shape` is the shape of one input, without the batch. `everywhere`: also with gradients, in inference mode, with
    autocast, and in a batch of one. Raises DataError if the network does not take such inputs.
    """
    generator = Generator().manual_seed(0)
    like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), torch.zeros(()))
    x = torch.rand(REPLAY_BATCH, *shape, generator=generator).to(device_of(model), like.dtype)
    reads = Reads(model)
    with torch.no_grad():
        _compare(model, read, x, watched_by=reads)
    if reads.shapes > read.shapes_read:
        raise _difference(model, None, None)
    for where, surrounding, batch in _surroundings(model, x) if everywhere else ():
        with surrounding:
            _compare(model, read, batch, where)


def _compare(model: nn.Module, read: ForwardPass, x: Tensor, where: str = "", watched_by: Reads | None = None) -> None:
    """Raise UnsupportedLayer if the network and its layers compute something different for `x`."""
    with _unchanged(model), watched_by or nullcontext():
        output, of_model = _run(model, x)
    if watched_by is not None and watched_by.refused is not None:
        raise watched_by.refused
    with _unchanged(model):
        outputs, of_graph = _run(lambda x: list(read.graph.results(x)), x)
    for traced, run in zip_longest(of_graph, of_model):
        if traced is None or run is None or not _same(traced, run):
            raise _difference(model, traced, run, where)
    if not isinstance(output, Tensor) or not _close(outputs[read.result - 1], output):
        raise _difference(model, None, None, where)


def _surroundings(model: nn.Module, x: Tensor) -> Iterator[tuple[str, AbstractContextManager[Any], Tensor]]:
    """Where a forward pass could compute something else: how that is said, the context, and the inputs."""
    if not x.is_inference() and not any(tensor.is_inference() for tensor in model.parameters()):
        yield " where gradients are on", torch.enable_grad(), x
    yield " in inference mode", torch.inference_mode(), x
    if x.device.type in ("cpu", "cuda"):  # the devices that can compute in bf16 by autocast
        yield " with autocast", torch.autocast(x.device.type, torch.bfloat16), x
    if not _depends_on_the_batch(model):
        yield " in a batch of one", torch.no_grad(), x[:1]


def _depends_on_the_batch(model: nn.Module) -> bool:
    """Whether an example's result depends on the others, by BatchNorm; bounds refuse that where it matters."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    return any(norm.training or norm.running_mean is None for norm in norms)


def _run(function: Any, x: Tensor) -> tuple[Any, list[Operation]]:
    with _Recorder() as recorder:
        try:
            return function(x.clone()), recorder.operations
        except RuntimeError as error:
            raise DataError(f"inputs of shape {tuple(x.shape)} do not fit the network: {error}") from error


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restore attributes, running statistics and random numbers afterwards, as if nothing had run."""
    kept = [(buffer, buffer.detach().clone()) for m in model.modules() if m.training for buffer in m.buffers(False)]
    with restored(model), torch.random.fork_rng(devices=[]):
        _seed()
        yield
    with torch.no_grad():
        for buffer, value in kept:
            buffer.copy_(value)


def _seed() -> None:
    """Seed the generators of all devices. Where there is only a CPU, `torch.manual_seed` would spend half a
    millisecond on a stack trace, which it keeps for a GPU that is never used."""
    seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seed(0)


def _same(traced: Operation, run: Operation) -> bool:
    return (
        traced.name == run.name
        and traced.numbers.keys() == run.numbers.keys()
        and all(_equal(number, run.numbers[name]) for name, number in traced.numbers.items())
        and all(map(_close, traced.results, run.results))
    )


def _equal(own: float, other: float) -> bool:
    """Whether two arguments are equal; a dimension may be counted from either end."""
    return own == other or (isinstance(own, int) and isinstance(other, int) and min(own, other) < 0)


def _close(traced: Tensor, run: Tensor) -> bool:
    """Whether both are equal up to rounding, which may depend on the order in memory."""
    return traced.numel() == run.numel() and torch.allclose(
        traced.flatten().double(), run.flatten().double(), rtol=1e-4, atol=1e-5, equal_nan=True
    )


def _difference(model: nn.Module, traced: Operation | None, run: Operation | None, where: str = "") -> UnsupportedLayer:
    does = ("gives another result" if run is None else f"computes {run.name!r}") + where
    read = "" if traced is None else f", where its layers were read as {traced.name!r}"
    if traced is not None and run is not None and traced.name == run.name:
        read = " with other numbers than its layers, or another result"
    return UnsupportedLayer(
        f"the forward pass of {type(model).__name__} {does}{read}: what it does depends on something that cannot be "
        "traced, such as the class or dtype of a value. Write it as layers and functions of its input only"
    )
