"""The layers that equal the operators of an exported program: `torch.ops.aten.conv2d.default` is `nn.Conv2d`."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.forms import FunctionForm
from certtrain.bounds.functions import FUNCTIONS, Given
from certtrain.bounds.graph import Add, Normalize
from certtrain.bounds.shape_layers import Concat, Permute, Reshape
from certtrain.errors import UnsupportedLayer
from certtrain.spec.shapes import Shape

FIRST_ARGUMENTS = ("self", "input")  # their names in torch's operators


class Value(NamedTuple):
    """A result that depends on the input: its number among the values, and its shape without the batch."""

    number: int
    shape: Shape


class Unread(NamedTuple):
    """An argument of a kind that no operator here takes."""

    kind: str


class Call(NamedTuple):
    """A call of an operator, with its arguments by name: values, constants as tensors, and plain numbers.

    positional: the names of those that torch gives the operator by their places. batch: the size of the batch, if it is
    fixed. sizes: the names of its size, if the program reads it.
    """

    target: str
    name: str
    arguments: Mapping[str, Any]
    positional: frozenset[str]
    batch: int | None
    sizes: frozenset[str]

    @property
    def in_place(self) -> bool:
        """Whether it overwrites its first argument."""
        return self.target.rpartition(".")[0].endswith("_")

    def error(self, problem: str) -> UnsupportedLayer:
        return UnsupportedLayer(f"node {self.name!r} ({self.target}): {problem}")

    def value(self) -> Value:
        """The first argument, which must depend on the input."""
        name, found = next(iter(self.arguments.items()), ("", None))
        if name not in FIRST_ARGUMENTS or not isinstance(found, Value):
            raise self.error("its first argument must depend on the network's input")
        return found

    def rest(self) -> dict[str, Any]:
        """The arguments after the first, of which none depends on the input."""
        found = dict(list(self.arguments.items())[1:])
        for name, value in found.items():
            if isinstance(value, (Value, Unread)):
                raise self.error(f"its argument {name!r} is not read as it is given here")
        return found


Made = tuple[tuple[int, ...], list[nn.Module]]  # the values that the first layer takes, and the layers in order


def layers_of_call(call: Call) -> Made:
    """The layers that the operator equals, and the numbers of the values that the first one takes.

    Raises UnsupportedLayer that names it.
    """
    kind = call.target.removeprefix("torch.ops.aten.").replace("_.", ".")
    try:
        if kind in PROGRAM_OPERATORS or kind in FORMS:
            _check_arguments(call)
            return PROGRAM_OPERATORS[kind](call) if kind in PROGRAM_OPERATORS else _by_form(call, FORMS[kind])
    except (TypeError, ValueError, RuntimeError) as error:
        raise call.error(str(error)) from error
    known = ", ".join(sorted([*PROGRAM_OPERATORS, *FORMS]))
    raise call.error(f"there is no rule for this operator. Operators that are read: {known}")


def _check_arguments(call: Call) -> None:
    """Raise unless torch gives the operator its arguments as they are named.

    It ignores names that the operator does not have. Positional arguments it gives by their places, so that one that
    is left out moves those after it.
    """
    operator, overload = call.target.removeprefix("torch.ops.aten.").split(".")
    names = [argument.name for argument in getattr(getattr(torch.ops.aten, operator), overload)._schema.arguments]
    if unknown := sorted(call.arguments.keys() - set(names)):
        raise call.error(f"it has no argument {unknown[0]!r}")
    if call.positional != set(names[: len(call.positional)]):
        raise call.error(f"its arguments {sorted(call.positional)} are not the first of {names}")


def _by_form(call: Call, form: FunctionForm) -> Made:
    value, arguments = call.value(), call.rest()
    front = (Given(lambda: value.shape, None),) if form.shaped else ()
    return (value.number,), form.make(*front, **arguments)


def _tensors_of(layer: nn.Module, tensors: Mapping[str, Tensor | None]) -> nn.Module:
    """The layer, in evaluation mode, with these tensors; those that are None must be missing in the layer too."""
    layer.load_state_dict({name: tensor for name, tensor in tensors.items() if tensor is not None}, assign=True)
    return layer.eval()


def _weight(call: Call, name: str, *, dimensions: int) -> Tensor:
    found = call.arguments.get(name)
    if not isinstance(found, Tensor) or found.dim() != dimensions or found.dtype != torch.float32:
        raise call.error(f"its {name} must be a float32 tensor of {dimensions} dimensions, kept in the file")
    return found


def _optional(call: Call, name: str) -> Tensor | None:
    return None if call.arguments.get(name) is None else _weight(call, name, dimensions=1)


def _conv2d(call: Call) -> Made:
    value, weight, bias = call.value(), _weight(call, "weight", dimensions=4), _optional(call, "bias")
    more = {key: found for key, found in call.rest().items() if key not in ("weight", "bias")}
    channels, kernel = weight.shape[1] * more.get("groups", 1), (weight.shape[2], weight.shape[3])
    with torch.device("meta"):
        layer = nn.Conv2d(channels, weight.shape[0], kernel, bias=bias is not None, **more)
    return (value.number,), [_tensors_of(layer, {"weight": weight, "bias": bias})]


def _linear(call: Call) -> Made:
    value, weight, bias = call.value(), _weight(call, "weight", dimensions=2), _optional(call, "bias")
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return (value.number,), [_tensors_of(layer, {"weight": weight, "bias": bias})]


def _batch_norm(call: Call) -> Made:
    value = call.value()
    if call.arguments["training"]:
        raise call.error("it normalises by the batch; export the network in evaluation mode: network.eval()")
    mean, variance = (_weight(call, f"running_{name}", dimensions=1) for name in ("mean", "var"))
    weight, bias = _optional(call, "weight"), _optional(call, "bias")
    if (weight is None) != (bias is None):
        raise call.error("it has only one of weight and bias")
    kind = nn.BatchNorm2d if len(value.shape) == 3 else nn.BatchNorm1d
    with torch.device("meta"):
        layer = kind(len(mean), eps=call.arguments["eps"], affine=weight is not None)
    state = {"running_mean": mean, "running_var": variance, "num_batches_tracked": torch.tensor(0)}
    return (value.number,), [_tensors_of(layer, state | {"weight": weight, "bias": bias})]


def _dropout(call: Call) -> Made:
    if call.arguments.get("train", True):
        raise call.error("it is random; export the network in evaluation mode: network.eval()")
    return (call.value().number,), [nn.Identity()]


def _unchanged(call: Call) -> Made:
    return (call.value().number,), [nn.Identity()]


# --- sums and products -----------------------------------------------------------------------------------


def _add(call: Call) -> Made:
    value, other = call.value(), call.arguments["other"]
    if call.arguments.get("alpha", 1) != 1:
        raise call.error("its alpha is not 1")
    if isinstance(other, Value):
        if other.shape != value.shape:
            raise call.error(f"it adds values of shapes {value.shape} and {other.shape}")
        return (value.number, other.number), [Add()]
    return (value.number,), [_affine(value, shift=_by_channel(call, value, other))]


def _subtract(call: Call) -> Made:
    value, other = call.value(), call.arguments["other"]
    if call.arguments.get("alpha", 1) != 1:
        raise call.error("its alpha is not 1")
    return (value.number,), [_normalize(mean=_by_channel(call, value, other))]


def _multiply(call: Call) -> Made:
    value = call.value()
    return (value.number,), [_affine(value, scale=_by_channel(call, value, call.arguments["other"]))]


def _divide(call: Call) -> Made:
    value = call.value()
    std = _by_channel(call, value, call.arguments["other"])
    if not bool((std > 0).all()):
        raise call.error("it divides by numbers that are not above zero")
    return (value.number,), [_normalize(std=std)]


def _by_channel(call: Call, value: Value, other: Any) -> Tensor:
    """A constant as one number for each channel of images (C, H, W)."""
    if len(value.shape) != 3:
        raise call.error(f"it combines a constant with values of shape {value.shape}; only images (C, H, W) are read")
    if isinstance(other, bool) or not isinstance(other, (int, float, Tensor)):
        raise call.error("its second argument must be a constant")
    found = other if isinstance(other, Tensor) else torch.tensor(float(other))
    channels = value.shape[0]
    shapes = [(), (1,), (1, 1, 1), (channels, 1, 1), (1, 1, 1, 1), (1, channels, 1, 1)]
    if found.dtype != torch.float32 or tuple(found.shape) not in shapes or not bool(found.isfinite().all()):
        raise call.error(f"its constant of shape {tuple(found.shape)} is not one number for each channel")
    return found.flatten().expand(channels)


def _normalize(*, mean: Tensor | None = None, std: Tensor | None = None) -> nn.Module:
    """x − mean or x / std, each an call of its own, as in the program."""
    count = len(mean if mean is not None else std if std is not None else ())
    own_mean = (0.0,) * count if mean is None else tuple(mean.tolist())
    return Normalize(own_mean, (1.0,) * count if std is None else tuple(std.tolist()))


def _affine(value: Value, *, scale: Tensor | None = None, shift: Tensor | None = None) -> nn.Module:
    """scale · x, or x + shift: a BatchNorm with fixed statistics."""
    channels = value.shape[0]
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    weight, bias = (ones if scale is None else scale.clone()), (zeros if shift is None else shift.clone())
    state = {"weight": weight, "bias": bias, "running_mean": zeros.clone(), "running_var": ones.clone()}
    return _tensors_of(nn.BatchNorm2d(channels, eps=0.0), state | {"num_batches_tracked": torch.tensor(0)})


# --- shapes ----------------------------------------------------------------------------------------------


def _reshape(call: Call) -> Made:
    """The batch must stay first: as its size, or as −1 where all other sizes are numbers."""
    value = call.value()
    sizes = call.arguments["size" if "size" in call.arguments else "shape"]
    first, *rest = sizes
    if (
        not all(type(size) is int for size in rest)
        or rest.count(-1) > 1
        or any(size < 1 and size != -1 for size in rest)
    ):
        raise call.error(f"the sizes {sizes} after the batch's must be numbers")
    if not (first in call.sizes or (first == call.batch and first is not None) or (first == -1 not in rest)):
        raise call.error(f"the sizes {sizes} do not keep the batch first")
    known, others = prod(value.shape), prod(size for size in rest if size != -1)
    shape = tuple(known // others if size == -1 else size for size in rest)
    if prod(shape) != known or not shape:
        raise call.error(f"the sizes {sizes} do not fit values of shape {value.shape}")
    return (value.number,), [nn.Flatten() if len(shape) == 1 else Reshape(shape)]


def _permute(call: Call) -> Made:
    value = call.value()
    count = len(value.shape) + 1
    first, *rest = (dim + count if dim < 0 else dim for dim in call.arguments["dims"])
    if first != 0 or sorted(rest) != list(range(1, count)):
        raise call.error(f"dims = {call.arguments['dims']} do not keep the batch first")
    return (value.number,), [Permute(tuple(rest))]


def _concat(call: Call) -> Made:
    parts, dim = call.arguments["tensors"], call.arguments.get("dim", 0)
    if len(parts) != 2 or not all(isinstance(part, Value) for part in parts):
        raise call.error("only two values that depend on the input are joined")
    dim = dim + len(parts[0].shape) + 1 if dim < 0 else dim
    if dim < 1:
        raise call.error("it joins along the batch")
    return (parts[0].number, parts[1].number), [Concat(dim)]


PROGRAM_OPERATORS: dict[str, Callable[[Call], Made]] = {
    "conv2d.default": _conv2d,
    "conv2d.padding": _conv2d,
    "linear.default": _linear,
    "batch_norm.default": _batch_norm,
    "dropout.default": _dropout,
    **dict.fromkeys(("contiguous.default", "clone.default", "alias.default"), _unchanged),
    "add.Tensor": _add,
    "sub.Tensor": _subtract,
    "mul.Tensor": _multiply,
    "div.Tensor": _divide,
    **dict.fromkeys(("view.default", "reshape.default"), _reshape),
    "permute.default": _permute,
    "cat.default": _concat,
}
_OVERLOADS = {"mean": "mean.dim", "flatten": "flatten.using_ints"}  # of all others, default
_OWN = {name.partition(".")[0] for name in PROGRAM_OPERATORS}
FORMS: dict[str, FunctionForm] = {
    _OVERLOADS.get(name, f"{name}.default"): form
    for target, form in FUNCTIONS.items()
    if (name := getattr(target, "__name__", "")) and name not in _OWN and not name.endswith("_") and name != "iadd"
}
