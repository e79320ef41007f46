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


def will_compile(choice: Compile, steps: int, device: str, *, in_parts: bool = False) -> tuple[bool, str]:
    """Whether a run of so many steps is compiled, and one line that says why.

    A step that takes its batch in parts never is.
    Depends on its arguments and the machine's tools alone, so that a resumed
    run decides as the first one did. Raises DeviceError where `on` cannot be had.
    """
    if choice == "off":
        return False, "not compiled, as asked for"
    if in_parts:
        return False, "not compiled: with train.micro_batch a batch is taken in parts, eagerly"
    if not has_compiler(device):
        need = "a C++ compiler (g++ or clang++)" if device == "cpu" else "the package triton and a C compiler"
        if choice == "on":
            raise DeviceError(f"compile = on needs {need}, and there is none; install it, or choose --compile off")
        return False, f"not compiled: that needs {need}, and there is none"
    if choice == "on":
        return True, "compiled, as asked for; the first step takes up to a minute or two"
    if steps < WORTHWHILE_STEPS:
        return False, f"not compiled: {steps:,} steps would not repay it (from {WORTHWHILE_STEPS:,} on they do)"
    return True, f"compiled, since {steps:,} steps repay it; the first step takes up to a minute or two"


def has_compiler(device: str) -> bool:
    """Whether the tools that torch.compile needs for this device are there."""
    if device == "cpu":
        return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return torch.utils._triton.has_triton()


def compiled(function: Function) -> Function:
    """`function` as one compiled graph, made at its first call."""
    return torch.compile(function, fullgraph=True, dynamic=False)
