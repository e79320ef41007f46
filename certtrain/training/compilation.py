"""torch.compile for the training step, and the decision whether it saves time."""

import logging
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import torch

from certtrain.errors import DeviceError
from certtrain.formats import about
from certtrain.spec.preset import Compile

COMPILATION = 60.0  # seconds that it may take; "auto" compiles if the run saves at least as much
LEAST_SAVED = 5.0  # seconds: what a run could save, below which nothing is said
# Seconds that a compiled step saves for each ReLU input of its batch, since it moves less memory. The value for a CPU
# follows from benchmarks/step.py, that for a GPU from benchmarks/gpu.py.
SAVED = {"cpu": 12e-9, "cuda": 0.7e-9}

TensorFunction = Callable[..., Any]
Wrap = Callable[[TensorFunction], TensorFunction]  # from a function to a compiled one, or to itself
_Result = TypeVar("_Result")


class CompileChoice(NamedTuple):
    """Whether the steps of a run are compiled, and the reason in a few words; empty if it makes no difference."""

    compiled: bool
    reason: str


def will_compile(
    choice: Compile, *, steps: int, relu_inputs: int, device: str, in_parts: bool = False
) -> CompileChoice:
    """Whether a run of `steps` steps is compiled; `relu_inputs` is the number of ReLU inputs for one batch.

    A step that takes its batch in parts is never compiled. The choice depends on
    the arguments and the machine's tools alone, so that a resumed run makes the
    same one.
    """
    if choice == "off":
        return CompileChoice(False, "not compiled, as chosen")
    if in_parts:
        return CompileChoice(False, "not compiled: with train.micro_batch a batch is taken in parts, eagerly")
    if not has_compiler(device):
        return CompileChoice(False, f"not compiled: that needs {needed_tools(device)}, which is missing")
    if choice == "on":
        return CompileChoice(True, "compiled, as chosen; the first step takes up to a minute")
    saved = steps * relu_inputs * SAVED[device]
    if saved < LEAST_SAVED:
        return CompileChoice(False, "")
    cost = f"that takes up to a minute, and saves about {about(saved)} in this run"
    return CompileChoice(saved >= COMPILATION, f"{'not ' if saved < COMPILATION else ''}compiled: {cost}")


def check_compile(choice: Compile, device: str) -> None:
    """Raise DeviceError if the step must be compiled and the tools for it are missing."""
    if choice == "on" and not has_compiler(device):
        tools = needed_tools(device)
        raise DeviceError(f"compile = on needs {tools}, which is missing; install it, or choose --compile off")


def needed_tools(device: str) -> str:
    """What torch.compile needs for this device, in words."""
    return "a C++ compiler (g++ or clang++)" if device == "cpu" else "the package triton and a C compiler"


def has_compiler(device: str) -> bool:
    """Whether the tools that torch.compile needs for this device are installed."""
    if device == "cpu":
        return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return find_spec("triton") is not None and any(shutil.which(name) for name in ("gcc", "clang", "cc"))


def _is_not_about_cuda(record: logging.LogRecord) -> bool:
    return "No CUDA runtime is found" not in record.getMessage()


class Compiler:
    """Functions as compiled graphs, each made at its first use; the functions themselves if one cannot be compiled.

    cuda_graphs: a GPU launches all kernels of a function together. A function's results are then overwritten by its
    next call, so this is only for work that calls each function once, and whose results are used before that.
    """

    def __init__(self, on_failure: Callable[[str], None], *, cuda_graphs: bool = False) -> None:
        self.on_failure, self.works, self.mode = on_failure, True, "reduce-overhead" if cuda_graphs else None
        self.graphs: dict[TensorFunction, TensorFunction] = {}
        # On a machine without a GPU torch warns about that; the warning would stand between the lines of a training.
        logging.getLogger("torch.utils.cpp_extension").addFilter(_is_not_about_cuda)

    def use(self, work: Callable[[Wrap], _Result]) -> _Result:
        """The result of `work`, which gets a function that turns its own functions into compiled ones.

        The backward pass is compiled when it runs, so it must be part of `work`. If
        compilation fails, `on_failure` is called once with the reason; then, and from
        then on, the functions stay as they are, and `work` is called again.
        """
        if self.works:
            try:
                return work(self._compiled)
            except KeyboardInterrupt:  # torch._dynamo, which is loaded by now or not, has no part in it
                raise
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                self.on_failure(f"torch.compile failed: {reason}")
                self.works = False
        return work(as_it_is)

    def _compiled(self, function: TensorFunction) -> TensorFunction:
        if function not in self.graphs:
            self.graphs[function] = torch.compile(function, fullgraph=True, dynamic=False, mode=self.mode)
        return self.graphs[function]


def as_it_is(function: TensorFunction) -> TensorFunction:
    """The function, not compiled."""
    return function
