"""Trees as text: what is written is read again, and what is no tree is an error, whatever its size."""

import random
import time
from collections.abc import Iterator

import pytest

from certtrain.branching.problem import Neuron
from certtrain.branching.tree import LEAF, Path, Tree, leaves_of

WORDS = 100_000  # far more than any way has, and less than a line of a certificate file may hold


def random_tree(seed: int, splits: int) -> Tree:
    """Any leaf may be split, by a unit that is not on the way to it."""
    chance, tree, ways = random.Random(seed), Tree(), {0: frozenset[Neuron]()}
    for _ in range(splits):
        node = chance.choice(sorted(ways))
        above = ways.pop(node)
        unit = chance.choice([u for u in (Neuron(v, p) for v in (1, 4) for p in range(30)) if u not in above])
        ways |= dict.fromkeys(tree.split(node, unit), above | {unit})
    return tree


def paths(tree: Tree, node: int = 0, way: Path = ()) -> Iterator[Path]:
    """The same as `leaves_of` by recursion."""
    if node not in tree.splits:
        yield way
        return
    unit, above, below = tree.splits[node]
    yield from paths(tree, above, (*way, (unit, 1)))
    yield from paths(tree, below, (*way, (unit, -1)))


def test_by_hand():
    tree = Tree()
    assert str(tree) == LEAF
    assert list(leaves_of(LEAF)) == [()]
    above, below = tree.split(0, Neuron(1, 5))
    tree.split(below, Neuron(3, 0))
    assert str(tree) == "1:5 . 3:0 . ."
    first, second = Neuron(1, 5), Neuron(3, 0)
    expected = [((first, 1),), ((first, -1), (second, 1)), ((first, -1), (second, -1))]
    assert list(leaves_of(str(tree))) == expected
    assert (tree.leaves, above) == (3, 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_is_read_as_it_was_written(seed: int):
    tree = random_tree(seed, splits=seed * 3)
    found = list(leaves_of(str(tree)))
    assert found == list(paths(tree))
    assert len(found) == tree.leaves == seed * 3 + 1


@pytest.mark.parametrize("seed", range(20))
def test_the_leaves_hold_every_choice_of_signs_once(seed: int):
    """So that together they are the whole box."""
    leaves, chance = list(leaves_of(str(random_tree(seed, splits=15)))), random.Random(seed)
    for _ in range(50):
        signs = {Neuron(v, p): chance.choice((1, -1)) for v in (1, 4) for p in range(30)}
        assert sum(all(signs[unit] == sign for unit, sign in leaf) for leaf in leaves) == 1


MALFORMED = {
    "": "is neither a neuron",
    " ": "is neither a neuron",
    ". ": "continues after",
    " .": "is neither a neuron",
    ". .": "continues after",
    ".\n": "is neither a neuron",
    "4:17": "ends before",
    "4:17 .": "ends before",
    "4:17 . . .": "continues after",
    "4:17 . 4:18 .": "ends before",
    "4:17  . .": "is neither a neuron",
    "4:17\t. .": "is neither a neuron",
    "4:17 4:17 . . .": "split twice",
    "4:17 . 1:2 4:17 . . .": "split twice",
    "4 . .": "is neither a neuron",
    "4: . .": "is neither a neuron",
    ":4 . .": "is neither a neuron",
    "4:1:7 . .": "is neither a neuron",
    "-4:17 . .": "is neither a neuron",
    "4:-17 . .": "is neither a neuron",
    "+4:17 . .": "is neither a neuron",
    "4:1_7 . .": "is neither a neuron",
    "4:1.0 . .": "is neither a neuron",
    "4:1e3 . .": "is neither a neuron",
    "04:17 . .": "is neither a neuron",
    "4:017 . .": "is neither a neuron",
    "٤:١٧ . .": "is neither a neuron",
    "4:² . .": "is neither a neuron",
    "x . .": "is neither a neuron",
    "..": "is neither a neuron",
    f"4:{10**40} . .": "is neither a neuron",
    f"{'9' * 6000}:1 . .": "is neither a neuron",
    "\0 . .": "is neither a neuron",
}


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: repr(text[:12]))
def test_what_is_no_tree_is_an_error(text: str):
    with pytest.raises(ValueError, match=MALFORMED[text]) as caught:
        list(leaves_of(text))
    assert len(str(caught.value)) < 100


def test_no_word_of_a_tree_can_be_left_out_or_come_twice():
    words = str(random_tree(3, splits=12)).split(" ")
    for number in range(len(words)):
        for changed in (words[:number] + words[number + 1 :], [*words[:number], words[number], *words[number:]]):
            with pytest.raises(ValueError, match=r"ends before|continues after|split twice"):
                list(leaves_of(" ".join(changed)))


def test_a_tree_as_deep_as_a_file_can_hold_takes_no_more_memory_than_its_text():
    start = time.monotonic()
    deep = leaves_of(" ".join(f"1:{n}" for n in range(WORDS)))
    with pytest.raises(ValueError, match="ends before"):
        list(deep)
    leftmost = leaves_of(" ".join([*(f"1:{n}" for n in range(WORDS)), *[LEAF] * (WORDS + 1)]))
    assert len(next(leftmost)) == WORDS
    rightmost = leaves_of(" ".join([*(f"1:{n} {LEAF}" for n in range(WORDS)), LEAF]))
    assert [len(next(rightmost)) for _ in range(100)] == [n + 1 for n in range(100)]
    assert time.monotonic() - start < 20
