"""The bound methods by name; each is tighter than those before it on most networks, and slower."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from certtrain.bounds import linear
from certtrain.bounds.alpha import by_alpha, tighten_by_alpha
from certtrain.bounds.box import Box
from certtrain.bounds.chunks import dense
from certtrain.bounds.crown import LowerBounds, by_crown, tighten_by_crown
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.interval import Tighten
from certtrain.bounds.settings import DEFAULT, Settings
from certtrain.bounds.trace import BoundTrace, bound_logits, trace_bounds
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

    def below(self, functions: Tensor) -> Tensor:
        """Lower bounds (B, S) of `functions` (B, S, K), linear in the logits."""


class BoundMethod(Protocol):
    """From a network, boxes (B, …) of its inputs and what the user has chosen to bounds."""

    def __call__(self, graph: LayerGraph, box: Box, settings: Settings = ..., /) -> Bounds: ...


@dataclass(frozen=True)
class LinearBounds:
    """Linear bounds from the boxes of a trace, by backsubstitution for each call."""

    trace: BoundTrace
    lower_bounds: LowerBounds

    @property
    def shape(self) -> torch.Size:
        """(B, K)."""
        return self.trace.logits.shape

    def ends(self) -> tuple[Tensor, Tensor]:
        """As `Bounds.ends`."""
        each = linear.logit_functions(self.trace)
        return self.below(each), -self.below(-each)

    def margins(self, labels: Tensor) -> Tensor:
        """As `Bounds.margins`."""
        return self.below(linear.margin_functions(self.trace, labels))

    def below(self, functions: Tensor) -> Tensor:
        """As `Bounds.below`."""
        batch, count, size = functions.shape
        prefix = linear.Prefix(self.trace.records, self.trace.start)
        return self.lower_bounds(prefix, dense(functions), (batch, count), size)


@dataclass(frozen=True)
class AlphaBounds:
    """Bounds by searched slopes, from the boxes of CROWN; each is the largest of theirs and all faster methods'."""

    graph: LayerGraph
    box: Box
    settings: Settings
    simple: LinearBounds
    crown: LinearBounds

    @property
    def shape(self) -> torch.Size:
        """(B, K)."""
        return self.crown.shape

    @property
    def _faster(self) -> tuple[Bounds, ...]:
        return self.simple.trace.logits, self.simple, self.crown

    @torch.no_grad()
    def ends(self) -> tuple[Tensor, Tensor]:
        """As `Bounds.ends`."""
        return self._all().ends()

    @torch.no_grad()
    def below(self, functions: Tensor) -> Tensor:
        """As `Bounds.below`."""
        return self._all().below(functions)

    @torch.no_grad()
    def margins(self, labels: Tensor) -> Tensor:
        """As `Bounds.margins`; with `early_stop`, only examples that no faster method certifies are searched.

        After the deadline none is.
        """
        known = Tightest(self._faster).margins(labels)
        stop = self.settings.early_stop
        certified = (known > 0).scatter(1, labels.unsqueeze(1), True).all(1)
        chosen = (~certified if stop else torch.ones_like(certified)).nonzero().squeeze(1)
        if len(chosen) and not self.settings.deadline.over():
            searched = self._searched(chosen, 0.0 if stop else torch.inf)
            known[chosen] = tightest([known[chosen], searched.margins(labels[chosen])])
        return known

    def _all(self) -> "Tightest":
        everything = torch.arange(self.shape[0], device=self.box.centre.device)
        return Tightest((*self._faster, self._searched(everything, torch.inf)))

    def _searched(self, chosen: Tensor, enough: float) -> LinearBounds:
        boxes = (record.box.examples(chosen) for record in self.crown.trace.records if record.box is not None)
        trace = _trace(self.graph, self.box.examples(chosen), self.settings, tighten_by_alpha(boxes, self.settings))
        return LinearBounds(trace, by_alpha(self.settings, enough=enough))


@dataclass(frozen=True)
class Tightest:
    """The tighter of several methods' bounds, value by value."""

    parts: tuple[Bounds, ...]

    @property
    def shape(self) -> torch.Size:
        """(B, K)."""
        return self.parts[0].shape

    def ends(self) -> tuple[Tensor, Tensor]:
        """As `Bounds.ends`."""
        ends = [part.ends() for part in self.parts]
        return tightest([lower for lower, _ in ends]), -tightest([-upper for _, upper in ends])

    def margins(self, labels: Tensor) -> Tensor:
        """As `Bounds.margins`."""
        return tightest([part.margins(labels) for part in self.parts])

    def below(self, functions: Tensor) -> Tensor:
        """As `Bounds.below`."""
        return tightest([part.below(functions) for part in self.parts])


def tightest(bounds: Sequence[Tensor]) -> Tensor:
    """The largest of several lower bounds of the same values; what is NaN bounds nothing, unless all are."""
    return reduce(torch.fmax, bounds)


def _trace(graph: LayerGraph, box: Box, settings: Settings, tighten: Tighten | None = None) -> BoundTrace:
    trace = trace_bounds(graph, box, rounding=settings.rounding, tighten=tighten)
    if len(trace.logits.shape) != 2:
        raise DataError(f"linear bounds need logits of shape (B, K), but the network's are {tuple(trace.logits.shape)}")
    return trace


def _ibp(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> Bounds:
    return bound_logits(graph, box, rounding=settings.rounding)


def _crown_ibp(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> LinearBounds:
    return LinearBounds(_trace(graph, box, settings), by_crown(settings))


def crown_ibp_and_intervals(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> "Tightest":
    """CROWN-IBP with the interval bounds of its own trace, the tighter of the two."""
    linear_bounds = _crown_ibp(graph, box, settings)
    return Tightest((linear_bounds.trace.logits, linear_bounds))


@torch.no_grad()
def _crown(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> LinearBounds:
    return LinearBounds(_trace(graph, box, settings, tighten_by_crown(settings)), torch.no_grad()(by_crown(settings)))


def _alpha_crown(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> AlphaBounds:
    with torch.no_grad():
        simple, crown = _crown_ibp(graph, box, settings), _crown(graph, box, settings)
    return AlphaBounds(graph, box, settings, simple, crown)


def up_to(name: str) -> BoundMethod:
    """The method of that name together with all before it, the tightest of their bounds. Raises MethodError.

    Linear bounds are not always tighter than intervals: what a slower method leaves open, a faster one may prove.
    """
    method_named(name)
    names = list(METHODS)
    chosen = [METHODS[n] for n in names[: names.index(name) + 1]]
    if len(chosen) == 1 or name == "alpha-crown":  # which has the others in it
        return chosen[-1]

    def all_of_them(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> Bounds:
        return Tightest(tuple(method(graph, box, settings) for method in chosen))

    return all_of_them


METHODS: dict[str, BoundMethod] = {"ibp": _ibp, "crown-ibp": _crown_ibp, "crown": _crown, "alpha-crown": _alpha_crown}


# Those that search: where they end can hang on the last digit of a sum, and so on the machine.
SEARCHED = ("alpha-crown",)

# Those that a loss can be made of: one pass, with gradients.
IN_TRAINING = ("ibp", "crown-ibp")


def method_named(name: str) -> BoundMethod:
    """The method of that name. Raises MethodError."""
    _check_name(name, tuple(METHODS))
    return METHODS[name]


def check_training_method(name: str) -> None:
    """Raise MethodError unless there is a method of that name to train with."""
    _check_name(name, IN_TRAINING)


def _check_name(name: str, known: tuple[str, ...]) -> None:
    if name in METHODS and name not in known:
        raise MethodError(f"bound method {name!r} is not for training; choose from: {', '.join(known)}")
    if name not in known:
        raise MethodError(f"bound method {name!r} is not known; choose from: {', '.join(known)}")
