"""Which neuron to split a domain by: filtered smart branching (De Palma et al. 2021).

The few neurons with the highest scores are tried: the gain of a split is measured
by the bounds of both sides, with the current slopes and multipliers. The score is
the most that a neuron's relaxation can reduce the bound: the chord's offset times Λ
(Bunel et al. 2020), and for a curve the distance of its lines at the centre times
|Λ|. The reduction at the input that minimises the domain's bound was tried as a
score as well, and led to more domains.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from certtrain.bounds.activations import RECTIFIERS
from certtrain.bounds.interval import LayerRecord
from certtrain.bounds.linear import Prefix
from certtrain.bounds.relaxation import free_lines, relaxed
from certtrain.branching.bounds import RelaxedDomains, domain_bounds
from certtrain.branching.domains import Domains
from certtrain.branching.problem import Problem
from certtrain.runtime.deadline import NEVER, Deadline

CANDIDATES = 4


@dataclass(frozen=True)
class BranchingScores:
    """The scores of all neurons of D domains, from one backsubstitution.

    minimisers: (D, …), the inputs that minimise the linear bounds.
    scores: (D, T), the most that each unstable neuron's relaxation can reduce the bound; 0 for others.
    unstable: (D, T), the neurons that can be split.
    """

    minimisers: Tensor
    scores: Tensor
    unstable: Tensor

    def take(self, chosen: Tensor) -> "BranchingScores":
        """The scores of some of the domains."""
        return BranchingScores(self.minimisers[chosen], self.scores[chosen], self.unstable[chosen])


@torch.no_grad()
def branching_scores(problem: Problem, domains: Domains) -> BranchingScores:
    """The minimisers of the domains' bounds, and the scores."""
    bounded, found = RelaxedDomains.of(problem, domains), dict[int, Tensor]()
    bounded.bounds(*domains.variables, on_coefficients=found.__setitem__)
    start = bounded.prefix.start
    minimisers = start.centre - start.radius * found[0][:, 0].sign()
    # A neuron that only clipping made stable may be split, and is needed once no other is left.
    unstable = problem.unstable & (domains.signs == 0)
    return BranchingScores(minimisers, reductions(problem, bounded.prefix, found) * unstable, unstable)


def reductions(problem: Problem, prefix: Prefix, coefficients: Mapping[int, Tensor]) -> Tensor:
    """The most that each neuron's relaxation can reduce the bound (D, T), from Λ by the number of its value."""
    rows, found = len(prefix.start.radius), dict[int, Tensor]()
    for number in problem.numbers:
        record, each = prefix.records[number], coefficients.get(number + 1)
        assert record.box is not None  # it is a nonlinear layer
        like = record.box.radius
        found[number] = like.new_zeros(rows, *like.shape[1:]) if each is None else _reduction(record, each[:, 0])
    return problem.flat(found, rows)


def _reduction(record: LayerRecord, coefficients: Tensor) -> Tensor:
    """The same for one layer (D, …): the distance of its lines from each other times Λ, or from the function."""
    layer, box = record.call.layer, record.box
    assert box is not None
    if isinstance(layer, RECTIFIERS):
        return _offset(box.lower, box.upper) * (-coefficients).relu() * ((box.lower < 0) & (box.upper > 0))
    free = free_lines(layer, box)
    lines = relaxed(layer, box) if free is None else free.at(free.first).of_first_function()
    return lines.distance(box.centre) * coefficients.abs()


@torch.no_grad()
def chosen_neurons(problem: Problem, domains: Domains, scores: BranchingScores, deadline: Deadline = NEVER) -> Tensor:
    """For each domain (D,), the number of the neuron to split. Each domain must have an unstable one.

    After the deadline no further candidate is tried.
    """
    tried = scores.scores.topk(min(CANDIDATES, problem.neurons), 1).indices  # (D, C)
    usable = scores.unstable.gather(1, tried)
    gains = torch.zeros_like(tried, dtype=domains.bounds.dtype)
    for column in range(tried.shape[1]):
        if deadline.over():
            break
        gains[:, column] = _gains(problem, domains, tried[:, column])
    worth = gains.where(usable, -torch.inf)
    chosen = tried.gather(1, worth.argmax(1, keepdim=True)).squeeze(1)
    return torch.where(usable.any(1), chosen, scores.unstable.to(torch.uint8).argmax(1))


def sides(domains: Domains, neurons: Tensor, sign: int) -> Domains:
    """One side of each domain after a split of its neuron in `neurons` (D,)."""
    return domains._replace(signs=domains.signs.scatter(1, neurons.unsqueeze(1), sign))


def _gains(problem: Problem, domains: Domains, neurons: Tensor) -> Tensor:
    """The gain of a split (D,): the sum of the improvements on both sides, each at most what closes the side.

    The sum gave smaller trees than the product or the minimum, since a side that is closed at once counts a lot.
    """
    worth = torch.zeros_like(domains.bounds)
    for sign in (1, -1):
        gain = domain_bounds(problem, sides(domains, neurons, sign)) - domains.bounds
        worth = worth + torch.minimum(gain, -domains.bounds).nan_to_num(0.0)
    return worth


def _offset(lower: Tensor, upper: Tensor) -> Tensor:
    """The height at zero of the chord of max(x, 0) over [lower, upper], its largest distance from the function."""
    above, below = upper.relu(), (-lower).relu()
    return above * below / (above + below).clamp(min=torch.finfo(above.dtype).tiny)
