"""Branch and bound over the inputs: boxes of few inputs are split at the middle of one of them.

Each domain is a box. CROWN bounds all functions of all cases over it; the boxes at the
nonlinear layers are intersected with those of the domain that it is a part of. Where the
bounds show that only a part of a domain can violate a case, the rest is cut off before the
domain is split (`halfspaces`, `propagation`). The input that is split is the one whose width
moves a function's linear bound most (Wang et al. 2018, section 4.3, with coefficients of
linear bounds in place of gradients), and the gaps of the first relaxations.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from certtrain.bounds.box import box_between
from certtrain.bounds.interval import interval_pass
from certtrain.bounds.linear import Prefix
from certtrain.bounds.settings import Settings
from certtrain.bounds.trace import NONLINEAR
from certtrain.branching.alternation import Falsifies, Outcome
from certtrain.branching.domains import newest
from certtrain.branching.halfspaces import LinearFunctions, open_cases, remaining, with_combinations
from certtrain.branching.input_bounds import Bounded, bounded
from certtrain.branching.input_domains import Ends, InputDomains, InputProblem, joined
from certtrain.branching.propagation import AffineNeurons, affine_neurons, gap_shares, narrowed
from certtrain.branching.tree import Cut, Path, Tree
from certtrain.runtime.deadline import NEVER, Deadline

FEW_INPUTS = 50  # inputs that can vary within the box; with more of them, splitting inputs is hopeless
MORE_INPUTS = 128  # the same where conditions on the neurons are propagated to the inputs
MOST_BOXES = 1024  # in a batch
RETRY_BOXES = 2000  # times CHEAPER: a limit for proving the leaves of a batch again
CHEAPER = 10  # so many times the settings' `domains` may be bounded, since each costs much less than one of neurons
# A width counts at least so much of the largest coefficient, since a coefficient of zero need not stay so.
LEAST_SLOPE = 0.01
GAP_WEIGHT = 2.0  # a relaxation's gap is a mean over the domain, and a linear bound's mean is half of what it moves by
FIXED_WIDTH = 2.0**-20  # of the problem's box; a smaller input is as good as fixed
ABOVE_ZERO = torch.finfo(torch.float64).tiny  # all that is known of a bound above zero where parts were cut off


class InputSearch:
    """The search for one problem: the open domains `waiting`.

    With `keep_tree` every split is kept in `tree`, and nothing is cut off, so that the leaves can be proved again.
    Without it, a domain of which most is cut off is bounded again before it is split.
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
        found = bounded(self.problem, batch, self.settings, with_limits=self.tree is None)
        if self.settings.deadline.over():  # bounds may be missing
            self.waiting.append(batch)
            return
        self.domains += batch.total
        linear = with_combinations(found.linear)
        left = self._left(batch, found, linear)
        some = left.cases.any(1)
        self.closed += int((~some).sum())
        self._closed(linear, batch.cases & ~left.cases)
        again = some & self._halved(batch, left)
        if bool((split := some & ~again).any()):
            self._split(left.take(split), linear.take(split), self._gaps(found, left)[split])
        if bool(again.any()):
            self.waiting.append(left.take(again))

    def _left(self, batch: InputDomains, found: Bounded, linear: LinearFunctions) -> InputDomains:
        """What is left to prove of the domains; with a tree, their ends stay as they are."""
        if self.tree is not None:
            return batch._replace(boxes=found.boxes, cases=batch.cases & open_cases(linear))
        lower, upper, cases = remaining(linear, batch.cases & ~found.empty.unsqueeze(1))
        ends, deadline = (lower, upper), self.settings.deadline
        tighter = narrowed(found.limits, cases, found.boxes, self.affine, ends, deadline)
        cases = cases & ~tighter.empty.unsqueeze(1)
        return batch._replace(lower=tighter.lower, upper=tighter.upper, boxes=tighter.boxes, cases=cases)

    def _halved(self, before: InputDomains, left: InputDomains) -> Tensor:
        """The domains (D,) of which an input has at most half its width left, so that they are bounded again."""
        width, whole = before.upper - before.lower, (self.problem.upper - self.problem.lower).flatten(1)
        return ((left.upper - left.lower <= width / 2) & (width > FIXED_WIDTH * whole)).any(1)

    @cached_property
    def affine(self) -> list[AffineNeurons]:
        """The neurons whose conditions are propagated to the inputs; with a tree, none."""
        if self.tree is not None:
            return []
        ends = (self.problem.lower, self.problem.upper)
        box, rounding = box_between(*ends), self.problem.rounding
        passed = interval_pass(self.problem.graph, box, boxes_at=NONLINEAR, rounding=rounding)
        return affine_neurons(Prefix(passed.records, passed.start), ends, rounding)

    def _gaps(self, found: Bounded, left: InputDomains) -> Tensor:
        """The gaps (D, N) of all functions that a split of each input makes smaller."""
        known = [(neurons, found.coefficients.get(neurons.value)) for neurons in self.affine]
        shares = (gap_shares(n, each, left.lower, left.upper).sum(1) for n, each in known if each is not None)
        return sum(shares, torch.zeros_like(left.lower))

    def _closed(self, linear: LinearFunctions, cases: Tensor) -> None:
        """Take note of the bounds of the cases (D, C) that are closed now."""
        if bool(cases.any()):
            bound = ABOVE_ZERO if self.tree is None else float(linear.bounds.amax(2)[cases].min())
            self.least = min(self.least, bound)

    def _split(self, domains: InputDomains, linear: LinearFunctions, gaps: Tensor) -> None:
        if self.falsifies(_promising(domains, linear).view(-1, *self.problem.lower.shape[1:])):
            self.falsified = True
            return
        column = split_inputs(domains, linear, gaps).unsqueeze(1)
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


def split_inputs(domains: InputDomains, linear: LinearFunctions, gaps: Tensor) -> Tensor:
    """The input (D,) to split in each domain: the one whose width moves the bound of an open case most.

    gaps: (D, N), of relaxations that a split of each input makes smaller.
    """
    slopes = linear.coefficients.abs()
    slopes = slopes + LEAST_SLOPE * slopes.amax(3, keepdim=True)
    widths = (domains.upper - domains.lower)[:, None, None]
    moves = (slopes * widths).amax(2).masked_fill(~domains.cases.unsqueeze(2), 0.0).amax(1) + GAP_WEIGHT * gaps
    # Where all are zero, the widest.
    return torch.where(moves.amax(1, keepdim=True) > 0, moves, widths[:, 0, 0]).argmax(1)


def _promising(domains: InputDomains, linear: LinearFunctions) -> Tensor:
    """Inputs where counterexamples may be: the middles, and where the open cases' linear bounds are smallest."""
    lower, upper = domains.lower[:, None, None], domains.upper[:, None, None]
    corners = torch.where(linear.coefficients > 0, lower, upper)[domains.cases]
    return torch.cat([(domains.lower + domains.upper) / 2, corners.flatten(0, 1)])
