"""Linear bounds in parts, so that they fit into a given memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from certtrain.bounds.graph import Add
from certtrain.bounds.linear import Prefix

# Functions (b, s, …) of some examples, and some of each one's functions.
Functions = Callable[[slice, slice], Tensor]
Bound = Callable[[Prefix, Tensor], Tensor]

# Tensors of Λ's size that live at once while it is taken through a layer: both its signs' parts, their products with
# the lines' slopes and offsets, and the sum. A residual sum's other branch holds one more.
COPIES, COPY_OF_BRANCH = 7, 1
# For gradients, each layer's Λ is kept, and by a nonlinear one its parts and, for each slope, its value, the best
# step's two moments and the gradient.
KEPT, KEPT_NONLINEAR = 2, 12


def dense(functions: Tensor) -> Functions:
    """The functions (B, S, …) as they are."""
    return lambda examples, columns: functions[examples, columns]


def units(index: Tensor, sign: float, like: Tensor) -> Functions:
    """±x_i for the values i in `index` (B, S), counted in flat memory, of values x (B, …) such as `like`."""

    def part(examples: slice, columns: slice) -> Tensor:
        chosen = index[examples, columns]
        size = like[0].numel()
        flat = torch.zeros(*chosen.shape, size, dtype=like.dtype, device=like.device)
        return flat.scatter_(2, chosen.unsqueeze(2), sign).view(*chosen.shape, *like.shape[1:])

    return part


def in_parts(bound: Bound, prefix: Prefix, functions: Functions, shape: tuple[int, int], rows: int) -> Tensor:
    """`bound` of B × S functions (`shape`), at most so many `rows` of them at once, or one."""
    found = [
        torch.cat([bound(prefix.examples(part), functions(part, columns)) for columns in _slices(shape[1], width)], 1)
        for part, width in _parts(shape, max(rows, 1))
    ]
    return torch.cat(found)


def _parts(shape: tuple[int, int], rows: int) -> Iterator[tuple[slice, int]]:
    """Examples at a time, and how many functions of each."""
    batch, count = shape
    examples = min(batch, rows)
    for part in _slices(batch, examples):
        yield part, min(count, max(1, rows // examples))


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, total)) for first in range(0, total, max(size, 1)))


def row_bytes(prefix: Prefix, size: int, *, gradients: bool = False) -> int:
    """Bytes that one function of one example takes at most on its way back; it has `size` coefficients at first."""
    sizes = [max(shape[1:].numel() for shape in (*visit.shapes, visit.result)) for visit in prefix.visits]
    branches = sum(isinstance(visit.call.layer, Add) for visit in prefix.visits) > 0
    copies = max([*sizes, size]) * (COPIES + COPY_OF_BRANCH * branches)
    if gradients:
        each = zip(prefix.visits, sizes, strict=True)
        copies += sum(n * (KEPT if visit.box is None else KEPT_NONLINEAR) for visit, n in each)
    return copies * prefix.start.radius.element_size()
