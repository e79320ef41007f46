"""Linear bounds in parts, so that they fit into a given memory and the deadline is checked often enough."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.graph import Add, LayerGraph
from certtrain.bounds.interval import LayerRecord
from certtrain.bounds.linear import Prefix
from certtrain.bounds.settings import Settings
from certtrain.bounds.shape_layers import Concat
from certtrain.runtime.deadline import NEVER, Deadline

# From some of the examples, and some of the functions of each, to these functions (b, s, …).
Functions = Callable[[slice, slice], Tensor]
Bound = Callable[[Prefix, Tensor], Tensor]

# Tensors of Λ's size that exist at once while Λ is taken through a layer: its positive and negative part, their
# products with the lines' slopes and offsets, and the sum. The other branch of a residual sum holds one more.
COPIES, COPY_OF_BRANCH = 7, 1
# On a CPU, parts that fit its cache are up to four times as fast as parts that fill the memory.
IN_CACHE = 2**24
# For gradients, each layer keeps its Λ. A nonlinear layer also keeps the parts of Λ and, for each slope, its value, two
# moments and the gradient. A curve keeps all steps from its two numbers α to its lines as well.
KEPT, KEPT_NONLINEAR, KEPT_CURVE = 2, 12, 64
# Multiplications between two checks of a deadline: about a tenth of a second on one core. Each value of a layer costs
# as much as VALUE_WORK multiplications, since memory is the limit, and a gradient three times as much. The lines of a
# curve for an α of its own cost CURVE_WORK more.
WORK_BETWEEN_CHECKS, VALUE_WORK, GRADIENT_WORK, CURVE_WORK = 2**28, 128, 3, 384


def dense(functions: Tensor) -> Functions:
    """The functions (B, S, …) as they are."""
    return lambda examples, columns: functions[examples, columns]


def signed_coordinates(index: Tensor, sign: float, like: Tensor) -> Functions:
    """sign · x_i for the flat indices i in `index` (B, S), as functions of values x (B, …) of the shape of `like`."""

    def part(examples: slice, columns: slice) -> Tensor:
        chosen = index[examples, columns]
        size = like[0].numel()
        flat = torch.zeros(*chosen.shape, size, dtype=like.dtype, device=like.device)
        return flat.scatter_(2, chosen.unsqueeze(2), sign).view(*chosen.shape, *like.shape[1:])

    return part


def in_parts(
    bound: Bound,
    prefix: Prefix,
    functions: Functions,
    shape: tuple[int, int],
    rows: int,
    deadline: Deadline = NEVER,
) -> Tensor:
    """`bound` of B × S functions (`shape`), at most `rows` of them, or one, at once; −∞ after the deadline."""

    def bounded(part: slice, columns: slice) -> Tensor:
        if deadline.over():
            return prefix.start.radius.new_full((_length(part), _length(columns)), -torch.inf)
        found = bound(prefix.examples(part), functions(part, columns))
        if deadline.limited and found.is_cuda:
            # Otherwise the clock would be read before the GPU has computed the bounds.
            torch.cuda.synchronize(found.device)
        return found

    each = _parts(shape, max(rows, 1))
    return torch.cat([torch.cat([bounded(p, columns) for columns in _slices(shape[1], w)], 1) for p, w in each])


def _parts(shape: tuple[int, int], rows: int) -> Iterator[tuple[slice, int]]:
    """Each part: the examples, and how many functions of each are bounded at once."""
    batch, count = shape
    examples = min(batch, rows)
    for part in _slices(batch, examples):
        yield part, min(count, max(1, rows // examples))


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, total)) for first in range(0, total, max(size, 1)))


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def rows_at_once(prefix: Prefix, size: int, settings: Settings, *, gradients: bool = False) -> int:
    """How many functions fit into the memory and, with a deadline, take well under a second."""
    memory = settings.memory
    if not (gradients or prefix.start.radius.is_cuda):
        memory = min(memory, IN_CACHE)
    rows = memory // row_bytes(prefix, size, gradients=gradients)
    return between_checks(rows, row_work(prefix, gradients=gradients), settings.deadline)


def between_checks(most: int, work: int, deadline: Deadline) -> int:
    """How many, up to `most`, to compute between two checks of the deadline; each takes `work` multiplications."""
    return min(most, max(1, WORK_BETWEEN_CHECKS // work)) if deadline.limited else most


def row_work(prefix: Prefix, *, gradients: bool = False) -> int:
    """About how many multiplications the backsubstitution of one function of one example takes."""
    work = sum(layer_work(record.call.layer, record.shape) for record in prefix.records)
    if gradients:
        lines = sum(record.shape[1:].numel() for record in prefix.records if _curved(record))
        work = GRADIENT_WORK * (work + CURVE_WORK * lines)
    return max(1, work)


def inference_work(graph: LayerGraph, x: Tensor) -> int:
    """About how many multiplications inference takes for one example, like `x` (1, …)."""
    shapes = [x.shape, *(result.shape for result in graph.results(x))]
    return max(1, sum(layer_work(call.layer, shapes[call.inputs[0]]) for call in graph.calls))


def layer_work(layer: nn.Module, shape: torch.Size) -> int:
    """About how many multiplications a layer takes for one example; its inputs have the shape `shape` (B, …)."""
    size = shape[1:].numel()
    if isinstance(layer, nn.Linear):
        return size * (layer.out_features + VALUE_WORK)
    if isinstance(layer, nn.Conv2d):
        places = shape[2:].numel() // (layer.stride[0] * layer.stride[1])
        return max(1, places) * layer.weight.numel() + size * VALUE_WORK
    return size * VALUE_WORK


def row_bytes(prefix: Prefix, size: int, *, gradients: bool = False) -> int:
    """The most bytes that backsubstitution of one function of one example takes, starting from `size` coefficients."""
    sizes = [max(shape[1:].numel() for shape in (*record.shapes, record.result)) for record in prefix.records]
    branches = sum(isinstance(record.call.layer, (Add, Concat)) for record in prefix.records) > 0
    copies = max([*sizes, size]) * (COPIES + COPY_OF_BRANCH * branches)
    if gradients:
        copies += sum(n * _kept(record) for record, n in zip(prefix.records, sizes, strict=True))
    return copies * prefix.start.radius.element_size()


def _kept(record: LayerRecord) -> int:
    """How many tensors of the size of Λ a layer keeps for gradients."""
    if _curved(record):
        return KEPT_CURVE
    return KEPT if record.box is None else KEPT_NONLINEAR


def _curved(record: LayerRecord) -> bool:
    """Whether the layer is an activation with two lines to choose for each neuron."""
    found = ACTIVATIONS.get(type(record.call.layer))
    return found is not None and found.rectifier is None
