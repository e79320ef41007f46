"""The symbols that stand for values while a forward pass is traced, and the tracer that makes them."""

import builtins
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import getattr_static
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from certtrain.bounds.functions import FLAT
from certtrain.bounds.modules import is_layer
from certtrain.errors import UnsupportedLayer
from certtrain.spec.shapes import Shape

BATCH_ASKED = "the forward pass uses the number of inputs as a key, a number or as text; it must not depend on it"
LENGTH = len  # Python's own, while `length_of_symbols` replaces it


@contextmanager
def length_of_symbols() -> Iterator[None]:
    """Let len(x) of a symbol be a symbol, as x.size(0) is. Python makes a plain number of what `__len__` returns."""
    names = vars(builtins)
    names["len"] = _length
    try:
        yield
    finally:
        names["len"] = LENGTH


def _length(value: Any) -> Any:
    if not isinstance(value, _Proxy):
        return LENGTH(value)
    value.tracer.count(sys._getframe(1))
    return value.size(0)


class _Proxy(fx.Proxy):
    """A value of the forward pass; it has a shape where the input's shape is known."""

    tracer: "Tracer"

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        if getattr_static(Tensor, k, None) is None:  # so that hasattr(x, k) gives what it gives for a tensor
            raise AttributeError(f"'Tensor' object has no attribute {k!r}")
        return super().__getattr__(k)

    def __iadd__(self, other: object) -> fx.Proxy:
        """x += y, which overwrites x; torch.fx would record x = x + y."""
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """For isinstance(x, Tensor), which is false for a symbol and true for the tensor that it stands for."""
        if is_user_code(frame := sys._getframe(1)) or frame.f_code is torch.is_tensor.__code__:
            raise self.tracer.refusal("the forward pass asks for the class of a value, as by isinstance; remove that")
        return type(self)

    @property
    def shape(self) -> Any:
        self.tracer.count(sys._getframe(1))
        return self.tracer.sizes(self.node)

    @property
    def ndim(self) -> int:
        self.tracer.count(sys._getframe(1))
        return LENGTH(self.shape)

    def size(self, dim: int | None = None) -> Any:
        self.tracer.count(sys._getframe(1))
        if dim == 0:
            return self.tracer.batch_size()
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        self.tracer.count(sys._getframe(1))
        return LENGTH(self.shape)


def is_user_code(frame: FrameType) -> bool:
    """Whether the code of a frame is neither torch's nor certtrain's."""
    return str(frame.f_globals.get("__name__")).partition(".")[0] not in ("torch", "certtrain")


class _UnknownShape:
    """A shape of which only the first size, the batch's, is known."""

    def __init__(self, batch: "_BatchSize") -> None:
        self.batch = batch

    def __getitem__(self, index: object) -> fx.Proxy:
        if index != 0:
            self._refuse()
        return self.batch

    def __iter__(self) -> Iterator[Any]:
        self._refuse()
        return iter(())

    def __len__(self) -> int:
        self._refuse()
        return 0

    def __eq__(self, other: object) -> bool:
        self._refuse()
        return False

    __hash__ = None  # type: ignore[assignment]  # since it cannot be compared

    def _refuse(self) -> None:
        raise self.batch.tracer.refusal(
            "the forward pass asks for the shape of a value, but the input's shape is not known here. Give it, as in "
            f"ibp_init_(model, shape=(3, 32, 32)). To flatten, {FLAT}"
        )


class _BatchSize(fx.Proxy):
    """The number of inputs, as a symbol. It is no key of a set or dictionary, no number and no text."""

    tracer: "Tracer"

    def __hash__(self) -> int:
        if is_user_code(sys._getframe(1)):
            raise self.tracer.refusal(BATCH_ASKED)
        return super().__hash__()

    def __repr__(self) -> str:
        if is_user_code(sys._getframe(1)):
            raise self.tracer.refusal(BATCH_ASKED)
        return super().__repr__()

    def __int__(self) -> int:
        raise self.tracer.refusal(BATCH_ASKED)

    def __float__(self) -> float:
        raise self.tracer.refusal(BATCH_ASKED)


class Tracer(fx.Tracer):
    """Traces a forward pass. `shape_of` gives the shape of a node's value without the batch, None if it is not known.

    The shapes of weights can be read as well.
    """

    def __init__(self, shape_of: Callable[[fx.Node], Shape | None]) -> None:
        # Without `autowrap_modules` no function of `math` takes a symbol, and none has a rule. It would cost a fifth of
        # the time to replace them all.
        super().__init__(autowrap_modules=(), param_shapes_constant=True)  # type: ignore[arg-type]
        self.shape_of = shape_of
        self.batch: _BatchSize | None = None
        self.shapes_read = 0
        self.refused: Exception | None = None
        self.autocast = _autocast()

    def count(self, asking: FrameType) -> None:
        """Count that the forward pass asks for a shape, if the frame that does is its own."""
        self.shapes_read += is_user_code(asking)

    def refusal(self, message: str) -> UnsupportedLayer:
        """The error to raise; the first one is kept, since the forward pass may catch it and go on."""
        found = UnsupportedLayer(message)
        self.refused = self.refused or found
        return found

    def to_bool(self, obj: fx.Proxy) -> bool:
        """As torch's, which raises TraceError; the first one is kept."""
        try:
            return super().to_bool(obj)
        except Exception as error:
            self.refused = self.refused or error
            raise

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """As torch's, which raises TraceError where it does not know how many values there are."""
        try:
            return super().iter(obj)
        except Exception as error:
            self.refused = self.refused or error
            raise

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """As torch's; raises UnsupportedLayer where autocast has changed since the forward pass began."""
        if _autocast() != self.autocast:
            raise UnsupportedLayer(
                "the forward pass switches autocast on or off; remove that, and name the arithmetic when you certify "
                "the network"
            )
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_layer(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def batch_size(self) -> "_BatchSize":
        """The number of inputs: one symbol for all values."""
        if self.batch is None:
            first = next(iter(self.graph.nodes))
            self.batch = _BatchSize(self.create_node("call_method", "size", (first, 0), {}), self)
        return self.batch

    def sizes(self, node: fx.Node) -> Any:
        """The shape of a value in the forward pass: the symbol of the batch's size, and numbers."""
        batch = self.batch_size()
        shape = self.shape_of(node)
        return _UnknownShape(batch) if shape is None else (batch, *shape)


def _autocast() -> list[tuple[bool, torch.dtype]]:
    return [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
