"""Branch and bound over the inputs: boxes of few inputs are split at the middle of one of them.

Each domain is a box. CROWN bounds all functions of all cases over it; the boxes at the
nonlinear layers are intersected with those of the domain that it is a part of. Where the
linear bounds show that only a part of a domain can violate a case, the rest is cut off
before the domain is split (`halfspaces`). The input that is split is the one whose width
moves a function's linear bound most (Wang et al. 2018, section 4.3, with coefficients of
linear bounds in place of gradients).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, Self

import torch
from torch import Tensor

from certtrain.bounds.box import Box, box_between
from certtrain.bounds.crown import intersected, intersection, tighten_by_crown
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.interval import LayerRecord, interval_pass
from certtrain.bounds.linear import Prefix, backsubstitute
from certtrain.bounds.rounding import UNIT64, Rounding
from certtrain.bounds.settings import Settings
from certtrain.bounds.trace import NONLINEAR
from certtrain.branching.alternation import Falsifies, Outcome
from certtrain.branching.domains import newest
from certtrain.branching.halfspaces import LinearFunctions, Remaining, open_cases, remaining, with_combinations
from certtrain.branching.tree import Cut, Path, Tree
from certtrain.runtime.deadline import NEVER, Deadline

FEW_INPUTS = 50  # inputs that can vary within the box; with more of them, splitting inputs is hopeless
MOST_BOXES = 1024  # in a batch
RETRY_BOXES = 2000  # times CHEAPER: a limit for proving the leaves of a batch again
CHEAPER = 10  # so many times the settings' `domains` may be bounded, since each costs much less than one of neurons
# A width counts at least so much of the largest coefficient, since a coefficient of zero need not stay so.
LEAST_SLOPE = 0.01
ABOVE_ZERO = torch.finfo(torch.float64).tiny  # all that is known of a bound above zero where parts were cut off

Ends = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class InputProblem:
    """To prove: over one box, in each case, the largest of its linear functions of the logits is above zero.

    graph: the network in float64. lower, upper: (1, …), the ends of the box. functions: (F, K), offsets: (F,), those of
    all cases. cases: (C, S), which functions each case has; a case with fewer than S repeats one.
    """

    graph: LayerGraph
    lower: Tensor
    upper: Tensor
    functions: Tensor
    offsets: Tensor
    cases: Tensor
    rounding: Rounding

    @classmethod
    def of(
        cls,
        graph: LayerGraph,
        lower: Tensor,
        upper: Tensor,
        cases: Sequence[tuple[Tensor, Tensor]],
        rounding: Rounding,
    ) -> "InputProblem":
        """The problem of several cases, each given by its functions (S, K) and offsets (S,)."""
        counts = [len(offsets) for _, offsets in cases]
        starts = torch.tensor([0, *counts[:-1]]).cumsum(0)
        places = torch.arange(max(counts)).expand(len(counts), -1)
        index = starts.unsqueeze(1) + torch.minimum(places, torch.tensor(counts).unsqueeze(1) - 1)
        functions, offsets = (torch.cat(parts) for parts in zip(*cases, strict=True))
        return cls(graph, lower, upper, functions, offsets, index.to(functions.device), rounding)

    @property
    def free_inputs(self) -> int:
        """How many inputs can vary within the box."""
        return int((self.lower < self.upper).sum())


class InputDomains(NamedTuple):
    """D boxes of inputs.

    lower, upper: (D, N), their ends. boxes: the ends (D, …) of the boxes at the nonlinear layers, in their order, from
    the domains that these are parts of. cases: (D, C), which cases are not excluded. bounds: (D,), by which domains are
    sorted. nodes: (D,), the domains' numbers in the tree.
    """

    lower: Tensor
    upper: Tensor
    boxes: tuple[Ends, ...]
    cases: Tensor
    bounds: Tensor
    nodes: Tensor

    @property
    def total(self) -> int:
        """The number of domains, D."""
        return len(self.nodes)

    def take(self, chosen: Tensor | slice) -> Self:
        """Some of the domains."""
        boxes = tuple((lower[chosen], upper[chosen]) for lower, upper in self.boxes)
        return type(self)(self.lower[chosen], self.upper[chosen], boxes, *(part[chosen] for part in self[3:]))

    @property
    def bytes(self) -> int:
        """The memory that the domains take."""
        parts = [*self[:2], *(end for ends in self.boxes for end in ends), *self[3:]]
        return sum(part.numel() * part.element_size() for part in parts)


def joined(parts: Sequence[InputDomains]) -> InputDomains:
    """All domains of the parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    boxes = tuple(
        (torch.cat([lower for lower, _ in each]), torch.cat([upper for _, upper in each]))
        for each in zip(*(part.boxes for part in parts), strict=True)
    )
    return InputDomains(
        torch.cat([part.lower for part in parts]),
        torch.cat([part.upper for part in parts]),
        boxes,
        *(torch.cat(each) for each in zip(*(part[3:] for part in parts), strict=True)),
    )


class Bounded(NamedTuple):
    """Domains with their linear bounds, and the boxes at their nonlinear layers."""

    linear: LinearFunctions
    boxes: tuple[Ends, ...]


@torch.no_grad()
def bounded(problem: InputProblem, domains: InputDomains, settings: Settings) -> Bounded:
    """CROWN's bounds of all functions over the domains, all rounding included."""
    kept = list[Ends]()
    before, tighter = iter(domains.boxes), intersected(tighten_by_crown(settings), settings)

    def tighten(layer: torch.nn.Module, records: list[LayerRecord], start: Box, box: Box) -> Box:
        if domains.boxes:
            box = intersection(box, box_between(*next(before)), settings)
        found = tighter(layer, records, start, box)
        kept.append((found.lower, found.upper))
        return found

    shape = problem.lower.shape[1:]
    box = box_between(domains.lower.view(-1, *shape), domains.upper.view(-1, *shape))
    passed = interval_pass(problem.graph, box, boxes_at=NONLINEAR, rounding=problem.rounding, tighten=tighten)
    coefficients: dict[int, Tensor] = {}
    found = backsubstitute(
        Prefix(passed.records, passed.start),
        problem.functions.expand(domains.total, -1, -1),
        rounding=problem.rounding,
        on_coefficients=lambda value, given: coefficients.update({0: given} if value == 0 else {}),
    )
    bounds = found + problem.offsets - 4 * UNIT64 * (found.abs() + problem.offsets.abs())  # the rounding of this sum
    return Bounded(
        LinearFunctions.of(
            domains.lower, domains.upper, bounds[:, problem.cases], coefficients[0].flatten(2)[:, problem.cases]
        ),
        tuple(kept),
    )


class InputSearch:
    """The search for one problem: the open domains `waiting`.

    With `keep_tree` every split is kept in `tree`, and nothing is cut off, so that the leaves can be proved again.
    """

    def __init__(
        self,
        problem: InputProblem,
        settings: Settings,
        falsifies: Falsifies = lambda inputs: False,
        *,
        keep_tree: bool = False,
    ) -> None:
        self.problem, self.settings, self.falsifies = problem, settings, falsifies
        self.tree = Tree() if keep_tree else None
        self.waiting = [self.first(problem.lower.flatten(1), problem.upper.flatten(1))]
        self.least, self.domains, self.closed = torch.inf, 0, 0
        self.falsified, self.unsplittable = False, False
        self.most = MOST_BOXES

    def first(self, lower: Tensor, upper: Tensor) -> InputDomains:
        """Domains with these ends (D, N), of which nothing is known."""
        count = len(lower)
        cases = torch.ones(count, len(self.problem.cases), dtype=torch.bool, device=lower.device)
        bounds = lower.new_full((count,), -torch.inf)
        return InputDomains(lower, upper, (), cases, bounds, torch.zeros_like(bounds, dtype=torch.long))

    @property
    def ended(self) -> bool:
        """As `BranchingSearch.ended`."""
        held = sum(part.bytes for part in self.waiting)
        limited = self.domains >= CHEAPER * self.settings.domains or held > self.settings.memory
        return not self.waiting or self.falsified or self.unsplittable or limited

    def run(self, until: Deadline = NEVER) -> Outcome:
        """As `BranchingSearch.run`."""
        while not (self.ended or until.over() or self.settings.deadline.over()):
            self._step(joined(list(newest(self.waiting, self.most))))
            self._report()
        left = sum(part.total for part in self.waiting)
        return Outcome(self.least, self.tree or Tree(), left, self.domains, self.falsified)

    def _report(self) -> None:
        bounds = (float(part.bounds.min()) for part in self.waiting)
        self.settings.on_domains(self.closed, sum(part.total for part in self.waiting), min(bounds, default=self.least))

    def _step(self, batch: InputDomains) -> None:
        found = bounded(self.problem, batch, self.settings)
        if self.settings.deadline.over():  # bounds may be missing
            self.waiting.append(batch)
            return
        self.domains += batch.total
        linear = with_combinations(found.linear)
        left = self._left(linear, batch.cases)
        some = left.cases.any(1)
        self.closed += int((~some).sum())
        self._closed(linear, batch.cases & ~left.cases)
        if bool(some.any()):
            open_part = batch._replace(lower=left.lower, upper=left.upper, boxes=found.boxes, cases=left.cases)
            self._split(open_part.take(some), linear.take(some))

    def _left(self, linear: LinearFunctions, cases: Tensor) -> Remaining:
        """What is left to prove; with a tree, domains stay as they are."""
        if self.tree is None:
            return remaining(linear, cases)
        return Remaining(linear.lower, linear.upper, cases & open_cases(linear))

    def _closed(self, linear: LinearFunctions, cases: Tensor) -> None:
        """Take note of the bounds of the cases (D, C) that are closed now."""
        if bool(cases.any()):
            bound = ABOVE_ZERO if self.tree is None else float(linear.bounds.amax(2)[cases].min())
            self.least = min(self.least, bound)

    def _split(self, domains: InputDomains, linear: LinearFunctions) -> None:
        if self.falsifies(_promising(domains, linear).view(-1, *self.problem.lower.shape[1:])):
            self.falsified = True
            return
        column = split_inputs(domains, linear).unsqueeze(1)
        lower, upper = domains.lower.gather(1, column), domains.upper.gather(1, column)
        middle = (lower / 2 + upper / 2).clamp(lower, upper)
        if bool(((middle <= lower) | (middle >= upper)).any()):  # a box that no float64 lies inside
            self.waiting.append(domains)
            self.unsplittable = True
            return
        nodes = self._nodes(domains.nodes, column, middle)
        bounds = linear.bounds.amax(2).masked_fill(~domains.cases, torch.inf).amin(1)
        halves = (
            domains._replace(lower=domains.lower.scatter(1, column, middle), bounds=bounds, nodes=nodes[0]),
            domains._replace(upper=domains.upper.scatter(1, column, middle), bounds=bounds, nodes=nodes[1]),
        )
        both = joined(halves)
        self.waiting.append(both.take(both.bounds.argsort(descending=True, stable=True)))

    def _nodes(self, nodes: Tensor, inputs: Tensor, values: Tensor) -> Tensor:
        """The numbers (2, D) of the two parts of each domain."""
        if self.tree is None:
            return nodes.expand(2, -1)
        each = zip(nodes.tolist(), inputs.flatten().tolist(), values.flatten().tolist(), strict=True)
        return torch.tensor([self.tree.split(node, Cut(number, value)) for node, number, value in each]).T.to(nodes)


def unproved_boxes(problem: InputProblem, leaves: Iterable[Path], settings: Settings) -> int:
    """How many leaves cannot be proved, each from its box alone. Raises ValueError for a split that is not possible.

    A leaf whose bound is not above zero at first may be split further.
    """
    paths, unproved, search = iter(leaves), 0, InputSearch(problem, settings, keep_tree=True)
    while part := list(islice(paths, search.most)):
        ends = [_ends(problem, path) for path in part]
        left = search.first(torch.stack([lower for lower, _ in ends]), torch.stack([upper for _, upper in ends]))
        linear = bounded(problem, left, settings).linear
        left = left.take(open_cases(with_combinations(linear)).any(1))
        again = InputSearch(problem, replace(settings, domains=RETRY_BOXES), keep_tree=True)
        again.waiting = [left] if left.total else []
        unproved += 0 if not left.total or again.run().proved else left.total
    return unproved


def _ends(problem: InputProblem, path: Path) -> Ends:
    """The ends (N,) of a leaf's box."""
    lower, upper = problem.lower.flatten().clone(), problem.upper.flatten().clone()
    for split, side in path:
        if not isinstance(split, Cut):
            raise ValueError("it splits a neuron after an input on the same path")
        if not (split.input < len(lower) and lower[split.input] < split.value < upper[split.input]):
            raise ValueError(f"input {split.input} cannot be cut at {split.value} in its domain")
        (lower if side > 0 else upper)[split.input] = split.value
    return lower, upper


def split_inputs(domains: InputDomains, linear: LinearFunctions) -> Tensor:
    """The input (D,) to split in each domain: the one whose width moves the linear bound of an open case most."""
    slopes = linear.coefficients.abs()
    slopes = slopes + LEAST_SLOPE * slopes.amax(3, keepdim=True)
    widths = (domains.upper - domains.lower)[:, None, None]
    moves = (slopes * widths).amax(2).masked_fill(~domains.cases.unsqueeze(2), 0.0).amax(1)
    # Where all coefficients are zero, the widest.
    return torch.where(moves.amax(1, keepdim=True) > 0, moves, widths[:, 0, 0]).argmax(1)


def _promising(domains: InputDomains, linear: LinearFunctions) -> Tensor:
    """Inputs where counterexamples may be: the middles, and where the open cases' linear bounds are smallest."""
    lower, upper = domains.lower[:, None], domains.upper[:, None]
    corners = torch.where(linear.coefficients[:, :, -1] > 0, lower, upper)  # of the combinations
    chosen = corners[domains.cases]
    return torch.cat([(domains.lower + domains.upper) / 2, chosen])
