"""Splits of neurons and of inputs, the MILP and the enumeration of all patterns, on hundreds of tiny networks.

Each network's function is shifted so that its least value is a number that the test chooses, down to nothing at all.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certtrain.bounds.box import box_between, box_ends
from certtrain.bounds.rounding import arithmetic_named
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.bounds.supported import checked_graph
from certtrain.branching.boxes import tightened_prefix
from certtrain.branching.examples import BoxedExample, decide_example
from certtrain.branching.input_domains import InputProblem
from certtrain.branching.inputs import InputSearch
from certtrain.branching.problem import Problem
from certtrain.branching.search import BranchAndBound
from certtrain.properties.cases import Case
from certtrain.verdicts import correct_examples
from helpers.enumeration import Least, least, random_network

SHAPES = [(2, (3, 3)), (2, (6,)), (3, (4,)), (3, (3, 2)), (2, (2, 2, 2))]
MARGINS = [1.0, 1e-2, 1e-4, 1e-6, 1e-9, 0.0, -1e-9, -1e-6, -1e-4, -1e-2]
POINTS, PARTS = 100, 2  # each part has every shape with every margin
REAL = arithmetic_named("real")
SETTINGS = replace(VERDICT_SETTINGS, iterations=3, rounding=REAL)
# What the enumeration, in float64, may be wrong by, and what the solver takes off.
ENUMERATED, SOLVED = 1e-10, 1e-3


def cases(part: int) -> Iterator[tuple[nn.Sequential, Case, float]]:
    """Networks, a case of each, and the least value of its function."""
    generator = torch.Generator().manual_seed(part)
    for number in range(POINTS // PARTS):
        inputs, hidden = SHAPES[number % len(SHAPES)]
        network = random_network(generator, inputs, hidden, 2)
        centre = torch.rand(inputs, generator=generator, dtype=torch.float64)
        lower, upper = centre - 0.5, centre + 0.5
        found = least(network, np.array([1.0, -1.0, 0.0]), lower.numpy(), upper.numpy())
        margin = MARGINS[(number // len(SHAPES)) % len(MARGINS)]
        function = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
        yield network, Case(lower, upper, function, torch.tensor([margin - found.value], dtype=torch.float64)), margin


def completed(network: nn.Sequential, case: Case, *, keep_tree: bool | None = None, planes: bool = False) -> str:
    """The verdict of branch and bound without another attack; over the inputs if `keep_tree` is given."""
    lower, upper = case.lower.unsqueeze(0), case.upper.unsqueeze(0)

    def attack(inputs: Tensor) -> bool:
        inside = inputs.double().clamp(lower, upper)
        return bool(case.violated_by(network(inside)).any())

    graph = checked_graph(network)
    if keep_tree is not None:
        problem = InputProblem.of(graph, lower, upper, [(case.functions, case.offsets)], REAL)
        found = InputSearch(problem, replace(SETTINGS, domains=200), attack, keep_tree=keep_tree).run()
        return "unsat" if found.proved else "sat" if found.falsified else "unknown"
    prefix = tightened_prefix(graph, box_between(lower, upper), SETTINGS)
    search = BranchAndBound(Problem(prefix, case.functions, case.offsets, REAL), SETTINGS, attack)
    if planes:
        search.use_planes()
    outcome = search.run()
    return "unsat" if outcome.proved else "sat" if outcome.falsified else "unknown"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_all_ways_agree_on_every_point(part: int):
    pytest.importorskip("scipy")
    from certtrain.properties.milp import minimum

    verdicts = set()
    for network, case, margin in cases(part):
        mine = completed(network, case)
        verdicts.add(mine)
        true = "unsat" if margin > 0 else "sat"
        assert mine == true or (mine == "unknown" and abs(margin) <= 1e-9), (mine, margin)
        by_planes = completed(network, case, planes=True)
        assert by_planes == true or (by_planes == "unknown" and abs(margin) <= 1e-9), (by_planes, margin)
        by_inputs = completed(network, case, keep_tree=bool(part % 2))
        assert by_inputs == true or (by_inputs == "unknown" and abs(margin) <= 1e-4), (by_inputs, margin)
        leaf_solution = minimum(network, case.lower.shape, case)
        assert leaf_solution.proved <= margin + ENUMERATED
        assert leaf_solution.reached >= margin - ENUMERATED
        assert abs(margin) <= SOLVED or (leaf_solution.proved > 0 if margin > 0 else leaf_solution.reached <= 0)
    assert verdicts >= {"unsat", "sat"}


def test_under_float32_a_margin_near_zero_may_stay_open_and_is_never_wrong():
    generator, verdicts = torch.Generator().manual_seed(7), []
    # What a thousand domains leave open here, ten times as many do too.
    settings = replace(SETTINGS, rounding=arithmetic_named("float32"), domains=1000)
    for number in range(42):
        margin, eps = [1e-2, 1e-4, 1e-6, 1e-7, 0.0, -1e-7, -1e-4][number % 7], 0.25
        network = random_network(generator, 2, (3, 3), 2).float()
        x = torch.rand(1, 2, generator=generator)
        with torch.no_grad():
            network[-1].bias[0] += margin - true_minimum(network, x, eps).value
        true = true_minimum(network, x, eps)
        graph = checked_graph(copy.deepcopy(network).double())
        found = decide_example(BoxedExample(network, graph, x, torch.tensor([0]), eps, "float32"), 2, settings)
        if found.proved:
            assert true.value > 0
        elif found.counterexample is not None:
            low, high = box_ends(x, eps)
            assert bool(((found.counterexample >= low) & (found.counterexample <= high)).all())
            assert not bool(correct_examples(network(found.counterexample), torch.tensor([0])))
        else:
            assert abs(true.value) < 1e-4
        verdicts.append((found.proved, found.counterexample is not None))
    assert set(verdicts) == {(True, False), (False, True), (False, False)}


def true_minimum(network: nn.Sequential, x: Tensor, eps: float) -> Least:
    """Of logit[0] − logit[1] over the box of x, in real numbers."""
    exact = x[0].double()
    lower, upper = (exact - eps).clamp(0, 1), (exact + eps).clamp(0, 1)
    return least(network, np.array([1.0, -1.0, 0.0]), lower.numpy(), upper.numpy())
