"""Branch and bound: domains are split and bounded until all are closed, or until a limit is reached."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from certtrain.bounds.chunks import between_checks, row_bytes, row_work
from certtrain.bounds.settings import Settings
from certtrain.branching.alternation import Falsifies, Outcome
from certtrain.branching.bounds import domain_bounds, optimised
from certtrain.branching.clipping import NeuronBounds, clipped, neuron_bounds
from certtrain.branching.descent import descended
from certtrain.branching.domains import Domains, concatenated, newest, replaced
from certtrain.branching.hull import PLANE_BYTES, PLANE_WORK
from certtrain.branching.leaves import affine, leaf_solution
from certtrain.branching.planes import PlaneTrials
from certtrain.branching.problem import Problem
from certtrain.branching.selection import BranchingScores, branching_scores, chosen_neurons, sides
from certtrain.branching.tree import Cut, Path, Tree
from certtrain.runtime.deadline import NEVER, Deadline

FIRST_STEPS, STEPS, STEPS_WITH_PLANES = 50, 5, 10  # steps of ascent for the whole box, and for each later domain
MOST_DOMAINS = 512  # in a batch
FEW_DOMAINS = 50  # of a short search
RETRY_DOMAINS, RETRIES = 200, (200, 50, 50, 50, 50)  # to prove a leaf again: domains, and steps of each further ascent
DESCENTS = 16  # in each step of the search, to find a counterexample
CLIPS, CLIP_STEPS = 6, 3  # how often a domain is clipped at most, and the steps of ascent after each time
GAIN = 0.1  # a domain is clipped again while its bound rises by this share of its distance from zero
SHARE_OF_RESERVE, LEAST_THRESHOLD = 0.01, 2.0**-500  # the threshold of clipped domains, and what it is at least
RESERVE = 1.25  # the float32 search aims above zero by this many times what rounding costs the bound of the whole box


def branch_and_bound(
    problem: Problem, settings: Settings, *, falsifies: Falsifies = lambda inputs: False, clips: bool = True
) -> Outcome:
    """Split the box of `problem` until, in every domain, one of its functions is proved to be above zero.

    `falsifies` is called with the inputs (D, …) that minimise the bounds of some domains; if it returns True, the
    search ends. Domains stay open at the settings' deadline, after `domains` domains, or when the open domains take
    more than `memory`. A domain without unstable neurons stays open if its bound is not above zero. clips: whether the
    boxes of open domains are clipped, and planes are tried.
    """
    return BranchAndBound(problem, settings, falsifies, clips=clips).run()


def by_few_domains(problem: Problem, settings: Settings, falsifies: Falsifies) -> Outcome:
    """A short search, for boxes that are not tightened yet: many problems need no more.

    It splits nothing if the network has curves, whose lines are far from them over such boxes.
    """
    few = replace(settings, domains=min(FEW_DOMAINS if affine(problem) else 1, settings.domains))
    return branch_and_bound(problem, few, falsifies=falsifies, clips=False)


def unproved_leaves(problem: Problem, leaves: Iterable[Path], settings: Settings) -> int:
    """How many leaves cannot be proved, each from its splits alone. Raises ValueError for an unknown neuron.

    A leaf whose bound is not above zero at first is bounded by planes, and may be split further.
    """
    search, again, unproved = BranchAndBound(problem, settings), BranchAndBound(problem, settings), 0
    # Read one by one, since a file may contain long paths of unknown neurons; bounded in batches that fit the memory.
    rows = (_signs(problem, path) for path in leaves)
    while part := list(islice(rows, search.most)):
        signs = torch.stack(part).to(problem.prefix.start.radius.device)
        found = search.bound(search.first(signs), FIRST_STEPS)
        found = found.take(~found.closed)
        if found.total:
            again.use_planes()
            for first in range(0, found.total, again.most):
                unproved += _unproved(again, found.take(slice(first, first + again.most)))
    return unproved


def _unproved(search: "BranchAndBound", found: Domains) -> int:
    """How many domains, none of them closed, neither more ascent nor further splits prove.

    Each ascent begins where the one before has ended, with long steps again: in a domain without any input the
    multipliers, and the bound with them, grow without limit.
    """
    found = search.planes.with_shares(found)
    for steps in RETRIES:
        found = search.bound(found, steps)
        found = found.take(~found.closed)
        if not found.total:
            return 0
    again = BranchAndBound(search.problem, replace(search.settings, domains=RETRY_DOMAINS * found.total))
    again.use_planes()
    again.begin(again.first(found.signs))
    return 0 if again.run().proved else found.total


def _signs(problem: Problem, path: Path) -> Tensor:
    """The signs (T,) of one leaf."""
    signs = torch.zeros(problem.neurons, dtype=torch.int8)
    for split, sign in path:
        if isinstance(split, Cut):
            raise ValueError("it splits inputs below a neuron")
        signs[problem.index(split)] = sign
    return signs


class BranchAndBound:
    """The search for one problem: the open domains `waiting`, and the tree whose leaves they are.

    The search uses `fast`, in float32. Only a bound of `problem`, with all rounding, closes a domain.
    """

    def __init__(
        self,
        problem: Problem,
        settings: Settings,
        falsifies: Falsifies = lambda inputs: False,
        *,
        clips: bool = True,
    ) -> None:
        self.problem, self.settings, self.falsifies, self.clips = problem, settings, falsifies, clips
        self.fast = problem.in_float32()
        self.tree, self.waiting, self.least = Tree(), list[Domains](), torch.inf
        self.domains, self.closed, self.begun, self.falsified, self.unprovable = 0, 0, False, False, False
        self.planes = PlaneTrials(problem, self.fast, settings)
        self.most = self._most()
        self.reserve = RESERVE * self._rounding_cost()
        self.fast.offsets = self.fast.offsets - self.reserve
        self.threshold = max(self.reserve * SHARE_OF_RESERVE, LEAST_THRESHOLD)

    def _most(self) -> int:
        """Domains per batch: as many as fit the memory and, with a deadline, take well under a second for one step."""
        work = row_work(self.fast.prefix, gradients=True) + PLANE_WORK * self.planes.size
        size = row_bytes(self.fast.prefix, 1, gradients=True) + PLANE_BYTES * self.planes.size
        held = self.settings.memory // (2 * size)
        return max(1, between_checks(min(MOST_DOMAINS, held), work, self.settings.deadline))

    def _rounding_cost(self) -> float:
        """How much rounding reduces the bound of the whole box; the search aims above zero by a multiple of this."""
        first = self.first(torch.zeros(1, self.problem.neurons))
        cost = domain_bounds(self.fast, first).double() - domain_bounds(self.problem, first)
        return float(cost.clamp(min=0).nan_to_num(0.0))

    def first(self, signs: Tensor) -> Domains:
        """Domains with these signs (D, T), and the initial lines over their boxes."""
        like = self.fast.prefix.start.radius
        alphas = like.new_zeros(len(signs), self.problem.alphas)
        weights = like.new_ones(len(signs), len(self.problem.functions))
        domains = Domains.of(signs.to(like.device), alphas, like.new_zeros(signs.shape), weights)
        for number, lines in self.fast.free_lines(self.fast.restricted(domains)).items():
            self.fast.alpha(alphas, number).copy_(lines.first)
        return self.planes.with_shares(domains) if self.planes.used else domains

    def use_planes(self) -> None:
        """Bound all domains by upper planes from now on, if the network has any."""
        self.planes.used = self.planes.hull is not None
        self.most, self.waiting = self._most(), [self.planes.with_shares(part) for part in self.waiting]

    def _try_planes(self) -> None:
        """Use planes from now on, if they make the bounds of some open domains better."""
        if self.planes.trial(self.waiting[-1], sum(part.total for part in self.waiting)):
            self.use_planes()

    def bound(self, domains: Domains, steps: int) -> Domains:
        """The domains with optimised slopes and multipliers, clipped ends, and proved bounds if they may be closed."""
        found = self._optimised(domains, steps)
        for _ in range(CLIPS if self.clips else 0):
            left = self._worth_clipping(found, domains)
            if not len(left) or self.known is None or self.settings.deadline.over():
                break
            domains = found
            found = replaced(found, left, self._clipped(found.take(left)))
        return found

    def _worth_clipping(self, found: Domains, before: Domains) -> Tensor:
        """The numbers of the open domains whose bounds have just become better by a share of what is missing."""
        gains = found.bounds - before.bounds
        return (~found.closed & (gains > GAIN * found.bounds.abs())).nonzero().flatten()

    @cached_property
    def known(self) -> NeuronBounds | None:
        """The linear bounds of the neurons, computed when a domain is clipped first."""
        return neuron_bounds(self.problem, self.settings)

    def _clipped(self, domains: Domains) -> Domains:
        """The domains clipped, and bounded anew."""
        assert self.known is not None
        domains = clipped(self.problem, self.known, domains, self.threshold, self.settings.deadline)
        found, empty = self._optimised(domains, CLIP_STEPS), self.problem.empty(domains)
        return found._replace(bounds=found.bounds.where(~empty, 2 * self.threshold))

    def _optimised(self, domains: Domains, steps: int) -> Domains:
        """The domains with optimised slopes and multipliers, and proved bounds where they may be closed.

        A bound of a domain holds in the domains that it is split into. NaN and infinity are not bounds.
        """
        found = optimised(self.fast, domains, steps, self.settings.deadline)
        bounds, candidates = found.bounds.to(self.problem.prefix.start.radius), found.bounds > -self.reserve
        if bool(candidates.any()):
            bounds[candidates] = domain_bounds(self.problem, found.take(candidates))
        bounds = bounds.where(bounds < torch.inf, -torch.inf)
        return found._replace(bounds=torch.maximum(bounds, domains.bounds.to(bounds)))

    def begin(self, domains: Domains) -> None:
        """Bound the first domains."""
        self.begun = True
        self._sort(self.bound(domains, FIRST_STEPS))

    def run(self, until: Deadline = NEVER) -> Outcome:
        """As `BranchingSearch.run`; begins with the whole box, unless it has begun."""
        if not self.begun:
            self.begin(self.first(torch.zeros(1, self.problem.neurons)))
        while not (self.ended or until.over() or self.settings.deadline.over()):
            if self.clips and self.planes.due(self.domains):
                self._try_planes()
            else:
                self._step(self._take())
                self._report()
        left = sum(part.total for part in self.waiting)
        return Outcome(self.least, self.tree, left, self.domains, self.falsified)

    def _report(self) -> None:
        bounds = (float(part.bounds.min()) for part in self.waiting)
        self.settings.on_domains(self.closed, sum(part.total for part in self.waiting), min(bounds, default=self.least))

    @property
    def ended(self) -> bool:
        """As `BranchingSearch.ended`."""
        held = sum(part.bytes for part in self.waiting)
        limited = self.domains >= self.settings.domains or held > self.settings.memory
        return self.begun and (not self.waiting or self.falsified or self.unprovable or limited)

    def _step(self, batch: Domains) -> None:
        scores = branching_scores(self.fast, batch)
        splittable = scores.unstable.any(1)
        if self._falsified(batch, scores.minimisers):
            self.falsified = True
        elif not self._close(batch.take(~splittable)):
            self.waiting.append(batch)
        elif bool(splittable.any()):
            self._split(batch.take(splittable), scores.take(splittable))

    def _falsified(self, batch: Domains, minimisers: Tensor) -> bool:
        """Whether minimisers are counterexamples, or where descents end that begin at those with the lowest bounds."""
        if self.falsifies(minimisers) or self.settings.deadline.over():
            return self.falsified
        lowest = batch.bounds.argsort()[:DESCENTS]
        return self.falsifies(descended(self.fast, minimisers[lowest]))

    def _close(self, domains: Domains) -> bool:
        """Close these domains, which have no unstable neurons; returns whether all could be closed."""
        for row in range(domains.total):
            if self.settings.deadline.over():
                return False
            domain = domains.take(slice(row, row + 1)).unclipped()  # all signs are fixed
            leaf = leaf_solution(self.problem, domain, self.settings.deadline)
            self.falsified = leaf is not None and self.falsifies(leaf.inputs)
            self.unprovable = not self.falsified and (leaf is None or not 0 < leaf.bound < torch.inf)
            if self.falsified or self.unprovable or leaf is None:
                return False
            self.least, self.closed = min(self.least, leaf.bound), self.closed + 1
        return True

    def _split(self, domains: Domains, scores: BranchingScores) -> None:
        neurons = chosen_neurons(self.fast, domains, scores, self.settings.deadline)
        if self.settings.deadline.over():
            self.waiting.append(domains)
            return
        each = zip(domains.nodes.tolist(), neurons.tolist(), strict=True)
        nodes = torch.tensor([self.tree.split(node, self.problem.neuron(neuron)) for node, neuron in each]).to(neurons)
        halves = [sides(domains, neurons, sign)._replace(nodes=own) for sign, own in zip((1, -1), nodes.T, strict=True)]
        self._sort(self.bound(concatenated(halves), STEPS_WITH_PLANES if self.planes.used else STEPS))

    def _sort(self, domains: Domains) -> None:
        """Append the open domains to `waiting`, the lowest bounds last."""
        self.domains += domains.total
        closed = domains.closed
        self.closed += int(closed.sum())
        self.least = min([self.least, *domains.proved[closed].tolist()])
        if not bool(closed.all()):
            left = domains.take(~closed)
            self.waiting.append(left.take(left.bounds.argsort(descending=True)))

    def _take(self) -> Domains:
        """Take the newest domains off `waiting`, as many as may be split."""
        most = max(1, min(self.most, (self.settings.domains - self.domains) // 2))
        return concatenated(list(newest(self.waiting, most)))
