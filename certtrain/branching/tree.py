"""The tree of splits: which unit each domain was split by. If all its leaves are proved, so is the problem.

As text, a tree begins with its first split: the unit's record and place, "4:17",
and then the trees of the two sides, where the unit's input is not below zero and
where it is not above; a leaf is ".". Nothing can be left out of it: a text that
ends early or late is no tree.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from certtrain.branching.problem import Unit

LEAF = "."
UNIT = re.compile(r"(0|[1-9][0-9]{0,8}):(0|[1-9][0-9]{0,8})")
SIDES = (1, -1)
Path = tuple[tuple[Unit, int], ...]


@dataclass
class Tree:
    """`splits` of nodes: the unit, and the numbers of the two sides' nodes. Node 0 is the problem."""

    splits: dict[int, tuple[Unit, int, int]] = field(default_factory=dict)
    nodes: int = 1

    def split(self, node: int, unit: Unit) -> tuple[int, int]:
        """Split a leaf; the new nodes' numbers."""
        sides = self.nodes, self.nodes + 1
        self.nodes += 2
        self.splits[node] = (unit, *sides)
        return sides

    @property
    def leaves(self) -> int:
        """How many there are."""
        return len(self.splits) + 1

    def __str__(self) -> str:
        return " ".join(self._words())

    def _words(self) -> Iterator[str]:
        below = [0]
        while below:
            node = below.pop()
            if node not in self.splits:
                yield LEAF
                continue
            unit, above, under = self.splits[node]
            yield f"{unit.record}:{unit.place}"
            below += [under, above]


def leaves_of(text: str) -> Iterator[Path]:
    """The splits on the path to each leaf of a tree. Raises ValueError for what is no tree."""
    path, ended = dict[Unit, int](), False  # the splits above the next word; a tree may be as deep as its text is long
    for word in text.split(" "):
        if ended:
            raise ValueError("it goes on after the tree's end")
        if word == LEAF:
            yield tuple(path.items())
            ended = not _turn(path)
            continue
        unit = _unit(word)
        if unit in path:
            raise ValueError(f"unit {word!r} is split twice on one path")
        path[unit] = SIDES[0]
    if not ended:
        raise ValueError("it ends before the tree does")


def _turn(path: dict[Unit, int]) -> bool:
    """Go on from a leaf to the other side of the last split that has one to go; False if there is none."""
    while path:
        unit, sign = path.popitem()
        if sign == SIDES[0]:
            path[unit] = SIDES[1]
            return True
    return False


def _unit(word: str) -> Unit:
    found = UNIT.fullmatch(word)
    if found is None:
        raise ValueError(f"{word[:20]!r} is no unit, like '4:17', and no leaf, {LEAF!r}")
    return Unit(int(found[1]), int(found[2]))
