"""The tree of splits: the neuron that splits each domain. If all leaves are proved, so is the problem.

As text, a tree begins with its first split: the neuron's record and flat index,
"4:17". Then come the trees of the two sides: first where the neuron's input is ≥ 0,
then where it is ≤ 0. A leaf is ".". A text that ends too early or too late is not a
tree, so no leaf can be left out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from certtrain.branching.problem import Neuron

LEAF = "."
NEURON = re.compile(r"(0|[1-9][0-9]{0,8}):(0|[1-9][0-9]{0,8})")
SIDES = (1, -1)
Path = tuple[tuple[Neuron, int], ...]


@dataclass
class Tree:
    """`splits`, by node: the neuron, and the nodes of the two sides. Node 0 is the whole box."""

    splits: dict[int, tuple[Neuron, int, int]] = field(default_factory=dict)
    nodes: int = 1

    def split(self, node: int, neuron: Neuron) -> tuple[int, int]:
        """Split a leaf; gives the numbers of the new nodes."""
        sides = self.nodes, self.nodes + 1
        self.nodes += 2
        self.splits[node] = (neuron, *sides)
        return sides

    @property
    def leaves(self) -> int:
        """The number of leaves."""
        return len(self.splits) + 1

    def __str__(self) -> str:
        return " ".join(self._words())

    def _words(self) -> Iterator[str]:
        pending = [0]
        while pending:
            node = pending.pop()
            if node not in self.splits:
                yield LEAF
                continue
            neuron, first, second = self.splits[node]
            yield f"{neuron.record}:{neuron.place}"
            pending += [second, first]


def leaves_of(text: str) -> Iterator[Path]:
    """The splits on the path to each leaf of a tree. Raises ValueError for a text that is not a tree."""
    path, ended = (
        dict[Neuron, int](),
        False,
    )  # the splits above the next word; a tree may be as deep as its text is long
    for word in text.split(" "):
        if ended:
            raise ValueError("it continues after the tree's end")
        if word == LEAF:
            yield tuple(path.items())
            ended = not _to_next_side(path)
            continue
        neuron = _neuron(word)
        if neuron in path:
            raise ValueError(f"neuron {word!r} is split twice on one path")
        path[neuron] = SIDES[0]
    if not ended:
        raise ValueError("it ends before the tree is complete")


def _to_next_side(path: dict[Neuron, int]) -> bool:
    """Move from a leaf to the second side of the last split that is still on its first; False if there is none."""
    while path:
        neuron, sign = path.popitem()
        if sign == SIDES[0]:
            path[neuron] = SIDES[1]
            return True
    return False


def _neuron(word: str) -> Neuron:
    found = NEURON.fullmatch(word)
    if found is None:
        raise ValueError(f"{word[:20]!r} is neither a neuron, like '4:17', nor a leaf, {LEAF!r}")
    return Neuron(int(found[1]), int(found[2]))
