"""What a forward pass reads of its values while it runs: shapes are counted, numbers and properties refused."""

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function

from certtrain.bounds.symbols import is_user_code
from certtrain.errors import UnsupportedLayer

# Tracing has a symbol for these; where the forward pass asks for a shape, so it does while it is traced.
SHAPE_READS = frozenset(("shape", "size", "dim", "ndim", "ndimension", "__len__"))
# Functions that give the memory of a value to other code, also that of a weight, which could then be changed unseen.
MEMORY = frozenset(("numpy", "__array__", "data_ptr", "storage", "untyped_storage", "__dlpack__", "__set__"))
# Functions that give the numbers of a value to Python, also where other functions of torch call them.
NUMBERS = MEMORY | frozenset(
    ("tolist", "item", "__bool__", "__float__", "__int__", "__index__", "__complex__", "equal", "allclose",
     "is_nonzero", "__repr__", "__format__")
)  # fmt: skip


class Reads(TorchFunctionMode):
    """A context that refuses what gives the forward pass a number or a property of a value, and counts shapes.

    Tensors that the modules keep are the same for all inputs, so they may be read. `shapes` is how often the forward
    pass asked for a shape. `refused` is the first refusal, which the forward pass may have caught.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
        self.constants = {_memory(tensor) for tensor in (*model.parameters(), *model.buffers(), *kept)} - {None}
        self.shapes = 0
        self.refused: UnsupportedLayer | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), _name(func)
        if name not in MEMORY and (_holds_tensors(found, func) or (args and _memory(args[0]) in self.constants)):
            return found
        asked = is_user_code(_caller(func, sys._getframe(1)))
        self.shapes += asked and name in SHAPE_READS
        if name in NUMBERS or (asked and name not in SHAPE_READS):
            refused = UnsupportedLayer(
                f"the forward pass reads {name!r} of a value, on which it may depend in a way that cannot be traced; "
                "remove that"
            )
            self.refused = self.refused or refused
            raise refused
        return found


def _memory(value: Any) -> int | None:
    """The address of a tensor's memory; None for what is no tensor, or has none of its own, as if it is sparse."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    return value.untyped_storage().data_ptr() or None


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


def _holds_tensors(found: Any, func: Any) -> bool:
    """Whether a function gives a tensor, several tensors, or nothing; a property that is None gives something."""
    if isinstance(found, (tuple, list)) and not isinstance(found, torch.Size):
        return bool(found) and all(_holds_tensors(each, func) for each in found)
    return isinstance(found, Tensor) or (found is None and getattr(func, "__name__", "") != "__get__")
