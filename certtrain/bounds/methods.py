"""The bound methods by name, from cheap to dear."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from certtrain.bounds import linear
from certtrain.bounds.alpha import by_alpha, tightened_from
from certtrain.bounds.chunks import dense
from certtrain.bounds.crown import Follow, by_crown, tightened
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.settings import DEFAULT, Settings
from certtrain.bounds.trace import BoundTrace, Clip, bound_logits, trace_bounds
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


class Method(Protocol):
    """From a network, inputs (B, …), ε, the range of inputs and what the user has chosen to bounds."""

    def __call__(
        self, graph: LayerGraph, x: Tensor, eps: float | Tensor, clip: Clip, settings: Settings = ..., /
    ) -> Bounds: ...


@dataclass(frozen=True)
class LinearBounds:
    """Linear bounds from the boxes of a trace; each question is a pass back through the network."""

    trace: BoundTrace
    follow: Follow

    @property
    def shape(self) -> torch.Size:
        """(B, K)."""
        return self.trace.logits.shape

    def ends(self) -> tuple[Tensor, Tensor]:
        """As `Bounds.ends`."""
        each = linear.logit_functions(self.trace)
        return self._below(each), -self._below(-each)

    def margins(self, labels: Tensor) -> Tensor:
        """As `Bounds.margins`."""
        return self._below(linear.margin_functions(self.trace, labels))

    def _below(self, functions: Tensor) -> Tensor:
        batch, count, size = functions.shape
        prefix = linear.Prefix(self.trace.records, self.trace.start)
        return self.follow(prefix, dense(functions), (batch, count), size)


class Task(NamedTuple):
    """What a method is asked."""

    graph: LayerGraph
    x: Tensor
    eps: float | Tensor
    clip: Clip
    settings: Settings


@dataclass(frozen=True)
class AlphaBounds:
    """Bounds by searched slopes, from the boxes of CROWN; each is the largest of theirs and all cheaper methods'."""

    task: Task
    simple: LinearBounds
    crown: LinearBounds

    @property
    def shape(self) -> torch.Size:
        """(B, K)."""
        return self.crown.shape

    @property
    def _cheaper(self) -> tuple[Bounds, ...]:
        return self.simple.trace.logits, self.simple, self.crown

    @torch.no_grad()
    def ends(self) -> tuple[Tensor, Tensor]:
        """As `Bounds.ends`."""
        searched = self._searched(torch.arange(self.shape[0], device=self.task.x.device), torch.inf)
        return Tightest((*self._cheaper, searched)).ends()

    @torch.no_grad()
    def margins(self, labels: Tensor) -> Tensor:
        """As `Bounds.margins`; with `early_stop`, only examples that nothing cheaper certifies are searched.

        After the deadline none is.
        """
        known = Tightest(self._cheaper).margins(labels)
        stop = self.task.settings.early_stop
        certified = (known > 0).scatter(1, labels.unsqueeze(1), True).all(1)
        chosen = (~certified if stop else torch.ones_like(certified)).nonzero().squeeze(1)
        if len(chosen) and not self.task.settings.deadline.over():
            searched = self._searched(chosen, 0.0 if stop else torch.inf)
            known[chosen] = tightest([known[chosen], searched.margins(labels[chosen])])
        return known

    def _searched(self, chosen: Tensor, enough: float) -> LinearBounds:
        graph, x, eps, clip, settings = self.task
        boxes = (record.box.examples(chosen) for record in self.crown.trace.records if record.box is not None)
        narrow = tightened_from(boxes, settings)
        trace = trace_bounds(graph, x[chosen], eps, clip, with_clean=False, rounding=settings.rounding, tighten=narrow)
        return LinearBounds(trace, by_alpha(settings, enough=enough))


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


def tightest(bounds: Sequence[Tensor]) -> Tensor:
    """The largest of several lower bounds of the same values; what is NaN bounds nothing, unless all are."""
    return reduce(torch.fmax, bounds)


def _ibp(graph: LayerGraph, x: Tensor, eps: float | Tensor, clip: Clip, settings: Settings = DEFAULT) -> Bounds:
    return bound_logits(graph, x, eps, clip, rounding=settings.rounding)


def _crown_ibp(
    graph: LayerGraph, x: Tensor, eps: float | Tensor, clip: Clip, settings: Settings = DEFAULT
) -> LinearBounds:
    trace = trace_bounds(graph, x, eps, clip, with_clean=False, rounding=settings.rounding)
    _check_logits(trace)
    return LinearBounds(trace, by_crown(settings))


@torch.no_grad()
def _crown(graph: LayerGraph, x: Tensor, eps: float | Tensor, clip: Clip, settings: Settings = DEFAULT) -> LinearBounds:
    trace = trace_bounds(graph, x, eps, clip, with_clean=False, rounding=settings.rounding, tighten=tightened(settings))
    _check_logits(trace)
    return LinearBounds(trace, torch.no_grad()(by_crown(settings)))


def _alpha_crown(
    graph: LayerGraph, x: Tensor, eps: float | Tensor, clip: Clip, settings: Settings = DEFAULT
) -> AlphaBounds:
    with torch.no_grad():
        simple = _crown_ibp(graph, x, eps, clip, settings)
        crown = _crown(graph, x, eps, clip, settings)
    return AlphaBounds(Task(graph, x, eps, clip, settings), simple, crown)


def up_to(name: str) -> Method:
    """The method of that name together with all cheaper ones, the tightest of their bounds. Raises MethodError.

    Linear bounds are not always tighter than intervals: what a dearer method leaves open, a cheaper one may prove.
    """
    method_named(name)
    names = list(METHODS)
    chosen = [METHODS[n] for n in names[: names.index(name) + 1]]
    if len(chosen) == 1 or name == "alpha-crown":  # which has the cheaper ones in it
        return chosen[-1]

    def all_of_them(
        graph: LayerGraph, x: Tensor, eps: float | Tensor, clip: Clip, settings: Settings = DEFAULT
    ) -> Bounds:
        return Tightest(tuple(method(graph, x, eps, clip, settings) for method in chosen))

    return all_of_them


def _check_logits(trace: BoundTrace) -> None:
    if len(trace.logits.shape) != 2:
        raise DataError(f"linear bounds need logits of shape (B, K), but the network's are {tuple(trace.logits.shape)}")


METHODS: dict[str, Method] = {"ibp": _ibp, "crown-ibp": _crown_ibp, "crown": _crown, "alpha-crown": _alpha_crown}


# Those that search: where they end can hang on the last digit of a sum, and so on the machine.
SEARCHED = ("alpha-crown",)

# Those that a loss can be made of: one pass, with gradients.
IN_TRAINING = ("ibp", "crown-ibp")


def method_named(name: str) -> Method:
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
