"""A check that the traced layers compute what the network computes: both are run and compared, operation by operation.

A forward pass may depend on things that tracing does not show, such as the class
or dtype of a value, or arguments with defaults. So the network and its layers are
run on the same inputs. All of PyTorch's operations that compute something must be
the same, in the same order, with the same results. The forward pass may not read
numbers or properties of a value, other than shapes that tracing has seen, and its
result may depend neither on the number of inputs nor on whether gradients are on.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function
from torch.utils._python_dispatch import TorchDispatchMode

from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.modules import restored
from certtrain.bounds.statistics import BatchNorm
from certtrain.bounds.symbols import is_user_code
from certtrain.errors import DataError, UnsupportedLayer
from certtrain.runtime.device import device_of
from certtrain.spec.shapes import Shape

REPLAY_BATCH = 2
# These only copy and reshape. Their results are compared where other operations take them.
SHAPE_OPERATIONS = frozenset(
    ("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "t", "transpose", "permute", "detach", "alias",
     "clone", "contiguous", "expand", "unsqueeze", "squeeze", "_to_copy", "lift_fresh", "empty", "empty_like")
)  # fmt: skip


# Tracing has a symbol for these; where the forward pass asks for a shape, so it does while it is traced.
SHAPES = frozenset(("shape", "size", "dim", "ndim", "ndimension", "__len__"))
# Functions of torch that give the numbers of a value to Python, also where other functions of torch call them.
NUMBERS = frozenset(
    ("numpy", "__array__", "tolist", "item", "__bool__", "__float__", "__int__", "__index__", "__complex__", "equal",
     "allclose", "is_nonzero", "data_ptr", "storage", "untyped_storage", "__dlpack__", "__repr__", "__format__")
)  # fmt: skip


class Operation(NamedTuple):
    """One operation of PyTorch: its name without the underscore of in-place operations, and its results."""

    name: str
    results: list[Tensor]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch would load its compiler for this mode, although nothing here is compiled

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if name not in SHAPE_OPERATIONS:
            tensors = found if isinstance(found, (tuple, list)) else [found]
            self.operations.append(Operation(name, [t.detach().clone() for t in tensors if isinstance(t, Tensor)]))
        return found


class _Reads(TorchFunctionMode):
    """Refuses what gives the forward pass a number or a property of a value, and counts how often it asks for a shape.

    Weights are the same for all inputs, so they may be read.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.shapes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), _name(func)
        if _holds_tensors(found) or (args and id(args[0]) in self.weights):
            return found
        asked = is_user_code(_caller(func, sys._getframe(1)))
        self.shapes += asked and name in SHAPES
        if name in NUMBERS or (asked and name not in SHAPES):
            raise UnsupportedLayer(
                f"the forward pass reads {name!r} of a value, on which it may depend in a way that cannot be traced; "
                "remove that"
            )
        return found


def _caller(func: Any, frame: FrameType) -> FrameType:
    """The first frame, from this one on, that is not of the function itself, which torch may have in Python."""
    own = (handle_torch_function.__code__, getattr(func, "__code__", None))
    while frame.f_code in own and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _name(func: Any) -> str:
    """The name of a function, or of the property that it reads."""
    name = str(getattr(func, "__name__", func))
    return str(getattr(func.__self__, "__name__", name)) if name == "__get__" else name


def _holds_tensors(found: Any) -> bool:
    """Whether it is a tensor, several tensors, or nothing."""
    if isinstance(found, (tuple, list)) and not isinstance(found, torch.Size):
        return bool(found) and all(map(_holds_tensors, found))
    return found is None or isinstance(found, Tensor)


def check_replay(model: nn.Module, graph: LayerGraph, result: int, shapes_read: int, shape: Shape) -> None:
    """Raise UnsupportedLayer unless `model` computes what `graph` computes, with the value `result` as its output.

    `graph` has all calls, including those whose results are not used. `shapes_read` says how often the forward pass
    asked for a shape while it was traced. `shape` is the shape of one input, without the batch. Raises DataError if the
    network does not take such inputs.
    """
    generator = Generator().manual_seed(0)
    like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), torch.zeros(()))
    x = torch.rand(REPLAY_BATCH, *shape, generator=generator).to(device_of(model), like.dtype)
    with _unchanged(model), _Reads(model) as reads:
        output, of_model = _run(model, x)
    if reads.shapes > shapes_read:
        raise _difference(model, None, None)
    with _unchanged(model):
        outputs, of_graph = _run(lambda x: list(graph.results(x)), x)
    for traced, run in zip_longest(of_graph, of_model):
        if traced is None or run is None or not _same(traced, run):
            raise _difference(model, traced, run)
    if not isinstance(output, Tensor) or not _close(outputs[result - 1], output):
        raise _difference(model, None, None)
    _check_surroundings(model, x, output)


def _check_surroundings(model: nn.Module, x: Tensor, output: Tensor) -> None:
    """Raise UnsupportedLayer if the output differs in a batch of one, with gradients, or in inference mode."""
    in_inference_mode = x.is_inference() or any(tensor.is_inference() for tensor in model.parameters())
    for name, size, surrounding in (
        ("in a batch of one", 1, torch.no_grad),
        ("where gradients are on", REPLAY_BATCH, torch.no_grad if in_inference_mode else torch.enable_grad),
        ("in inference mode", REPLAY_BATCH, torch.inference_mode),
    ):
        if size == REPLAY_BATCH or not _depends_on_the_batch(model):
            with _unchanged(model), surrounding():
                found = _output(model, x[:size])
            if found is None or not _close(found, output[:size]):
                raise UnsupportedLayer(
                    f"the forward pass of {type(model).__name__} gives another result {name}; let it depend on its "
                    "input only"
                )


def _depends_on_the_batch(model: nn.Module) -> bool:
    """Whether an example's result depends on the others, by BatchNorm; bounds refuse that where it matters."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    return any(norm.training or norm.running_mean is None for norm in norms)


def _output(model: nn.Module, x: Tensor) -> Tensor | None:
    """The output, if there is one."""
    try:
        found = model(x.clone())
    except RuntimeError:
        return None
    return found.detach() if isinstance(found, Tensor) else None


def _run(function: Any, x: Tensor) -> tuple[Any, list[Operation]]:
    with torch.no_grad(), _Recorder() as recorder:
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
    return traced.name == run.name and all(map(_close, traced.results, run.results))


def _close(traced: Tensor, run: Tensor) -> bool:
    """Whether both are equal up to rounding, which may depend on the order in memory."""
    return traced.numel() == run.numel() and torch.allclose(
        traced.flatten().double(), run.flatten().double(), rtol=1e-4, atol=1e-5, equal_nan=True
    )


def _difference(model: nn.Module, traced: Operation | None, run: Operation | None) -> UnsupportedLayer:
    does = "gives another result" if run is None else f"computes {run.name!r}"
    read = "" if traced is None else f", where its layers were read as {traced.name!r}"
    return UnsupportedLayer(
        f"the forward pass of {type(model).__name__} {does}{read}: what it does depends on something that cannot be "
        "traced, such as the class or dtype of a value. Write it as layers and functions of its input only"
    )
