"""Complete verification of one example: one tree for each other class."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from certtrain.attack.criterion import Misclassification, batch_of
from certtrain.attack.state import AttackState
from certtrain.bounds.box import PIXEL_RANGE, input_box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.linear import Prefix
from certtrain.bounds.settings import Settings
from certtrain.branching.alternation import BranchingSearch, Falsifies, Outcome, first_outcome
from certtrain.branching.boxes import crown_prefix, refined_prefix, tightened_prefix
from certtrain.branching.input_domains import InputProblem
from certtrain.branching.inputs import FEW_INPUTS, InputSearch, unproved_boxes
from certtrain.branching.problem import Problem
from certtrain.branching.search import BranchAndBound, by_few_domains, unproved_leaves
from certtrain.branching.tree import leaves_of


@dataclass(frozen=True)
class CompleteResult:
    """The result of complete verification for one example.

    margin: if the example is certified, the least of the leaves' lower bounds of
        logit[y] − logit[j], which is above zero; else None. trees: as text, by class
        j. counterexample: (1, …), or None.
    """

    margin: float | None
    trees: Mapping[int, str]
    counterexample: Tensor | None = None

    @property
    def proved(self) -> bool:
        """Whether the trees certify the example."""
        return self.margin is not None


@dataclass(frozen=True)
class BoxedExample:
    """One example (1, …) with its label (1,) and the radius of its box; `graph` is the network in float64."""

    model: nn.Module
    graph: LayerGraph
    x: Tensor
    label: Tensor
    eps: float
    arithmetic: str

    def prefix(self, settings: Settings) -> Prefix:
        """The records of all layers, with the boxes that the trees start from."""
        box = input_box(self.x.double(), self.eps)
        return tightened_prefix(self.graph, box, settings)

    def input_problem(self, other: int, classes: int, settings: Settings, least: float = 0.0) -> InputProblem:
        """The problem for logit[label] − logit[other] − least, for branch and bound over the inputs."""
        assert settings.rounding is not None  # no verdict without it
        # Rounded once, to a unit of their own size: this is what is added to the small boxes that touch these ends.
        lower, upper = ((self.x.double() + change).clamp(*PIXEL_RANGE) for change in (-self.eps, self.eps))
        function = margin_function(lower, int(self.label), other, classes)
        cases = [(function, function.new_tensor([-least]))]
        return InputProblem.of(self.graph, lower, upper, cases, settings.rounding)

    def searches(
        self, prefix: Prefix, other: int, classes: int, settings: Settings, falsifies: Falsifies
    ) -> Iterator[Callable[[], BranchingSearch]]:
        """The searches for a proof against one other class, `other`; `prefix` is that of the whole box."""
        problem = margin_problem(prefix, int(self.label), other, classes, settings)
        yield lambda: BranchAndBound(problem, settings, falsifies)
        of_inputs = self.input_problem(other, classes, settings)
        if of_inputs.free_inputs <= FEW_INPUTS:
            yield lambda: InputSearch(of_inputs, settings, falsifies, keep_tree=True)

    def others(self, classes: int) -> list[int]:
        """All classes but the label."""
        return [j for j in range(classes) if j != int(self.label)]

    def counterexample(self, inputs: Tensor) -> Tensor | None:
        """One of `inputs` (D, …), rounded into the box, that inference misclassifies, or None.

        It must be misclassified in its batch and in a batch of one.
        """
        copies = batch_of(self.x.expand(len(inputs), *self.x.shape[1:]), self.label.expand(len(inputs)), self.eps)
        criterion = Misclassification(self.model, self.arithmetic)
        state = AttackState(criterion, copies, torch.zeros_like(copies.rows), lambda: False)
        state.try_inputs(copies, copies.project(inputs.to(self.x.dtype)))
        found = state.falsified.nonzero().flatten()
        return state.adversarial[found[:1]] if len(found) else None


def margin_problem(
    prefix: Prefix, label: int, other: int, classes: int, settings: Settings, least: float = 0.0
) -> Problem:
    """The problem for logit[label] − logit[other] − least."""
    function = margin_function(prefix.start.radius, label, other, classes)
    return Problem(prefix, function, function.new_tensor([-least]), settings.rounding)


def margin_function(like: Tensor, label: int, other: int, classes: int) -> Tensor:
    """logit[label] − logit[other] as a function (1, K) of the logits, of the type of `like`."""
    each = torch.eye(classes).to(like)
    return (each[label] - each[other]).unsqueeze(0)


def decide_example(example: BoxedExample, classes: int, settings: Settings) -> CompleteResult:
    """Certify the example or find a counterexample; neither, if the settings' deadline or `domains` ends the search."""
    trees, margins, found = dict[int, str](), list[float](), list[Tensor]()

    def falsifies(inputs: Tensor) -> bool:
        counterexample = example.counterexample(inputs)
        found.extend([] if counterexample is None else [counterexample])
        return counterexample is not None

    def by_refined(other: int, left: Settings) -> Outcome:
        searches = list(example.searches(refined(), other, classes, left, falsifies))
        return first_outcome(searches, settings.deadline)

    box, left = input_box(example.x.double(), example.eps), settings
    crown = crown_prefix(example.graph, box, settings)
    refined = cache(lambda: refined_prefix(example.graph, box, crown, settings))
    for other in example.others(classes):
        if settings.deadline.over():
            return CompleteResult(None, {})
        outcome = by_few_domains(margin_problem(crown, int(example.label), other, classes, settings), left, falsifies)
        if not (outcome.proved or outcome.falsified):
            outcome = by_refined(other, left)
        if not outcome.proved:
            return CompleteResult(None, {}, found[0] if found else None)
        margins.append(outcome.bound)
        trees[other] = str(outcome.tree)
        left = replace(left, domains=max(1, left.domains - outcome.domains))
    return CompleteResult(min(margins, default=None), trees)  # a network with one class has no margin


def check_trees(
    example: BoxedExample, classes: int, trees: Mapping[int, str], least: float, settings: Settings
) -> str | None:
    """The reason why the trees do not prove that all margins are at least `least`; None if every leaf is proved again.

    Raises ValueError for a text that is not a tree.
    """
    if sorted(trees) != example.others(classes):
        return "it does not have one tree for each other class"
    prefix = example.prefix(settings)
    for other, text in sorted(trees.items()):
        if text.startswith("x"):
            unproved = unproved_boxes(example.input_problem(other, classes, settings, least), leaves_of(text), settings)
        else:
            problem = margin_problem(prefix, int(example.label), other, classes, settings, least)
            unproved = unproved_leaves(problem, leaves_of(text), settings)
        if unproved:
            return f"{unproved:,} of the leaves against class {other} could not be proved here"
    return None
