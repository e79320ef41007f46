"""torch.compile, and when it is worth its time."""

import shutil
from collections.abc import Callable
from typing import Any

import torch

from certtrain.errors import DeviceError
from certtrain.preset import Compile

WORTHWHILE_STEPS = 5000
"""From so many steps on, `auto` compiles: what each step gains then pays for the compilation."""

Function = Callable[..., Any]


def will_compile(choice: Compile, steps: int, device: str) -> tuple[bool, str]:
    """Whether a run of so many steps is compiled, and one line that says why.

    Depends on its arguments and the machine's tools alone, so that a resumed
    run decides as the first one did.
    """
    if choice == "off":
        return False, "not compiled, as asked for"
    if not has_compiler(device):
        return False, f"not compiled: that needs {_tools(device)}, and there is none"
    if choice == "on":
        return True, "compiled, as asked for; the first step takes up to a minute or two"
    if steps < WORTHWHILE_STEPS:
        return False, f"not compiled: {steps:,} steps would not repay it (from {WORTHWHILE_STEPS:,} on they do)"
    return True, f"compiled, since {steps:,} steps repay it; the first step takes up to a minute or two"


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
    return torch.utils._triton.has_triton()


def compiled(function: Function, on_failure: Callable[[str], None]) -> Function:
    """`function` as one compiled graph, made at its first call.

    Where the graph cannot be made, `on_failure` is told why, once; from then
    on the function is called as it is.
    """
    fast = torch.compile(function, fullgraph=True, dynamic=False)
    chosen = [fast]

    def call(*arguments: Any) -> Any:
        if chosen[0] is function:
            return function(*arguments)
        try:
            return fast(*arguments)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            on_failure(f"torch.compile failed: {str(error).strip().splitlines()[0]}")
            chosen[0] = function
            return function(*arguments)

    return call
