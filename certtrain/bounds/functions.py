"""The layers that equal functions, operators and tensor methods: `torch.relu(x)` is `nn.ReLU()`."""

import inspect
import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.forms import FunctionForm, number_given
from certtrain.bounds.graph import Add
from certtrain.errors import UnsupportedLayer
from certtrain.spec.shapes import Shape

FLAT = "write x.flatten(1), which holds for inputs of any shape"


class Given(NamedTuple):
    """A function's first argument: its shape without the batch, None where it is not known, and the batch's size."""

    shape: Callable[[], Shape | None]
    batch: fx.Node | None


def layers_equal_to(node: fx.Node, given: Given) -> list[nn.Module]:
    """The layers that a call of a function equals. Raises UnsupportedLayer that names it."""
    function = _function(node)
    try:
        arguments = _bound(node, given)
        return function.make(*arguments.args, **arguments.kwargs)
    except (TypeError, ValueError) as error:
        raise UnsupportedLayer(f"node {node.name!r}: {title(node.target)} with {error}") from error


def writes_over(node: fx.Node) -> bool:
    """Whether a call of a function overwrites its first argument."""
    chosen = _bound(node, Given(lambda: None, None)).arguments.get("inplace", False)
    return bool(chosen) or _function(node).inplace


def first_argument(node: fx.Node) -> object:
    """The first argument of a call of a layer or a function."""
    return node.args[0] if node.args else node.kwargs.get("input")


def title(target: object) -> str:
    """The name of a function, as a user writes it."""
    if isinstance(target, str):
        return f"x.{target}()"
    name, module = str(getattr(target, "__name__", target)), str(getattr(target, "__module__", None))
    if module == "_operator":
        return SYMBOLS.get(name, f"operator.{name}")
    return f"F.{name}" if module in ("torch.nn.functional", "torch._C._nn") else f"torch.{name}"


def _function(node: fx.Node) -> FunctionForm:
    if node.target is getattr:
        raise UnsupportedLayer(f"the forward pass reads x.{node.args[1]}, which is not known before it runs")
    if node.target not in FUNCTIONS:
        known = ", ".join(sorted({title(target) for target in FUNCTIONS}))
        raise UnsupportedLayer(
            f"node {node.name!r} calls {title(node.target)}, for which there is no rule. "
            f"Functions that can be bounded: {known}."
        )
    return FUNCTIONS[node.target]


def _bound(node: fx.Node, given: Given) -> inspect.BoundArguments:
    """The arguments after the first, by name, as `make` takes them."""
    function = _function(node)
    named = {key: value for key, value in node.kwargs.items() if key != "input"}
    front = (given,) if function.shaped else ()
    return inspect.signature(function.make).bind(*front, *node.args[1:], **named)


# --- the layers of each function -------------------------------------------------------------------------


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> list[nn.Module]:
    return [nn.Dropout(number_given(p)).train(bool(number_given(training)))]


def _avg_pool2d(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> list[nn.Module]:
    stride = stride or None  # torch records the default as ()
    return [nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)]


def _max_pool2d(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> list[nn.Module]:
    return [nn.MaxPool2d(kernel_size, stride or None, padding, dilation, return_indices, ceil_mode)]


def _adaptive_avg_pool2d(output_size: Any) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(output_size)]


def _add(other: object, *, alpha: float = 1) -> list[nn.Module]:
    if not isinstance(other, fx.Node):
        raise ValueError(f"the constant {other!r}: only the sum of two layers is supported")
    if alpha != 1:
        raise ValueError(f"alpha = {alpha}: only the plain sum of two layers is supported")
    return [Add()]


def _added_in_place(other: object) -> list[nn.Module]:
    return _add(other)


def _contiguous() -> list[nn.Module]:
    return [nn.Identity()]


def _flatten(start_dim: int = 0, end_dim: int = -1) -> list[nn.Module]:
    return [nn.Flatten(start_dim, end_dim)]


def _mean(given: Given, dim: Any = None, keepdim: bool = False) -> list[nn.Module]:
    """The mean over the rows and columns of images, as in global average pooling."""
    dims, shape = dim if isinstance(dim, (tuple, list)) else (dim,), None
    if any(not isinstance(d, int) or d < 0 for d in dims):
        shape = given.shape()
    counted = {d + 4 if isinstance(d, int) and d < 0 and shape is not None else d for d in dims}
    if counted != {2, 3} or len(dims) != 2 or (shape is not None and len(shape) != 3):
        raise ValueError(f"dim = {dim}: only the mean over rows and columns is supported, x.mean((2, 3)) of images")
    return [nn.AdaptiveAvgPool2d(1), *([] if keepdim else [nn.Flatten()])]


def _reshape(given: Given, *sizes: Any, shape: Any = None) -> list[nn.Module]:
    sizes = sizes if shape is None else (shape,)
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    if sizes == (given.batch, -1):
        return [nn.Flatten()]
    _check_sizes(sizes, given.batch)
    known = given.shape()
    if known is None:
        raise ValueError(f"shape {sizes}, which needs the input's shape, and that is not known here; {FLAT}")
    return [_flattening(known, _wanted(sizes, known))]


def _check_sizes(sizes: Sequence[Any], batch: fx.Node | None) -> None:
    """The batch must stay first: given by its size, or by −1 where all other sizes are numbers."""
    rest = tuple(sizes[1:])
    if not all(isinstance(size, int) for size in rest) or rest.count(-1) > 1 or not rest:
        raise ValueError(f"shape {tuple(sizes)}: its sizes after the batch's must be numbers; {FLAT}")
    if sizes[0] is not batch and (sizes[0] != -1 or -1 in rest):
        raise ValueError(f"shape {tuple(sizes)}: the batch must stay in front, as x.size(0) or −1; {FLAT}")


def _wanted(sizes: Sequence[Any], known: Shape) -> Shape:
    """The shape without the batch that `sizes` asks for, of a value of the shape `known`."""
    count, others = prod(known), prod(size for size in sizes[1:] if size != -1)
    wanted = tuple(count // others if size == -1 and others else size for size in sizes[1:])
    if prod(wanted) != count:
        raise ValueError(f"shape {tuple(sizes)}: one example has {count} values, so this would mix examples; {FLAT}")
    return wanted


def _flattening(known: Shape, wanted: Shape) -> nn.Module:
    """The layer that turns one shape into the other."""
    if wanted == known:
        return nn.Identity()
    if len(wanted) == 1:
        return nn.Flatten()
    for start in range(len(known)):
        for end in range(start + 2, len(known) + 1):
            if wanted == (*known[:start], prod(known[start:end]), *known[end:]):
                return nn.Flatten(start + 1, end)
    raise ValueError(f"shape {known} of an example to {wanted}: only joining neighbouring dimensions is supported")


SYMBOLS = {"add": "x + y", "iadd": "x += y", "sub": "x - y", "mul": "x * y", "truediv": "x / y", "neg": "-x"}
SYMBOLS |= {"getitem": "x[…]", "matmul": "x @ y", "pow": "x ** y", "floordiv": "x // y", "isub": "x -= y"}

FUNCTIONS: dict[object, FunctionForm] = {
    **{function: form for record in ACTIVATIONS.values() for function, form in record.functions.items()},
    F.dropout: FunctionForm(_dropout),
    F.avg_pool2d: FunctionForm(_avg_pool2d),
    F.max_pool2d: FunctionForm(_max_pool2d),
    F.adaptive_avg_pool2d: FunctionForm(_adaptive_avg_pool2d),
    **dict.fromkeys((torch.mean, "mean"), FunctionForm(_mean, shaped=True)),
    **dict.fromkeys((torch.flatten, "flatten"), FunctionForm(_flatten)),
    **dict.fromkeys((torch.reshape, "reshape", "view"), FunctionForm(_reshape, shaped=True)),
    "contiguous": FunctionForm(_contiguous),
    **dict.fromkeys((operator.add, torch.add, "add"), FunctionForm(_add)),
    operator.iadd: FunctionForm(_added_in_place, inplace=True),
    "add_": FunctionForm(_add, inplace=True),
}
