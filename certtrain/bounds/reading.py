"""From any `nn.Module` to a list of layer calls.

torch.fx traces the module's forward pass. Functional calls and operators are
replaced by the layers they equal (`functions`), so that all other code deals with
layers only. Where the shape of one input is given, the forward pass may read
shapes and branch on them. The number of inputs is never fixed.
"""

from itertools import chain, count, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from certtrain.bounds.contract import result_shape
from certtrain.bounds.functions import Given, first_argument, layers_equal_to, title, writes_over
from certtrain.bounds.graph import Add, LayerCall, LayerGraph
from certtrain.bounds.modules import ModuleState, check_modules, is_layer, restored
from certtrain.bounds.shape_layers import REARRANGING, Concat
from certtrain.bounds.symbols import LENGTH, Tracer, length_of_symbols
from certtrain.errors import DataError, UnsupportedLayer
from certtrain.spec.shapes import SHAPE_OF, Shape

VALUES = "It is called with one input, and must not branch on its values, nor on how many of them there are."
INSIDE = "model."
SHARING = (nn.Flatten, nn.Identity, nn.Dropout, *REARRANGING)  # their results share the memory of their argument


def read_layers(model: nn.Module, shape: Shape | None = None) -> LayerGraph:
    """The layers of `model` in order, for inputs of `shape` (without the batch); without it, no shape may be read.

    Raises DataError if a layer does not take its inputs, and UnsupportedLayer if the
    forward pass cannot be traced, contains something other than layers, sums and
    flattening, or may compute something other than its modules' classes say.
    """
    traced = read_forward(model, shape)
    return traced.graph.up_to(traced.result)


class ForwardPass(NamedTuple):
    """All layer calls of a forward pass, in order, the value that it returns, and how often it asked for a shape."""

    graph: LayerGraph
    result: int
    shapes_read: int = 0


def read_forward(model: nn.Module, shape: Shape | None = None) -> ForwardPass:
    """As `read_layers`, including layers whose results are not used."""
    check_modules(model)
    if is_layer(model):
        return ForwardPass(LayerGraph((LayerCall(type(model).__name__.lower(), model, (0,)),)), 1)
    with restored(model):
        return _repeatable(model, shape)


class _OneInput(nn.Module):
    """The network called with one input; other arguments of its forward keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


def _repeatable(model: nn.Module, shape: Shape | None) -> ForwardPass:
    """The layers, if each call of the forward pass has the same; it may store values, but not depend on them."""
    before, traced, after = ModuleState(model), _traced(model, shape), ModuleState(model)
    if after.values == before.values:
        return traced
    same = after.layers == before.layers and _traced(model, shape).graph.description() == traced.graph.description()
    if not same or ModuleState(model).values != after.values:
        raise UnsupportedLayer(
            f"the forward pass changes {after.changed_since(before)!r}, so that its next call may compute something "
            "different; let it change nothing but local variables"
        )
    return traced


def _traced(model: nn.Module, shape: Shape | None) -> ForwardPass:
    reader = _Reader(model, shape)
    try:
        with length_of_symbols():
            reader.tracer.trace(_OneInput(model))
        if reader.tracer.refused is not None:  # the forward pass has caught it
            raise reader.tracer.refused
    except (UnsupportedLayer, DataError):
        raise
    except Exception as error:  # the user's code runs here
        raise UnsupportedLayer(
            f"the forward pass of {type(model).__name__} cannot be traced: {type(error).__name__}: {error}. {VALUES}"
        ) from error
    return reader.finished()


class _Reader:
    """Turns an fx graph into layer calls, node by node, while the graph is being traced."""

    def __init__(self, model: nn.Module, shape: Shape | None) -> None:
        self.tracer = Tracer(self.shape_so_far)
        # All names begin with "model.", the network's name in `_OneInput`.
        self.modules = {f"{INSIDE}{name}": module for name, module in model.named_modules()}
        self.calls: list[LayerCall] = []
        self.shape = shape
        self.shapes: list[
            torch.Size
        ] = []  # (2, …), of the values whose shapes were read, and of all values before them
        self.values: dict[fx.Node, int] = {}
        self.names: set[str] = set()
        self.done = 0
        self.result = 0

    @property
    def batch(self) -> fx.Node | None:
        """The node of the batch's size, if the forward pass reads it."""
        return None if self.tracer.batch is None else self.tracer.batch.node

    def read(self) -> None:
        """Read the new nodes of the graph."""
        readers = {
            "placeholder": self._placeholder,
            "get_attr": self._get_attr,
            "call_module": self._call_module,
            "call_function": self._call_function,
            "call_method": self._call_function,
            "output": self._output,
        }
        for node in list(islice(self.tracer.graph.nodes, self.done, None)):
            self.done += 1
            if node is not self.batch:
                readers[node.op](node)

    def finished(self) -> ForwardPass:
        """The layers of the whole graph."""
        self.read()
        for node in self.tracer.graph.nodes:
            self._check_use(node)
        if not self.result:
            raise UnsupportedLayer("the network has no layer: its output is its input")
        graph = LayerGraph(tuple(self.calls), self.shape if self.shapes else None)
        return ForwardPass(graph, self.result, self.tracer.shapes_read)

    def shape_so_far(self, node: fx.Node) -> Shape | None:
        """As `shape_of`, while the forward pass is being traced."""
        self.read()
        return self.shape_of(node)

    def shape_of(self, node: fx.Node) -> Shape | None:
        """The shape of a value, without the batch; None where the input's shape is not known."""
        if node not in self.values:
            raise UnsupportedLayer(
                f"the forward pass asks for the shape of {node.name!r}, which is not the result of a layer"
            )
        if self.shape is None:
            return None
        self.shapes = self.shapes or [torch.Size((2, *self.shape))]
        for call in self.calls[LENGTH(self.shapes) - 1 : self.values[node]]:
            if type(call.layer).__name__ not in SHAPE_OF:
                raise UnsupportedLayer(
                    f"layer {call.name!r} is a {type(call.layer).__name__}, for which there is no bound rule. "
                    f"Layers that can be bounded: {', '.join(sorted(SHAPE_OF))}."
                )
            self.shapes.append(result_shape(call, [self.shapes[value] for value in call.inputs]))
        return tuple(self.shapes[self.values[node]][1:])

    # --- node by node ------------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> None:
        if not self.values:
            self.values[node] = 0

    def _get_attr(self, node: fx.Node) -> None:
        """A weight: only its shape may be read; see `_call_function`."""

    def _output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node) or result not in self.values:
            raise UnsupportedLayer("the network must return one tensor, the result of a layer")
        self.result = self.values[result]

    def _call_module(self, node: fx.Node) -> None:
        self._append(str(node.target).removeprefix(INSIDE), [self.modules[str(node.target)]], node)

    def _call_function(self, node: fx.Node) -> None:
        for used in node.all_input_nodes:
            if used.op == "get_attr":
                raise UnsupportedLayer(
                    f"{str(used.target).removeprefix(INSIDE)!r} is used outside a layer, by {title(node.target)}; "
                    "put it into a layer such as nn.Linear or nn.Conv2d"
                )
        source = first_argument(node)
        given = Given(lambda: self.shape_of(source) if isinstance(source, fx.Node) else None, self.batch)
        self._append(node.name, layers_equal_to(node, given), node)

    def _append(self, name: str, layers: list[nn.Module], node: fx.Node) -> None:
        inputs = self._inputs(name, layers[0], node)
        for layer in layers:
            again = (f"{name}_{number}" for number in count(1))  # a layer that is called twice
            free = next(free for free in chain([name], again) if free not in self.names)
            self.names.add(free)
            self.calls.append(LayerCall(free, layer, inputs))
            inputs = (len(self.calls),)
        self.values[node] = len(self.calls)

    def _inputs(self, name: str, layer: nn.Module, node: fx.Node) -> tuple[int, ...]:
        for used in node.all_input_nodes:
            if used.op == "placeholder" and used not in self.values:
                raise UnsupportedLayer(f"the network takes a second input {used.name!r}; it must take one")
        given = (*node.args, *node.kwargs.values())
        known = tuple(self.values[n] for n in given if isinstance(n, fx.Node) and n in self.values)
        if isinstance(layer, Add) and len(known) != 2:
            raise UnsupportedLayer(f"node {name!r} adds something else; only the sum of two layers is supported")
        if isinstance(layer, Concat) and (len(known), len(given)) != (2, 2):
            raise UnsupportedLayer(f"{name!r} must take two earlier layers' results")
        if not isinstance(layer, (Add, Concat)) and (len(known) != 1 or first_argument(node) not in self.values):
            raise UnsupportedLayer(f"{name!r} must take one earlier layer's result, as its first argument")
        return known

    # --- memory that values share ------------------------------------------------------------------------

    def _check_use(self, node: fx.Node) -> None:
        if self._overwrites(node) and not self._used_once(first_argument(node)):
            name = self.calls[self.values[node] - 1].name
            raise UnsupportedLayer(f"{name!r} overwrites a value that is used elsewhere; use inplace=False")

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether the result overwrites the first argument."""
        if node not in self.values or node.op == "placeholder":
            return False
        if node.op == "call_module":
            return bool(getattr(self.modules[str(node.target)], "inplace", False))
        return writes_over(node)

    def _used_once(self, value: object) -> bool:
        """Whether only one node reads the memory of `value`, which a view shares with its source."""
        if not isinstance(value, fx.Node):
            return True
        readers = [user for user in value.users if user is not self.batch]
        source = first_argument(value) if self._shares_memory(value) else None
        return len(readers) == 1 and self._used_once(source)

    def _shares_memory(self, node: fx.Node) -> bool:
        if node.op == "placeholder":
            return False
        layer = self.calls[self.values[node] - 1].layer
        return self._overwrites(node) or isinstance(layer, SHARING)
