"""Branch and bound over the inputs: what it proves is proved, for all cases at once, and its trees prove it again."""

import copy
import itertools
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain.bounds.box import box_between, containing_exact, input_box
from certtrain.bounds.rounding import arithmetic_named
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.bounds.supported import checked_graph
from certtrain.branching import examples, input_bounds, inputs
from certtrain.branching.alternation import first_outcome
from certtrain.branching.examples import BoxedExample, check_trees, decide_example
from certtrain.branching.input_domains import InputProblem
from certtrain.branching.inputs import InputSearch, unproved_boxes
from certtrain.branching.tree import leaves_of
from certtrain.properties.cases import exact_box
from certtrain.runtime.deadline import Deadline
from helpers.deadlines import CountedDeadline
from helpers.sampling import points_inside

REAL = arithmetic_named("real")
SETTINGS = replace(VERDICT_SETTINGS, rounding=REAL, domains=100)
ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "leaky": lambda: nn.LeakyReLU(0.1)}


def network(seed: int, activation: str = "relu", size: int = 3, classes: int = 3) -> nn.Sequential:
    """A network of a few inputs with two hidden layers, in float64."""
    act = ACTIVATIONS[activation]
    layers = [nn.Linear(size, 12), act(), nn.Linear(12, 12), act(), nn.Linear(12, classes)]
    generator = Generator().manual_seed(seed)
    model = nn.Sequential(*layers).double().eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.requires_grad_(False)


def problem_of(model: nn.Module, margins: list[float], size: int = 3, seed: int = 0) -> InputProblem:
    """The unit box, and two functions for each margin, which is the least value of their larger one at many inputs."""
    lower, upper = torch.zeros(1, size).double(), torch.ones(1, size).double()
    outputs = model(points_inside(lower[0], upper[0], 20_000)).detach()
    generator = Generator().manual_seed(seed)
    cases = []
    for margin in margins:
        functions = torch.randn(2, outputs.shape[1], generator=generator, dtype=torch.float64)
        least = (outputs @ functions.T).amax(1).min()
        cases.append((functions, torch.full((2,), margin).double() - least))
    return InputProblem.of(checked_graph(model), lower, upper, cases, REAL)


def seen_values(model: nn.Module, problem: InputProblem, count: int = 50_000) -> Tensor:
    """The largest function of each case (P, C) at many inputs."""
    x = points_inside(problem.lower[0], problem.upper[0], count)
    values = model(x) @ problem.functions.T + problem.offsets
    return values[:, problem.cases].amax(2)


# --- proofs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("keep_tree", [False, True])
def test_all_cases_are_proved_together(activation: str, keep_tree: bool):
    model = network(1, activation)
    problem = problem_of(model, [0.1, 0.5, 2.0])
    outcome = InputSearch(problem, SETTINGS, keep_tree=keep_tree).run()
    assert outcome.proved
    assert outcome.domains > 1 or activation == "sigmoid"
    least = float(seen_values(model, problem).min())
    assert 0 < outcome.bound <= least
    assert (outcome.bound == inputs.ABOVE_ZERO) == (not keep_tree)


@pytest.mark.parametrize("keep_tree", [False, True])
def test_one_violated_case_among_others_is_never_proved(keep_tree: bool):
    model = network(2)
    problem = problem_of(model, [0.5, -1e-3, 1.0])

    def falsifies(x: Tensor) -> bool:
        values = (model(x) @ problem.functions.T + problem.offsets)[:, problem.cases].amax(2)
        return bool((values <= 0).any())

    found = InputSearch(problem, SETTINGS, falsifies, keep_tree=keep_tree).run()
    assert found.falsified
    assert not found.proved
    blind = InputSearch(problem, replace(SETTINGS, domains=30), keep_tree=keep_tree).run()
    assert not blind.proved
    assert blind.open > 0


def test_cutting_off_what_cannot_violate_needs_fewer_domains():
    problem = problem_of(network(6), [1.0, 2.0])
    cut, whole = (InputSearch(problem, SETTINGS, keep_tree=keep).run() for keep in (False, True))
    assert cut.proved
    assert whole.proved
    assert cut.domains < whole.domains


def test_boxes_of_a_domain_hold_in_its_parts_and_save_work(monkeypatch: pytest.MonkeyPatch):
    problem, bound = problem_of(network(6), [1.0]), list[int]()
    plain = input_bounds.tighter_ends

    def counted(layer: nn.Module, prefix: object, box: object, *options: object) -> object:
        bound.append(int(((box.lower < 0) & (box.upper > 0)).sum()))
        return plain(layer, prefix, box, *options)

    monkeypatch.setattr(input_bounds, "tighter_ends", counted)
    assert InputSearch(problem, SETTINGS, keep_tree=True).run().proved
    with_parents = sum(bound)
    bound.clear()
    with_boxes = inputs.bounded
    monkeypatch.setattr(
        inputs, "bounded", lambda p, domains, *a, **k: with_boxes(p, domains._replace(boxes=()), *a, **k)
    )
    assert InputSearch(problem, SETTINGS, keep_tree=True).run().proved
    assert with_parents < sum(bound)


def test_the_bound_of_a_tree_holds_for_cases_that_were_closed_before_the_others():
    problem = problem_of(network(6), [1.0])
    count = len(problem.offsets)
    constant = torch.zeros(1, problem.functions.shape[1]).double()
    several = replace(
        problem,
        functions=torch.cat([problem.functions, constant]),
        offsets=torch.cat([problem.offsets, torch.full((1,), 1e-9).double()]),
        cases=torch.cat([problem.cases, torch.full((1, problem.cases.shape[1]), count)]),
    )
    outcome = InputSearch(several, SETTINGS, keep_tree=True).run()
    assert outcome.proved
    assert outcome.domains > 1
    assert outcome.bound <= 1e-9 < InputSearch(problem, SETTINGS, keep_tree=True).run().bound


# --- what ends a search early ----------------------------------------------------------------------------


def test_limits_end_the_search_and_nothing_is_proved():
    problem = problem_of(network(6), [1.0])
    whole = InputSearch(problem, SETTINGS).run()
    assert whole.proved
    few = InputSearch(problem, replace(SETTINGS, domains=2)).run()
    assert whole.domains > few.domains >= 2
    assert not few.proved
    assert few.open > 0
    assert not InputSearch(problem, replace(SETTINGS, memory=1)).run().proved


@pytest.mark.parametrize("checks", [0, 1, 2, 5, 10, 20])
def test_a_deadline_at_any_check_proves_nothing_that_was_not_bounded(checks: int):
    problem = problem_of(network(2), [-1e-3])
    outcome = InputSearch(problem, replace(SETTINGS, deadline=CountedDeadline(checks))).run()
    assert not outcome.proved
    assert outcome.open > 0


def test_a_search_goes_on_where_a_deadline_stopped_it():
    problem = problem_of(network(6), [1.0])
    search, turns = InputSearch(problem, SETTINGS), 0
    while not search.ended:
        search.run(CountedDeadline(2))
        turns += 1
    assert turns > 2
    assert search.run().proved
    assert search.domains == InputSearch(problem, SETTINGS).run().domains


def test_a_box_without_width_is_not_split():
    model = network(3)
    problem = problem_of(model, [0.5])
    at = torch.full((1, 3), 0.3).double()
    value = float((model(at) @ problem.functions.T + problem.offsets).amax())
    fixed = replace(problem, lower=at, upper=at, offsets=problem.offsets - value)
    outcome = InputSearch(fixed, SETTINGS).run()
    assert not outcome.proved
    assert outcome.domains == 1
    assert InputSearch(replace(fixed, offsets=fixed.offsets + 1e-6), SETTINGS).run().proved
    assert fixed.free_inputs == 0


# --- searches that take turns ----------------------------------------------------------------------------


def test_the_search_that_can_decide_does_so_whatever_the_other_one_does():
    problem = problem_of(network(6), [1.0])
    hopeless = replace(SETTINGS, domains=1)
    for order in itertools.permutations((SETTINGS, hopeless)):
        outcome = first_outcome([lambda each=each: InputSearch(problem, each) for each in order], Deadline.after(60))
        assert outcome.proved
    assert not first_outcome([lambda: InputSearch(problem, hopeless)] * 2, Deadline.after(60)).proved
    assert not first_outcome([lambda: InputSearch(problem, SETTINGS)], CountedDeadline(0)).proved


# --- trees -----------------------------------------------------------------------------------------------


def tree_of(problem: InputProblem) -> str:
    outcome = InputSearch(problem, SETTINGS, keep_tree=True).run()
    assert outcome.proved
    return str(outcome.tree)


def test_the_leaves_of_a_tree_are_proved_again_and_cover_the_box():
    problem = problem_of(network(6), [1.0])
    text = tree_of(problem)
    leaves = list(leaves_of(text))
    assert unproved_boxes(problem, leaves, SETTINGS) == 0
    ends = [inputs._ends(problem, path) for path in leaves]
    assert sum(float((upper - lower).prod()) for lower, upper in ends) == pytest.approx(1.0)
    x = points_inside(problem.lower[0], problem.upper[0], 500)
    held = torch.stack([((x >= lower) & (x <= upper)).all(1) for lower, upper in ends])
    assert bool(held.any(0).all())


def test_leaves_of_a_false_claim_are_not_proved():
    model = network(6)
    text = tree_of(problem_of(model, [1.0]))
    assert unproved_boxes(problem_of(model, [-1.0]), leaves_of(text), SETTINGS) > 0


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "x3:0.5 . .": "input 3 cannot be cut at 0.5 in its domain",
        "x0:1.0 . .": "input 0 cannot be cut at 1.0 in its domain",
        "x0:-0.5 . .": "input 0 cannot be cut at -0.5",
        "x0:0.5 x0:0.25 . . .": "input 0 cannot be cut at 0.25 in its domain",
        "x0:0.5 1:3 . . .": "it splits a neuron after an input on the same path",
    }.items(),
)
def test_splits_that_are_not_possible_are_refused(text: str, words: str):
    with pytest.raises(ValueError, match=words):
        unproved_boxes(problem_of(network(6), [1.0]), leaves_of(text), SETTINGS)


NO_CUTS = ["x0:nan", "x0:inf", "x0:1e999", "x0:1.2.3", "x:0.5", "x0:", "x-1:0.5", "x0:0x1p3", "X0:1.0"]


@pytest.mark.parametrize("word", NO_CUTS)
def test_words_that_are_no_cuts_are_refused(word: str):
    with pytest.raises(ValueError, match="is neither a neuron, like '4:17', nor a cut"):
        list(leaves_of(f"{word} . ."))


@pytest.mark.parametrize("value", [0.1, 1e-300, -2.5e17, 1 / 3, -0.0, 5e-324])
def test_a_value_is_read_as_it_was_written(value: float):
    tree = inputs.Tree()
    tree.split(0, inputs.Cut(17, value))
    paths = list(leaves_of(str(tree)))
    assert [float.hex(path[0][0].value) for path in paths] == [float.hex(value)] * 2
    assert [path[0][1] for path in paths] == [1, -1]


# --- examples --------------------------------------------------------------------------------------------


def sigmoid_example(margin: float) -> tuple[BoxedExample, int]:
    """An example of a network without rectifiers, whose margin over a box is about `margin`."""
    model = network(5, "sigmoid", classes=2).float()
    x, eps = torch.full((1, 3), 0.5), 0.5
    exact = copy.deepcopy(model).double()
    box = input_box(x.double(), eps)
    outputs = exact(points_inside(box.lower[0], box.upper[0], 20_000)).detach()
    with torch.no_grad():
        model[-1].bias[0] += float(margin - (outputs[:, 0] - outputs[:, 1]).min())
    graph = checked_graph(copy.deepcopy(model).double())
    return BoxedExample(model, graph, x, torch.tensor([0]), eps, "float32"), 2


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7, 0.9])
def test_small_parts_of_an_example_s_box_hold_its_exact_ends(at: float):
    """One end is much nearer to zero than the other, so a unit of the centre is much there."""
    example, classes = sigmoid_example(0.2)
    for share in 1 - torch.logspace(-14, -1, 200, dtype=torch.float64):
        x = torch.full((1, 3), at)
        own = replace(example, x=x, eps=float(x[0, 0].double() * share))
        problem = own.input_problem(1, classes, FLOAT32)
        part = containing_exact(box_between(problem.lower, 2 * problem.lower))
        assert Fraction(float(part.lower[0, 0])) <= exact_box(x, own.eps)[0][0]


FLOAT32 = replace(SETTINGS, rounding=arithmetic_named("float32"))


def test_an_example_without_rectifiers_is_certified_by_splits_of_inputs():
    example, classes = sigmoid_example(0.005)
    result = decide_example(example, classes, FLOAT32)
    assert result.proved
    assert result.trees[1].startswith("x")
    assert check_trees(example, classes, result.trees, result.margin, FLOAT32) is None
    assert "could not be proved" in str(check_trees(example, classes, result.trees, result.margin + 1.0, FLOAT32))


def test_a_falsifiable_example_gets_a_counterexample():
    example, classes = sigmoid_example(-0.05)
    result = decide_example(example, classes, FLOAT32)
    assert not result.proved
    assert result.counterexample is not None


def test_many_inputs_are_not_split(monkeypatch: pytest.MonkeyPatch):
    example, classes = sigmoid_example(0.005)
    monkeypatch.setattr(examples, "FEW_INPUTS", 2)
    assert not decide_example(example, classes, FLOAT32).proved
