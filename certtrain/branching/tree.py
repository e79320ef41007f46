"""The tree of splits, by neurons' signs or by inputs. If all leaves are proved, so is the problem.

As text, a tree begins with its first split: a neuron's record and flat index, "4:17",
or an input's flat index and the value at which it is cut, "x17:0.125". Then come the
trees of the two sides: first where the neuron's input is ≥ 0, or the input is at least
the value, then where it is ≤ 0, or at most the value. A leaf is ".". A text that ends
too early or too late is not a tree, so no leaf can be left out.
"""

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from certtrain.branching.problem import Neuron

LEAF = "."
NEURON = re.compile(r"(0|[1-9][0-9]{0,8}):(0|[1-9][0-9]{0,8})")
CUT = re.compile(r"x(0|[1-9][0-9]{0,8}):(-?[0-9][0-9.]{0,30}(?:e[-+][0-9]{1,3})?)")
SIDES = (1, -1)


class Cut(NamedTuple):
    """A split of an input: its flat index, and the value that both sides have in common."""

    input: int
    value: float


Split = Neuron | Cut
Path = tuple[tuple[Split, int], ...]


@dataclass
class Tree:
    """`splits`, by node, with the nodes of the two sides. Node 0 is the whole box."""

    splits: dict[int, tuple[Split, int, int]] = field(default_factory=dict)
    nodes: int = 1

    def split(self, node: int, split: Split) -> tuple[int, int]:
        """Split a leaf; gives the numbers of the new nodes."""
        sides = self.nodes, self.nodes + 1
        self.nodes += 2
        self.splits[node] = (split, *sides)
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
            split, first, second = self.splits[node]
            yield f"x{split.input}:{split.value!r}" if isinstance(split, Cut) else f"{split.record}:{split.place}"
            pending += [second, first]


def leaves_of(text: str) -> Iterator[Path]:
    """The splits on the path to each leaf of a tree. Raises ValueError for a text that is not a tree."""
    # `path` has the splits above the next word; a tree may be as deep as its text is long.
    path, ended = dict[Split, int](), False
    for word in text.split(" "):
        if ended:
            raise ValueError("it continues after the tree's end")
        if word == LEAF:
            yield tuple(path.items())
            ended = not _to_next_side(path)
            continue
        split = _split(word)
        if split in path:
            raise ValueError(f"{word!r} is split twice on one path")
        path[split] = SIDES[0]
    if not ended:
        raise ValueError("it ends before the tree is complete")


def _to_next_side(path: dict[Split, int]) -> bool:
    """Move from a leaf to the second side of the last split that is still on its first; False if there is none."""
    while path:
        split, sign = path.popitem()
        if sign == SIDES[0]:
            path[split] = SIDES[1]
            return True
    return False


def _split(word: str) -> Split:
    if (found := NEURON.fullmatch(word)) is not None:
        return Neuron(int(found[1]), int(found[2]))
    if (found := CUT.fullmatch(word)) is not None:
        with suppress(ValueError):  # more than one point
            value = float(found[2])
            if math.isfinite(value):
                return Cut(int(found[1]), value)
    raise ValueError(f"{word[:20]!r} is neither a neuron, like '4:17', nor a cut, like 'x17:0.5', nor a leaf, {LEAF!r}")
