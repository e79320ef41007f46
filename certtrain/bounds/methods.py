"""The bound methods by name; each is tighter on most networks, and slower, than those before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from certtrain.bounds import linear
from certtrain.bounds.alpha import alpha_lower_bounds, tighten_by_alpha
from certtrain.bounds.box import Box
from certtrain.bounds.chunks import dense
from certtrain.bounds.crown import LowerBounds, crown_lower_bounds, tighten_by_crown
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.interval import Tighten
from certtrain.bounds.settings import DEFAULT, Settings
from certtrain.bounds.trace import BoundTrace, bound_logits, trace_bounds
from certtrain.errors import DataError, MethodError


class Bounds(Protocol):
    """The bounds of one method for a batch of boxes."""

    @property
    def shape(self) -> torch.Size:
        """(B, K)."""

    def ends(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds (B, K) of the logits."""

    def margins(self, labels: Tensor) -> Tensor:
        """Lower bounds (B, K) of logit[y] − logit[j] for the classes y in `labels` (B,); column y is 0."""

    def lower_bounds_of(self, functions: Tensor) -> Tensor:
        """Lower bounds (B, S) of `functions` (B, S, K), linear in the logits."""


class BoundMethod(Protocol):
    """From a network, boxes (B, …) of its inputs, and the user's settings, to bounds."""

    def __call__(self, graph: LayerGraph, box: Box, settings: Settings = ..., /) -> Bounds: ...


@dataclass(frozen=True)
class LinearBounds:
    """Linear bounds by backsubstitution, with relaxations over the boxes of a trace."""

    trace: BoundTrace
    lower_bounds: LowerBounds

    @property
    def shape(self) -> torch.Size:
        """(B, K)."""
        return self.trace.logits.shape

    def ends(self) -> tuple[Tensor, Tensor]:
        """As `Bounds.ends`."""
        each = linear.logit_functions(self.trace)
        return self.lower_bounds_of(each), -self.lower_bounds_of(-each)

    def margins(self, labels: Tensor) -> Tensor:
        """As `Bounds.margins`."""
        return self.lower_bounds_of(linear.margin_functions(self.trace, labels))

    def lower_bounds_of(self, functions: Tensor) -> Tensor:
        """As `Bounds.lower_bounds_of`."""
        batch, count, size = functions.shape
        prefix = linear.Prefix(self.trace.records, self.trace.start)
        return self.lower_bounds(prefix, dense(functions), (batch, count), size)


@dataclass(frozen=True)
class AlphaBounds:
    """Bounds by optimised slopes, over the boxes of CROWN, or those of a faster method where these are tighter."""

    graph: LayerGraph
    box: Box
    settings: Settings
    crown_ibp: LinearBounds
    crown: LinearBounds

    @property
    def shape(self) -> torch.Size:
        """(B, K)."""
        return self.crown.shape

    @property
    def _faster(self) -> tuple[Bounds, ...]:
        return self.crown_ibp.trace.logits, self.crown_ibp, self.crown

    @torch.no_grad()
    def ends(self) -> tuple[Tensor, Tensor]:
        """As `Bounds.ends`."""
        return self._all().ends()

    @torch.no_grad()
    def lower_bounds_of(self, functions: Tensor) -> Tensor:
        """As `Bounds.lower_bounds_of`."""
        return self._all().lower_bounds_of(functions)

    @torch.no_grad()
    def margins(self, labels: Tensor) -> Tensor:
        """As `Bounds.margins`; slopes are optimised for all examples.

        With `early_stop`, only for those that no faster method certifies; after the deadline, for none.
        """
        known = Tightest(self._faster).margins(labels)
        stop = self.settings.early_stop
        certified = (known > 0).scatter(1, labels.unsqueeze(1), True).all(1)
        chosen = (~certified if stop else torch.ones_like(certified)).nonzero().squeeze(1)
        if len(chosen) and not self.settings.deadline.over():
            optimised = self._optimised(chosen, 0.0 if stop else torch.inf)
            known[chosen] = tightest([known[chosen], optimised.margins(labels[chosen])])
        return known

    def _all(self) -> "Tightest":
        examples = torch.arange(self.shape[0], device=self.box.centre.device)
        return Tightest((*self._faster, self._optimised(examples, torch.inf)))

    def _optimised(self, chosen: Tensor, stop_above: float) -> LinearBounds:
        boxes = (record.box.examples(chosen) for record in self.crown.trace.records if record.box is not None)
        trace = _trace(self.graph, self.box.examples(chosen), self.settings, tighten_by_alpha(boxes, self.settings))
        return LinearBounds(trace, alpha_lower_bounds(self.settings, stop_above=stop_above))


@dataclass(frozen=True)
class Tightest:
    """The tightest of several methods' bounds, value by value."""

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

    def lower_bounds_of(self, functions: Tensor) -> Tensor:
        """As `Bounds.lower_bounds_of`."""
        return tightest([part.lower_bounds_of(functions) for part in self.parts])


def tightest(bounds: Sequence[Tensor]) -> Tensor:
    """The largest of several lower bounds of the same values. NaN is ignored, unless all are NaN."""
    return reduce(torch.fmax, bounds)


def _trace(graph: LayerGraph, box: Box, settings: Settings, tighten: Tighten | None = None) -> BoundTrace:
    trace = trace_bounds(graph, box, rounding=settings.rounding, tighten=tighten)
    if len(trace.logits.shape) != 2:
        raise DataError(f"linear bounds need logits of shape (B, K), but the network's are {tuple(trace.logits.shape)}")
    return trace


def _ibp(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> Bounds:
    return bound_logits(graph, box, rounding=settings.rounding)


def _crown_ibp(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> LinearBounds:
    return LinearBounds(_trace(graph, box, settings), crown_lower_bounds(settings))


def crown_ibp_and_intervals(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> "Tightest":
    """The tighter of CROWN-IBP and the interval bounds of the same trace."""
    linear_bounds = _crown_ibp(graph, box, settings)
    return Tightest((linear_bounds.trace.logits, linear_bounds))


@torch.no_grad()
def _crown(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> LinearBounds:
    return LinearBounds(
        _trace(graph, box, settings, tighten_by_crown(settings)), torch.no_grad()(crown_lower_bounds(settings))
    )


def _alpha_crown(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> AlphaBounds:
    with torch.no_grad():
        crown_ibp, crown = _crown_ibp(graph, box, settings), _crown(graph, box, settings)
    return AlphaBounds(graph, box, settings, crown_ibp, crown)


def up_to(name: str) -> BoundMethod:
    """The tightest bounds of the method of that name and all before it. Raises MethodError.

    Linear bounds are not always tighter than intervals: a faster method may prove what a slower one leaves open.
    """
    method_named(name)
    names = list(METHODS)
    chosen = [METHODS[n] for n in names[: names.index(name) + 1]]
    if len(chosen) == 1 or name == "alpha-crown":  # it includes the others
        return chosen[-1]

    def combined(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> Bounds:
        return Tightest(tuple(method(graph, box, settings) for method in chosen))

    return combined


METHODS: dict[str, BoundMethod] = {"ibp": _ibp, "crown-ibp": _crown_ibp, "crown": _crown, "alpha-crown": _alpha_crown}


# Those that optimise: their results can depend on the last digit of a sum, and so on the machine.
SEARCH_METHODS = ("alpha-crown",)


def method_named(name: str) -> BoundMethod:
    """The method of that name. Raises MethodError."""
    if name not in METHODS:
        raise MethodError(f"bound method {name!r} is not known; choose from: {', '.join(METHODS)}")
    return METHODS[name]
