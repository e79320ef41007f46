"""torch.compile, and when it is worth its time."""

import logging
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import torch

from certtrain.errors import DeviceError
from certtrain.spec.preset import Compile

COMPILATION = 60.0  # seconds that it may take; auto compiles where a run saves more
# Seconds that a compiled step saves for each ReLU input of its batch: it is memory traffic that it saves. That of a
# CPU follows from benchmarks/step.py; that of a GPU is a guess until it is measured.
SAVED = {"cpu": 12e-9, "cuda": 0.1e-9}

TensorFunction = Callable[..., Any]
_Result = TypeVar("_Result")


class CompileChoice(NamedTuple):
    """Whether the steps of a run are compiled, and a few words that say why."""

    compiled: bool
    reason: str


def will_compile(
    choice: Compile, *, steps: int, relu_inputs: int, device: str, in_parts: bool = False
) -> CompileChoice:
    """Whether a run of so many steps is compiled; `relu_inputs` are those of a batch.

    A step that takes its batch in parts never is.
    Depends on its arguments and the machine's tools alone, so that a resumed
    run decides as the first one did.
    """
    if choice == "off":
        return CompileChoice(False, "not compiled, as asked for")
    if in_parts:
        return CompileChoice(False, "not compiled: with train.micro_batch a batch is taken in parts, eagerly")
    if not has_compiler(device):
        return CompileChoice(False, f"not compiled: that needs {_tools(device)}, and there is none")
    if choice == "on":
        return CompileChoice(True, "compiled, as asked for; the first step takes up to a minute")
    saved = steps * relu_inputs * SAVED[device]
    cost = f"that takes up to a minute, and saves this run about {_about(saved)}"
    return CompileChoice(saved >= COMPILATION, f"{'not ' if saved < COMPILATION else ''}compiled: {cost}")


def _about(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def check_compile(choice: Compile, device: str) -> None:
    """Raise DeviceError where a compiled step is asked for and cannot be had."""
    if choice == "on" and not has_compiler(device):
        raise DeviceError(
            f"compile = on needs {_tools(device)}, and there is none; install it, or choose --compile off"
        )


def _tools(device: str) -> str:
    return "a C++ compiler (g++ or clang++)" if device == "cpu" else "the package triton and a C compiler"


def has_compiler(device: str) -> bool:
    """Whether the tools that torch.compile needs for this device are there."""
    if device == "cpu":
        return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return find_spec("triton") is not None and any(shutil.which(name) for name in ("gcc", "clang", "cc"))


def _is_not_about_cuda(record: logging.LogRecord) -> bool:
    return "No CUDA runtime is found" not in record.getMessage()


class Compiled:
    """A function as one compiled graph, made when it is first used; as it is where a graph cannot be made."""

    def __init__(self, function: TensorFunction, on_failure: Callable[[str], None]) -> None:
        self.function, self.on_failure = function, on_failure
        # A machine without a GPU needs no word about that between the lines of a training.
        logging.getLogger("torch.utils.cpp_extension").addFilter(_is_not_about_cuda)
        self.graph: TensorFunction | None = torch.compile(function, fullgraph=True, dynamic=False)

    def use(self, work: Callable[[TensorFunction], _Result]) -> _Result:
        """What `work` makes of the function.

        The graph of a backward pass is made in that pass, so it belongs into
        `work` as well. If a graph cannot be made, `on_failure` is called with the
        reason, once, and from then on the function is used as it is: `work` begins anew.
        """
        if self.graph is not None:
            try:
                return work(self.graph)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                self.on_failure(f"torch.compile failed: {reason}")
                self.graph = None
        return work(self.function)
