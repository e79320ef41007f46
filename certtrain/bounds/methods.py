"""The bound methods by name, from cheap to dear."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from certtrain.bounds import linear
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.rounding import Rounding
from certtrain.bounds.trace import BoundTrace, Clip, Logits, bound_logits, trace_bounds
from certtrain.errors import DataError, MethodError


class Bounds(Protocol):
    """What a method has found for one batch of boxes."""

    @property
    def shape(self) -> torch.Size:
        """(B, K)."""

    def ends(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds (B, K) of the logits."""

    def margins(self, labels: Tensor) -> Tensor:
        """Lower bounds (B, K) of logit[y] − logit[j] for the classes y in `labels` (B,); column y is 0."""


@dataclass(frozen=True)
class Settings:
    """How a method bounds. With `rounding`, computed logits in that arithmetic; without, as exact as x's precision."""

    rounding: Rounding | None = None


PLAIN = Settings()


@dataclass(frozen=True)
class LinearBounds:
    """Linear bounds from the boxes of a trace; each question is a pass back through the network."""

    trace: BoundTrace

    @property
    def shape(self) -> torch.Size:
        """(B, K)."""
        return self.trace.logits.shape

    def ends(self) -> tuple[Tensor, Tensor]:
        """As `Bounds.ends`."""
        return linear.logits(self.trace)

    def margins(self, labels: Tensor) -> Tensor:
        """As `Bounds.margins`."""
        return linear.margins(self.trace, labels)


def _ibp(graph: LayerGraph, x: Tensor, eps: float | Tensor, clip: Clip, settings: Settings = PLAIN) -> Logits:
    return bound_logits(graph, x, eps, clip, rounding=settings.rounding)


def _crown_ibp(
    graph: LayerGraph, x: Tensor, eps: float | Tensor, clip: Clip, settings: Settings = PLAIN
) -> LinearBounds:
    trace = trace_bounds(graph, x, eps, clip, with_clean=False, rounding=settings.rounding)
    if len(trace.logits.shape) != 2:
        raise DataError(f"linear bounds need logits of shape (B, K), but the network's are {tuple(trace.logits.shape)}")
    return LinearBounds(trace)


# From a network, inputs (B, …), ε, the range of inputs and settings.
Method = Callable[[LayerGraph, Tensor, float | Tensor, Clip, Settings], Bounds]
METHODS: dict[str, Method] = {"ibp": _ibp, "crown-ibp": _crown_ibp}


def method_named(name: str) -> Method:
    """The method of that name. Raises MethodError."""
    if name not in METHODS:
        raise MethodError(f"bound method {name!r} is not known; choose from: {', '.join(METHODS)}")
    return METHODS[name]
