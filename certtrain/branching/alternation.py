"""Several searches for one problem, of which one may be much faster than the others: they run in turn."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from certtrain.branching.tree import Tree
from certtrain.runtime.deadline import NEVER, Deadline

FIRST_TURN = 0.5  # seconds; each round of turns is twice as long as the one before
FIRST_SHARE = 3  # the first search, the most promising, has so many times the turn of the others

# Whether one of the inputs (D, …) is a counterexample.
Falsifies = Callable[[Tensor], bool]


@dataclass(frozen=True)
class Outcome:
    """The result of a search.

    bound: the least lower bound of the closed leaves; infinity if there are none.
    open: how many leaves are not closed. domains: how many were bounded.
    falsified: whether a counterexample ended the search.
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


class BranchingSearch(Protocol):
    """A branch and bound that can be stopped and continued."""

    @property
    def ended(self) -> bool:
        """Whether it cannot go on: all is proved, a counterexample is found, or a limit is reached."""

    def run(self, until: Deadline = NEVER) -> Outcome:
        """Split open domains until the search ends, or until a deadline."""


def first_outcome(searches: Sequence[Callable[[], BranchingSearch]], deadline: Deadline) -> Outcome:
    """The outcome of the first search that proves or falsifies; if none does, of the last that ran.

    Each search is made when its first turn comes. They take turns until the deadline; one that is alone just runs. The
    first should be the most promising.
    """
    outcome = Outcome(torch.inf, Tree(), 1, 0, False)
    for outcome in _outcomes(searches, deadline):
        if outcome.proved or outcome.falsified:
            break
    return outcome


def _outcomes(searches: Sequence[Callable[[], BranchingSearch]], deadline: Deadline) -> Iterator[Outcome]:
    made, turn = dict[int, BranchingSearch](), FIRST_TURN
    while not deadline.over() and (len(made) < len(searches) or not all(search.ended for search in made.values())):
        for number, make in enumerate(searches):
            search = made[number] = made[number] if number in made else make()
            alone = all(other.ended for other in made.values() if other is not search) and len(made) == len(searches)
            seconds = turn if number else FIRST_SHARE * turn
            yield search.run(deadline if alone else deadline.earlier(Deadline.after(seconds)))
        turn *= 2
