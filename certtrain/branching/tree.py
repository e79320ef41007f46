"""The tree of splits: which unit each domain was split by. Its leaves, all proved, prove the root.

As text, a tree is read from its root: a split is the unit's visit and place,
"4:17", and then the trees of its two sides, where its input is not below zero
and where it is not above; a leaf is ".". Nothing can be left out of it: a
text that ends early or late is no tree.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from certtrain.branching.root import Unit

LEAF = "."
SIDES = (1, -1)
Path = tuple[tuple[Unit, int], ...]


@dataclass
class Tree:
    """`splits` of nodes: the unit, and the numbers of the two sides' nodes. Node 0 is the root."""

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
            yield f"{unit.visit}:{unit.place}"
            below += [under, above]


def leaves_of(text: str, deepest: int) -> Iterator[Path]:
    """The splits on the way to each leaf of a tree of at most that depth. Raises ValueError for what is no tree."""
    below: list[Path] = [()]
    for word in text.split(" "):
        if not below:
            raise ValueError("it goes on after the tree's end")
        path = below.pop()
        if word == LEAF:
            yield path
            continue
        unit = _unit(word)
        if len(path) == deepest:
            raise ValueError(f"it splits by more than the network's {deepest:,} units")
        if any(unit == before for before, _ in path):
            raise ValueError(f"unit {word!r} is split twice on one way")
        below += [(*path, (unit, sign)) for sign in reversed(SIDES)]
    if below:
        raise ValueError("it ends before the tree does")


def _unit(word: str) -> Unit:
    visit, colon, place = word.partition(":")
    if not (colon and visit.isascii() and visit.isdigit() and place.isascii() and place.isdigit()):
        raise ValueError(f"{word[:20]!r} is no unit, like '4:17', and no leaf, {LEAF!r}")
    return Unit(int(visit), int(place))
