"""Branch and bound: domains are split and bounded until all are closed, or time, memory or domains are used up."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from certtrain.bounds.chunks import between_checks, row_bytes, row_work
from certtrain.bounds.settings import Settings
from certtrain.branching.bounds import bounded, improved
from certtrain.branching.domains import Domains, concatenated
from certtrain.branching.leaves import leaf_solution
from certtrain.branching.problem import Problem
from certtrain.branching.selection import BranchingScores, branching_scores, chosen_units, sides
from certtrain.branching.tree import Path, Tree

FIRST_STEPS, STEPS = 50, 5  # of ascent, for the whole box and for each later domain
MOST_DOMAINS = 512  # at once
RETRY_DOMAINS, RETRY_STEPS = 200, 200  # domains and steps of ascent that a leaf may take when it is proved once more
RESERVE = 1.25  # times what rounding takes from the bound of the whole box is kept for what it takes in its parts

# Whether one of the inputs (D, …) is a counterexample.
Falsifies = Callable[[Tensor], bool]


@dataclass(frozen=True)
class Outcome:
    """What became of a problem.

    bound: the least lower bound of the leaves that are closed; infinity if there are none.
    open: how many leaves are not closed. domains: how many were bounded.
    falsified: a counterexample ended the search.
    """

    bound: float
    tree: Tree
    open: int
    domains: int
    falsified: bool

    @property
    def proved(self) -> bool:
        """Whether every leaf is closed."""
        return not self.falsified and self.open == 0 and 0 < self.bound < torch.inf


def branch_and_bound(problem: Problem, settings: Settings, *, falsifies: Falsifies = lambda inputs: False) -> Outcome:
    """Split the box of `problem` until one of its functions is above zero in every part.

    `falsifies` is called with the inputs (D, …) where the bounds of some domains have their least; if it returns True,
    the search ends. What is open at the settings' deadline, or after their number of domains, or when those that wait
    take more than their memory, stays open, and so does a domain that has nothing to split and no bound above zero.
    """
    search = BranchAndBound(problem, settings, falsifies)
    search.begin(search.first(torch.zeros(1, problem.units)))
    return search.run()


def reproved(problem: Problem, leaves: Iterable[Path], settings: Settings) -> int:
    """How many of the leaves are not proved, each from its splits alone. Raises ValueError for a unit unknown here.

    Where the bounds do not reach zero at once, a leaf may be split further.
    """
    search, missing = BranchAndBound(problem, settings), 0
    # Read one by one, since a file may hold long paths of units that do not exist; as many at once as memory takes.
    rows = (_signs(problem, path) for path in leaves)
    while part := list(islice(rows, search.most)):
        left = torch.stack(part).to(problem.prefix.start.radius.device)
        left = left[~is_closed(search.bound(search.first(left), FIRST_STEPS))]
        left = left[~is_closed(search.bound(search.first(left), RETRY_STEPS))] if len(left) else left
        if len(left):
            again = BranchAndBound(problem, replace(settings, domains=RETRY_DOMAINS * len(left)))
            again.begin(again.first(left))
            missing += 0 if again.run().proved else len(left)
    return missing


def is_closed(domains: Domains) -> Tensor:
    """Which domains (D,) are proved; NaN and infinity prove nothing."""
    return (domains.bounds > 0) & domains.bounds.isfinite()


def _signs(problem: Problem, path: Path) -> Tensor:
    """(T,) of one leaf."""
    signs = torch.zeros(problem.units, dtype=torch.int8)
    for unit, sign in path:
        signs[problem.index(unit)] = sign
    return signs


class BranchAndBound:
    """The search for one problem: the domains that wait, and the tree that they are leaves of.

    It searches in float32 by `fast`, and closes a domain only by the bound of `problem`, with all its rounding.
    """

    def __init__(self, problem: Problem, settings: Settings, falsifies: Falsifies = lambda inputs: False) -> None:
        self.problem, self.settings, self.falsifies = problem, settings, falsifies
        self.fast = problem.in_float32()
        self.tree, self.waiting, self.least = Tree(), list[Domains](), torch.inf
        self.domains, self.falsified, self.stuck = 0, False, False
        self.most = self._most()
        self.reserve = RESERVE * self._cost()
        self.fast.offsets = self.fast.offsets - self.reserve

    def _most(self) -> int:
        """How many domains at once: those that memory holds and, with a deadline, a step takes well under a second."""
        work = row_work(self.fast.prefix, gradients=True) * len(self.problem.functions)
        held = self.settings.memory // (2 * row_bytes(self.fast.prefix, 1, gradients=True))
        return max(1, between_checks(min(MOST_DOMAINS, held), work, self.settings.deadline))

    def _cost(self) -> float:
        """What rounding takes from the bound of the whole box: the search aims at that much more than zero."""
        first = self.first(torch.zeros(1, self.problem.units))
        cost = bounded(self.fast, first).double() - bounded(self.problem, first)
        return float(cost.clamp(min=0).nan_to_num(0.0))

    def first(self, signs: Tensor) -> Domains:
        """Domains of these signs (D, T), with the slopes that their boxes give."""
        like = self.fast.prefix.start.radius
        alphas = like.new_zeros(self.problem.units)
        for number, slopes in self.fast.slopes(self.fast.prefix).items():
            alphas[self.fast.parts[number]] = slopes.first.flatten()
        nothing = like.new_zeros(signs.shape)
        return Domains(
            signs=signs.to(like.device, torch.int8),
            alphas=alphas.expand_as(nothing).clone(),
            betas=nothing,
            bounds=like.new_full((len(signs),), -torch.inf),
            nodes=torch.zeros(len(signs), dtype=torch.long, device=like.device),
        )

    def bound(self, domains: Domains, steps: int) -> Domains:
        """The domains after a search for slopes and multipliers; those that may be closed have bounds that are proved.

        A bound of a domain holds in its parts. NaN and infinity are no bounds.
        """
        found = improved(self.fast, domains, steps, self.settings.deadline)
        bounds, hopeful = found.bounds.to(self.problem.prefix.start.radius), found.bounds > -self.reserve
        if bool(hopeful.any()):
            bounds[hopeful] = bounded(self.problem, found.take(hopeful))
        bounds = bounds.where(bounds < torch.inf, -torch.inf)
        return found._replace(bounds=torch.maximum(bounds, domains.bounds.to(bounds)))

    def begin(self, domains: Domains) -> None:
        """Bound the first domains."""
        self._sort(self.bound(domains, FIRST_STEPS))

    def run(self) -> Outcome:
        """Split the domains that wait until none does, or something ends the search."""
        while self.waiting and not (self.falsified or self.stuck or self._enough()):
            self._step(self._take())
        left = sum(part.total for part in self.waiting)
        return Outcome(self.least, self.tree, left, self.domains, self.falsified)

    def _enough(self) -> bool:
        held = sum(part.bytes for part in self.waiting)
        return self.domains >= self.settings.domains or held > self.settings.memory or self.settings.deadline.over()

    def _step(self, batch: Domains) -> None:
        scores = branching_scores(self.fast, batch)
        splittable = scores.unstable.any(1)
        if self.falsifies(scores.minimisers):
            self.falsified = True
        elif not self._close(batch.take(~splittable)):
            self.waiting.append(batch)
        elif bool(splittable.any()):
            self._split(batch.take(splittable), scores.take(splittable))

    def _close(self, domains: Domains) -> bool:
        """Whether all of these, in which nothing is left to split, could be closed."""
        for row in range(domains.total):
            if self.settings.deadline.over():
                return False
            leaf = leaf_solution(self.problem, domains.take(slice(row, row + 1)), self.settings.deadline)
            self.falsified = leaf is not None and self.falsifies(leaf.inputs)
            self.stuck = not self.falsified and (leaf is None or not 0 < leaf.bound < torch.inf)
            if self.falsified or self.stuck or leaf is None:
                return False
            self.least = min(self.least, leaf.bound)
        return True

    def _split(self, domains: Domains, scores: BranchingScores) -> None:
        units = chosen_units(self.fast, domains, scores)
        if self.settings.deadline.over():
            self.waiting.append(domains)
            return
        each = zip(domains.nodes.tolist(), units.tolist(), strict=True)
        nodes = torch.tensor([self.tree.split(node, self.problem.unit(unit)) for node, unit in each]).to(units)
        halves = [sides(domains, units, sign)._replace(nodes=own) for sign, own in zip((1, -1), nodes.T, strict=True)]
        self._sort(self.bound(concatenated(halves), STEPS))

    def _sort(self, domains: Domains) -> None:
        """Let those that are open wait, the least bounds last."""
        self.domains += domains.total
        closed = is_closed(domains)
        self.least = min([self.least, *domains.bounds[closed].tolist()])
        if not bool(closed.all()):
            left = domains.take(~closed)
            self.waiting.append(left.take(left.bounds.argsort(descending=True)))

    def _take(self) -> Domains:
        """The newest domains, those with the least bounds first, which wait no more; no more than may be split."""
        return concatenated(list(self._newest()))

    def _newest(self) -> Iterator[Domains]:
        room = max(1, min(self.most, (self.settings.domains - self.domains) // 2))
        while self.waiting and room:
            part = self.waiting.pop()
            kept = max(0, part.total - room)
            if kept:
                self.waiting.append(part.take(slice(0, kept)))
            yield part.take(slice(kept, None))
            room -= part.total - kept
