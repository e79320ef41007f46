"""Complete verification of one example: a tree for each class that bounds alone leave open."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from certtrain.attack.criterion import Misclassification, batch_of
from certtrain.attack.state import AttackState
from certtrain.bounds.box import input_box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.linear import Prefix
from certtrain.bounds.settings import Settings
from certtrain.branching.boxes import tight_prefix
from certtrain.branching.problem import Problem
from certtrain.branching.search import branch_and_bound, reproved
from certtrain.branching.tree import leaves_of


@dataclass(frozen=True)
class CompleteResult:
    """What complete verification has found of one example.

    margin: if the example is proved robust, the least of the leaves' lower
        bounds of logit[y] − logit[j], which is above zero; else None. trees: as
        text, by class j. counterexample: (1, …), or None.
    """

    margin: float | None
    trees: Mapping[int, str]
    counterexample: Tensor | None = None

    @property
    def proved(self) -> bool:
        """Whether the trees prove it."""
        return self.margin is not None


@dataclass(frozen=True)
class BoxedExample:
    """One example (1, …) with its label (1,) and the radius of its box; `graph` is the network's in float64."""

    model: nn.Module
    graph: LayerGraph
    x: Tensor
    label: Tensor
    eps: float
    arithmetic: str

    def prefix(self, settings: Settings) -> Prefix:
        """The records of all layers, with the boxes that trees start from."""
        box = input_box(self.x.double(), self.eps, rounding=settings.rounding)
        return tight_prefix(self.graph, box, settings)

    def others(self, classes: int) -> list[int]:
        """The classes that the label has a margin to."""
        return [j for j in range(classes) if j != int(self.label)]

    def counterexample(self, inputs: Tensor) -> Tensor | None:
        """One of the inputs (D, …), rounded into the box, if plain inference misclassifies it, in a batch and alone."""
        copies = batch_of(self.x.expand(len(inputs), *self.x.shape[1:]), self.label.expand(len(inputs)), self.eps)
        criterion = Misclassification(self.model, self.arithmetic)
        state = AttackState(criterion, copies, torch.zeros_like(copies.rows), lambda: False)
        state.try_out(copies, copies.project(inputs.to(self.x.dtype)))
        found = state.falsified.nonzero().flatten()
        return state.adversarial[found[:1]] if len(found) else None


def margin_problem(
    prefix: Prefix, label: int, other: int, classes: int, settings: Settings, least: float = 0.0
) -> Problem:
    """The problem for logit[label] − logit[other] − least."""
    each = torch.eye(classes).to(prefix.start.radius)
    function = (each[label] - each[other]).unsqueeze(0)
    return Problem(prefix, function, function.new_tensor([-least]), settings.rounding)


def decide_example(example: BoxedExample, classes: int, settings: Settings) -> CompleteResult:
    """Prove the example robust or find a counterexample; neither, where the settings' deadline or domains end it."""
    prefix, trees, margins, hits = example.prefix(settings), dict[int, str](), list[float](), list[Tensor]()

    def falsifies(inputs: Tensor) -> bool:
        found = example.counterexample(inputs)
        hits.extend([] if found is None else [found])
        return found is not None

    left = settings
    for other in example.others(classes):
        if settings.deadline.over():
            return CompleteResult(None, {})
        problem = margin_problem(prefix, int(example.label), other, classes, settings)
        outcome = branch_and_bound(problem, left, falsifies=falsifies)
        if not outcome.proved:
            return CompleteResult(None, {}, hits[0] if hits else None)
        margins.append(outcome.bound)
        trees[other] = str(outcome.tree)
        left = replace(left, domains=max(1, left.domains - outcome.domains))
    return CompleteResult(min(margins, default=None), trees)  # of one class alone nothing is claimed


def check_trees(
    example: BoxedExample, classes: int, trees: Mapping[int, str], least: float, settings: Settings
) -> str | None:
    """What is wrong with trees that should prove the margins to be `least`; None if every leaf is proved again.

    Raises ValueError for a text that is no tree.
    """
    if sorted(trees) != example.others(classes):
        return "its trees are not those of all other classes"
    prefix = example.prefix(settings)
    for other, text in sorted(trees.items()):
        problem = margin_problem(prefix, int(example.label), other, classes, settings, least)
        unproved = reproved(problem, leaves_of(text), settings)
        if unproved:
            return f"{unproved:,} of the leaves against class {other} could not be proved here"
    return None
