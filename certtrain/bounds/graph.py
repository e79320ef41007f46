"""From any `nn.Module` to a straight list of layers.

torch.fx follows the module's forward pass. Functional calls and operators are
replaced by the layer they equal (`torch.relu(x)` by `nn.ReLU()`, `x + y` by
`Add()`), so that everything after this file sees layers alone.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from certtrain.errors import DataError, UnsupportedLayer


class Normalize(nn.Module):
    """(x − mean) / std per channel: the layer that lets a network take pixels in [0, 1].

    `mean` and `std` have one entry per channel. Input (B, C, H, W); DataError for any other shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # Broadcasting would take images of one channel for images of many.
        if x.dim() != 4 or x.shape[1] != len(self.mean):
            raise DataError(f"the network takes images of shape (B, {len(self.mean)}, H, W), not {tuple(x.shape)}")
        return (x - self.mean) / self.std


class Add(nn.Module):
    """x + y: the sum that ends a residual block."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class LayerCall(NamedTuple):
    """One layer applied to earlier values. Value 0 is the network's input, value i + 1 the result of call i."""

    name: str
    layer: nn.Module
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class LayerGraph:
    """A network's layers in the order of its forward pass; the last call gives the output.

    It refers to the network's own layers, so it stays true while their weights change.
    """

    calls: tuple[LayerCall, ...]

    @property
    def head(self) -> nn.Linear | None:
        """The last layer where it is linear and nothing but the output uses it, else None."""
        layer = self.calls[-1].layer
        return layer if isinstance(layer, nn.Linear) else None

    def up_to(self, value: int) -> "LayerGraph":
        """The calls that this value depends on, it being the output; the others are left out."""
        wanted = {value}
        for number in range(value, 0, -1):
            if number in wanted:
                wanted.update(self.calls[number - 1].inputs)
        kept = [number for number in sorted(wanted) if number]
        places = {0: 0} | {number: place for place, number in enumerate(kept, start=1)}
        calls = (self.calls[number - 1] for number in kept)
        return LayerGraph(tuple(call._replace(inputs=tuple(places[i] for i in call.inputs)) for call in calls))

    def last_uses(self) -> list[list[int]]:
        """For each call, the values that no later call needs."""
        last = {value: i for i, call in enumerate(self.calls) for value in call.inputs}
        done: list[list[int]] = [[] for _ in self.calls]
        for value, i in last.items():
            done[i].append(value)
        return done

    def results(self, x: Tensor) -> Iterator[Tensor]:
        """Each call's result for the inputs `x` (B, …), in order; what no later call needs is not kept."""
        values = {0: x}
        for number, (call, done) in enumerate(zip(self.calls, self.last_uses(), strict=True)):
            values[number + 1] = call.layer(*(values[value] for value in call.inputs))
            yield values[number + 1]
            for value in done:
                del values[value]


def trace_layers(model: nn.Module) -> LayerGraph:
    """The layers of `model` in order.

    Raises UnsupportedLayer if its forward pass cannot be followed or holds
    something other than layers, sums and flattening.
    """
    tracer = _Tracer()
    if tracer.is_leaf_module(model, ""):
        return LayerGraph((LayerCall(type(model).__name__.lower(), model, (0,)),))
    try:
        graph = tracer.trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise UnsupportedLayer(
            f"the forward pass of {type(model).__name__} cannot be followed: {error}. "
            "It must not branch on its input's values."
        ) from error
    return _Reader(model).read(graph)


class _Proxy(fx.Proxy):
    """A proxy that tells x += y, which overwrites x, from x = x + y; torch.fx does not."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (Normalize, Add)) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Reader:
    """Reads an fx graph node by node into layer calls."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.calls: list[LayerCall] = []
        self.values: dict[fx.Node, int] = {}
        self.names: set[str] = set()
        self.result = 0

    def read(self, graph: fx.Graph) -> LayerGraph:
        readers = {
            "placeholder": self._placeholder,
            "get_attr": self._get_attr,
            "call_module": self._call_module,
            "call_function": self._call_function,
            "call_method": self._call_function,
            "output": self._output,
        }
        for node in graph.nodes:
            readers[node.op](node)
        if not self.result:
            raise UnsupportedLayer("the network has no layer: its output is its input")
        return LayerGraph(tuple(self.calls)).up_to(self.result)

    def _placeholder(self, node: fx.Node) -> None:
        if self.values:
            if node.users:
                raise UnsupportedLayer(f"the network takes a second input {node.name!r}; it must take one")
            return
        self.values[node] = 0

    def _get_attr(self, node: fx.Node) -> None:
        raise UnsupportedLayer(f"{node.target!r} is used outside a layer; put it into a supported layer")

    def _output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node) or result not in self.values:
            raise UnsupportedLayer("the network must return one tensor, the result of a layer")
        self.result = self.values[result]

    def _call_module(self, node: fx.Node) -> None:
        self._append(str(node.target), self.modules[str(node.target)], node)

    def _call_function(self, node: fx.Node) -> None:
        if not _is_shape_query(node):
            self._append(node.name, _as_layer(node), node)

    def _append(self, name: str, layer: nn.Module, node: fx.Node) -> None:
        again = (f"{name}_{number}" for number in count(1))  # a layer that is called twice
        name = next(free for free in chain([name], again) if free not in self.names)
        self.names.add(name)
        self.calls.append(LayerCall(name, layer, self._inputs(name, layer, node)))
        self.values[node] = len(self.calls)

    def _inputs(self, name: str, layer: nn.Module, node: fx.Node) -> tuple[int, ...]:
        given = (*node.args, *node.kwargs.values())
        known = tuple(self.values[n] for n in given if isinstance(n, fx.Node) and n in self.values)
        if isinstance(layer, Add) and len(known) != 2:
            raise UnsupportedLayer(f"node {name!r} adds something else; only the sum of two layers is supported")
        if not isinstance(layer, Add) and (len(known) != 1 or node.args[:1] != (node.all_input_nodes[0],)):
            raise UnsupportedLayer(f"{name!r} must take one earlier layer's result, as its first argument")
        if self._overwrites(node) and not self._used_once(node.args[0]):
            raise UnsupportedLayer(f"{name!r} overwrites a value that is used elsewhere; use inplace=False")
        return known

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether the result is written over the first argument."""
        if node.op == "call_module":
            layer = self.modules[str(node.target)]
            return isinstance(layer, (nn.ReLU, nn.LeakyReLU, nn.Dropout)) and layer.inplace
        if node.target in (F.relu, F.leaky_relu):
            return node.kwargs.get("inplace", node.args[-1]) is True
        return node.target is operator.iadd

    def _used_once(self, value: object) -> bool:
        """Whether one node alone reads the memory behind `value`, which a view shares with its source."""
        if not isinstance(value, fx.Node):
            return True
        readers = [user for user in value.users if not _is_shape_query(user)]
        source = value.args[0] if value.args and self._shares_memory(value) else None
        return len(readers) == 1 and self._used_once(source)

    def _shares_memory(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            layer = self.modules[str(node.target)]
            return isinstance(layer, (nn.Flatten, nn.Identity, nn.Dropout)) or self._overwrites(node)
        return node.op != "placeholder" and (node.target in VIEWS or self._overwrites(node))


def _as_layer(node: fx.Node) -> nn.Module:
    make = FUNCTIONS.get(node.target)
    if make is None:
        raise UnsupportedLayer(
            f"node {node.name!r} calls {_title(node.target)}, for which there is no rule. "
            f"Functions that can be bounded: {', '.join(sorted({_title(f) for f in FUNCTIONS}))}."
        )
    try:
        return make(*node.args[1:], **{k: v for k, v in node.kwargs.items() if k not in ("input", "inplace")})
    except (TypeError, ValueError) as error:
        raise UnsupportedLayer(f"node {node.name!r}: {_title(node.target)} with {error}") from error


def _flatten(start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    return nn.Flatten(start_dim, end_dim)


def _reshape(*shape: Any) -> nn.Module:
    shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if len(shape) != 2 or shape[1] != -1 or not _is_batch_size(shape[0]):
        raise ValueError(f"shape {shape}: only (batch, -1), a flattening, is supported, with batch from x.size(0)")
    return nn.Flatten()


def _add(other: object) -> nn.Module:
    if not isinstance(other, fx.Node):
        raise ValueError(f"the constant {other!r}: only the sum of two layers is supported")
    return Add()


def _relu(inplace: bool = False) -> nn.Module:
    return nn.ReLU()


def _leaky_relu(negative_slope: float = 0.01, inplace: bool = False) -> nn.Module:
    return nn.LeakyReLU(negative_slope)


def _is_shape_query(node: fx.Node) -> bool:
    """x.size(0), x.shape and x.shape[0], which only feed a reshape."""
    if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
        return True
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, fx.Node) and _is_shape_query(source)


def _is_batch_size(value: object) -> bool:
    """x.size(0), x.size()[0] or x.shape[0]."""
    return isinstance(value, fx.Node) and _is_shape_query(value) and value.args[1:] == (0,)


def _title(target: object) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


# What a function or a tensor's method equals; the values take the call's arguments after the first.
FUNCTIONS: dict[object, Callable[..., nn.Module]] = {
    torch.relu: _relu,
    F.relu: _relu,
    "relu": _relu,
    F.leaky_relu: _leaky_relu,
    torch.sigmoid: nn.Sigmoid,
    torch.tanh: nn.Tanh,
    F.avg_pool2d: nn.AvgPool2d,
    F.max_pool2d: nn.MaxPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    torch.flatten: _flatten,
    "flatten": _flatten,
    "view": _reshape,
    "reshape": _reshape,
    torch.reshape: _reshape,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
}

# Of these, the ones whose result shares the argument's memory.
VIEWS = frozenset({torch.flatten, "flatten", "view", "reshape", torch.reshape})
