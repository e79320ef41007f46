"""Branch and bound: domains are split, bounded and closed until none is left, or time or memory is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certtrain.bounds.chunks import row_bytes
from certtrain.bounds.settings import Settings
from certtrain.branching.bounding import bounded, improved
from certtrain.branching.choosing import choose, look, sides
from certtrain.branching.domains import Domains, joined
from certtrain.branching.leaves import solved
from certtrain.branching.root import Root
from certtrain.branching.tree import Tree

AT_ROOT, AT_NODE = 50, 20  # steps of ascent
MOST = 512  # domains at once


@dataclass(frozen=True)
class Outcome:
    """What became of a root.

    bound: the least lower bound of the leaves; above zero it proves the root. domains: how many were bounded.
    """

    bound: float
    tree: Tree
    domains: int
    broken: bool = False

    @property
    def proved(self) -> bool:
        """NaN and infinity prove nothing."""
        return 0 < self.bound < torch.inf


def first_domain(root: Root) -> Domains:
    """The whole box."""
    like = root.prefix.start.radius
    alphas = like.new_zeros(1, root.units)
    for number, slopes in root.slopes(root.prefix).items():
        alphas[:, root.parts[number]] = slopes.first.flatten(1)
    nothing = torch.zeros_like(alphas)
    return Domains(
        signs=nothing.to(torch.int8),
        alphas=alphas,
        betas=nothing,
        bounds=like.new_full((1,), -torch.inf),
        nodes=torch.zeros(1, dtype=torch.long, device=like.device),
    )


def branch_and_bound(
    root: Root,
    settings: Settings,
    *,
    over: Callable[[], bool] = lambda: False,
    attack: Callable[[Tensor], bool] = lambda inputs: False,
) -> Outcome:
    """Split the box of `root` until one of its functions is above zero in every part.

    `attack` is shown the inputs (D, …) where bounds have their least, and says
    True if one of them ends the search. What is open when time is `over`, or
    the open domains take more than the settings' memory, stays open.
    """
    tree, fast = Tree(), root.fast()
    whole = proved(root, improved(fast, first_domain(fast), AT_ROOT))
    waiting, least, done = [whole], torch.inf, 1
    if whole.bounds[0] > 0:
        return Outcome(float(whole.bounds[0]), tree, done)
    most = max(1, min(MOST, settings.memory // (2 * row_bytes(fast.prefix, 1, gradients=True))))
    while waiting:
        if over() or sum(part.bytes for part in waiting) > settings.memory:
            break
        batch = _take(waiting, most)
        looked = look(fast, batch)
        if attack(looked.minimisers):
            return Outcome(-torch.inf, tree, done, broken=True)
        splittable = looked.open.any(1)
        for row in (~splittable).nonzero().flatten().tolist():
            leaf = solved(root, batch.take(slice(row, row + 1)))
            if leaf is not None and attack(leaf.inputs):
                return Outcome(-torch.inf, tree, done, broken=True)
            bound = torch.nan if leaf is None else leaf.bound
            if not bound > 0:
                waiting.append(batch)  # nothing to split, and the bound is not above zero
                return Outcome(min(_bounds(waiting)), tree, done)
            least = min(least, bound)
        batch, looked = batch.take(splittable), looked.take(splittable)
        if not batch.count:
            continue
        halves = _split(root, tree, batch, choose(fast, batch, looked))
        children = proved(root, improved(fast, halves, AT_NODE))
        done += children.count
        closed = children.bounds > 0
        least = min([least, *children.bounds[closed].tolist()])
        if not bool(closed.all()):
            open_ones = children.take(~closed)
            waiting.append(open_ones.take(open_ones.bounds.argsort(descending=True)))
    return Outcome(min([least, *_bounds(waiting)]), tree, done)


def _bounds(waiting: list[Domains]) -> list[float]:
    return [float(part.bounds.min()) for part in waiting]



def proved(root: Root, domains: Domains) -> Domains:
    """The domains with the bounds that hold, of those that the search has taken for closed."""
    bounds, closed = domains.bounds.to(root.prefix.start.radius), domains.bounds > 0
    if bool(closed.any()):
        bounds[closed] = bounded(root, domains.take(closed))
    return domains._replace(bounds=bounds)


def _take(waiting: list[Domains], most: int) -> Domains:
    """The newest domains, those with the least bounds first, at most so many; they wait no more."""
    taken, count = [], 0
    while waiting and count < most:
        part = waiting.pop()
        room = most - count
        if part.count > room:
            waiting.append(part.take(slice(0, part.count - room)))
            part = part.take(slice(part.count - room, None))
        taken.append(part)
        count += part.count
    return joined(taken)


def _split(root: Root, tree: Tree, domains: Domains, units: Tensor) -> Domains:
    """Both sides of each domain."""
    nodes = [
        tree.split(node, root.unit(unit)) for node, unit in zip(domains.nodes.tolist(), units.tolist(), strict=True)
    ]
    numbers = torch.tensor(nodes, device=units.device).T
    parts = [sides(domains, units, sign)._replace(nodes=own) for sign, own in zip((1, -1), numbers, strict=True)]
    return joined(parts)
