"""CROWN's bounds of boxes of inputs, which start from what is known of the boxes that these are parts of."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.box import Box, box_between
from certtrain.bounds.crown import crown_lower_bounds, ordered_box, tighter_ends
from certtrain.bounds.interval import LayerRecord, interval_pass
from certtrain.bounds.linear import LinesOf, Prefix, backsubstitute
from certtrain.bounds.rounding import UNIT64
from certtrain.bounds.settings import Settings
from certtrain.bounds.trace import NONLINEAR
from certtrain.branching.halfspaces import LinearFunctions
from certtrain.branching.input_domains import Ends, InputDomains, InputProblem
from certtrain.branching.propagation import NeuronLimits, flat_lines, limits, neurons_of, rectifiers, tighter_limits

KEPT_ENTRIES = 2**15  # coefficients of a domain that are kept for limits; a batch has about a thousand domains


class Bounded(NamedTuple):
    """Domains with their linear bounds, and the boxes at their nonlinear layers.

    empty: (D,), the domains in which no input violates a case, since what is known of one layer is a contradiction.
    limits: what follows where a case is violated, by the place of the layer among the boxes; empty unless asked for.
    coefficients: Λ (D, F, …) of all functions after each rectifier with limits, by the number of the value.
    """

    linear: LinearFunctions
    boxes: tuple[Ends, ...]
    empty: Tensor
    limits: dict[int, NeuronLimits]
    coefficients: dict[int, Tensor]


class Intersection:
    """The boxes of a pass, intersected with those of the domains that these are parts of.

    The latter hold only for inputs that violate a case. Where there are none, they may contradict the others, and one
    another, so that a lower bound is above an upper one.
    """

    def __init__(self, domains: InputDomains, settings: Settings) -> None:
        self.known, self.settings, self.kept = iter(domains.boxes), settings, list[Ends]()
        self.lower_bounds = crown_lower_bounds(settings)
        self.empty = torch.zeros_like(domains.nodes, dtype=torch.bool)

    def tighten(self, layer: nn.Module, records: list[LayerRecord], start: Box, box: Box) -> Box:
        """CROWN's box of a layer, intersected with the interval and with what is known."""
        if (known := next(self.known, None)) is not None:
            box = self._both(box, known)
        prefix = Prefix(records, start)
        found = self._both(box, tighter_ends(layer, prefix, box, self.lower_bounds, self.settings))
        self.kept.append((found.lower, found.upper))
        return found

    def _both(self, box: Box, ends: Ends) -> Box:
        """The intersection; where it is empty, the domain is empty and `box` stays."""
        lower, upper = torch.maximum(box.lower, ends[0]), torch.minimum(box.upper, ends[1])
        nothing = (lower > upper).flatten(1).any(1)
        self.empty = self.empty | nothing
        rows = nothing.view(-1, *[1] * (lower.dim() - 1))
        lower, upper = torch.where(rows, box.lower, lower), torch.where(rows, box.upper, upper)
        return ordered_box(lower, upper, box, self.settings)


@torch.no_grad()
def bounded(problem: InputProblem, domains: InputDomains, settings: Settings, *, with_limits: bool = False) -> Bounded:
    """CROWN's bounds of all functions over the domains, all rounding included."""
    shape, found = problem.lower.shape[1:], Intersection(domains, settings)
    box = box_between(domains.lower.view(-1, *shape), domains.upper.view(-1, *shape))
    passed = interval_pass(problem.graph, box, boxes_at=NONLINEAR, rounding=problem.rounding, tighten=found.tighten)
    prefix = Prefix(passed.records, passed.start)
    limited = with_limits and problem.functions.shape[0] * neurons_of(prefix) <= KEPT_ENTRIES
    bounds, coefficients = _functions(problem, prefix, {}, limited)
    linear = LinearFunctions.of(
        domains.lower, domains.upper, bounds[:, problem.cases], coefficients[0].flatten(2)[:, problem.cases]
    )
    each = dict(_limits(problem, prefix, bounds, coefficients)) if limited else {}
    return Bounded(linear, tuple(found.kept), found.empty, each, coefficients)


def _functions(
    problem: InputProblem, prefix: Prefix, lines: LinesOf, at_rectifiers: bool
) -> tuple[Tensor, dict[int, Tensor]]:
    """The bounds (D, F) of all functions, and Λ at the input, and after rectifiers if wanted."""
    coefficients: dict[int, Tensor] = {}
    wanted = {0, *(each.number + 1 for each in rectifiers(prefix) if at_rectifiers)}

    def keep(value: int, found: Tensor) -> None:
        coefficients.update({value: found} if value in wanted else {})

    functions = problem.functions.expand(len(prefix.start.radius), -1, -1)
    found = backsubstitute(prefix, functions, lines=lines, rounding=problem.rounding, on_coefficients=keep)
    # The last term is the rounding of this sum.
    bounds = found + problem.offsets - 4 * UNIT64 * (found.abs() + problem.offsets.abs())
    return bounds, coefficients


def _limits(
    problem: InputProblem, prefix: Prefix, bounds: Tensor, coefficients: dict[int, Tensor]
) -> Iterator[tuple[int, NeuronLimits]]:
    """The limits by CROWN's lines and by flat ones, whichever are tighter."""
    flat = flat_lines(prefix)
    others = limits(prefix, flat, *_functions(problem, prefix, flat, True), problem.cases)
    for place, found in limits(prefix, {}, bounds, coefficients, problem.cases).items():
        yield place, tighter_limits(found, others[place])
