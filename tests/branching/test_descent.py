"""Descents from minimisers of bounds: they stay in the box, and find counterexamples that minimisers alone miss."""

import pytest
import torch
from torch import Tensor, nn

from certtrain.branching import search as search_module
from certtrain.branching.descent import descended
from certtrain.branching.problem import Problem
from certtrain.branching.search import BranchAndBound
from helpers.branching_problems import NETWORKS, hard_problem, network, pixels, root_of, samples_around, settings_of

TWO = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)


@torch.no_grad()
def values(problem: Problem, inputs: Tensor) -> Tensor:
    return (problem.run(inputs)[0] @ problem.functions.T + problem.offsets).amax(1)


def below_zero(problem: Problem, inputs: Tensor) -> bool:
    return bool((values(problem, inputs.double()) < 0).any())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_descent_stays_in_the_box_and_never_ends_higher(name: str):
    problem = root_of(network(name, 1), pixels(1), 0.1, functions=TWO).in_float32()
    start, inputs = problem.prefix.start, samples_around(pixels(1), 0.1, 60)
    found = descended(problem, inputs)
    assert bool(((found >= start.lower) & (found <= start.upper)).all())
    before, after = values(problem, inputs), values(problem, found)
    assert bool((after <= before + 1e-5).all())
    assert float((before - after).mean()) > 0.001


def test_an_input_that_does_not_vary_stays_where_it_is():
    problem = root_of(network("mlp", 1), pixels(1).round(), 0.0).in_float32()
    assert bool((descended(problem, pixels(1).round().expand(3, -1, -1, -1)) == pixels(1).round()).all())


def test_descents_find_counterexamples_that_minimisers_miss(monkeypatch: pytest.MonkeyPatch):
    domains = {16: 0, 0: 0}
    for descents in domains:
        monkeypatch.setattr(search_module, "DESCENTS", descents)
        for seed in (0, 1, 2, 4):
            problem = hard_problem(seed, -0.002)
            search = BranchAndBound(problem, settings_of(problem), lambda x, p=problem: below_zero(p, x))
            outcome = search.run()
            assert outcome.falsified
            domains[descents] += outcome.domains
    assert domains[16] < domains[0] / 2


@pytest.mark.parametrize("layer", [nn.ReLU, nn.LeakyReLU, nn.ELU])
def test_layers_that_work_in_place_overwrite_nothing(layer: type[nn.Module]):
    layers = nn.Sequential(
        layer(inplace=True), nn.Flatten(), nn.Linear(16, 8), nn.Sigmoid(), layer(inplace=True), nn.Linear(8, 3)
    )
    problem = root_of(layers.eval(), pixels(1), 0.1).in_float32()
    inputs = samples_around(pixels(1), 0.1, 20)
    expected, kept = layers(inputs.clone()), inputs.clone()
    logits, values = problem.run(inputs)
    assert bool((logits == expected).all())
    assert bool((inputs == kept).all())
    assert bool((values[:, :16] == kept.flatten(1)).all())
    descended(problem, inputs)
