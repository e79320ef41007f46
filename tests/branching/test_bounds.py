"""Bounds of domains: no input that has a domain's signs goes below them, whatever the slopes and multipliers are."""

from fractions import Fraction

import pytest
import torch
from torch import Generator, Tensor

from certtrain.bounds.linear import backsubstitute
from certtrain.branching.bounds import RelaxedDomains, domain_bounds, optimised
from certtrain.branching.domains import Domains
from certtrain.branching.problem import Problem
from certtrain.branching.search import BranchAndBound
from helpers.branching_problems import (
    CLASSES,
    NETWORKS,
    domain,
    inputs_with_signs,
    network,
    pixels,
    root_of,
    samples_around,
    settings_of,
    some_signs,
)

EVERY = pytest.mark.parametrize("name", NETWORKS)
EPS, SAMPLES = 0.25, 3000
TWO = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)


def variables_of(found: Domains) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return found.alphas.double(), found.betas.double(), found.weights.double(), found.shares.double()


@torch.no_grad()
def assert_below(problem: Problem, found: Domains, values: Tensor, inputs: Tensor) -> int:
    """One domain's bounds of each function, and of a sum of all, are below `values` (N, S) wherever signs fit.

    Returns how many inputs fit.
    """
    fits = inputs_with_signs(inputs, found.signs)
    for weights in (found.weights, *torch.eye(values.shape[1]).unsqueeze(1)):
        relaxed, variables = RelaxedDomains.of(problem, found), variables_of(found._replace(weights=weights))
        relaxed.project(*variables)
        bound = relaxed.bounds(*variables)
        assert bool(bound.isfinite().all())
        summed = values @ (variables[2][0] / variables[2].sum())
        assert bool((summed[fits] >= bound).all()), f"by {float((bound - summed[fits]).max()):g}"
        assert domain_bounds(problem, found._replace(weights=weights)).item() == bound.item()
    return int(fits.sum())


def tried(problem: Problem, inputs: Tensor, values: Tensor, seed: int) -> int:
    """Domains of some signs, first random slopes and multipliers and then searched ones; how many inputs fit."""
    generator, count = Generator().manual_seed(seed), 0
    for decided in (1, 2, 4, 8):
        signs = some_signs(problem, inputs[int(values[:, 0].argmin()) if decided == 2 else decided], decided, generator)
        for strength in (0.1, 3.0):
            count += assert_below(problem, domain(problem, signs, generator, strength), values, inputs)
        search = BranchAndBound(problem, settings_of(problem))
        count += assert_below(problem, optimised(search.fast, search.first(signs), 25), values, inputs)
    return count


@torch.no_grad()
@EVERY
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_input_with_the_signs_is_below_the_bound(name: str, seed: int):
    x = pixels(seed)
    problem = root_of(network(name, seed), x, EPS, functions=TWO)
    logits, inputs = problem.run(samples_around(x, EPS, SAMPLES).double())
    count = tried(problem, inputs, logits @ TWO.T + 1e-12 * (1 + logits.abs().amax(1, keepdim=True)), seed)
    assert count > 100
    assert bool(problem.unstable.any())


@torch.no_grad()
@EVERY
@pytest.mark.parametrize(("offset", "eps"), [(1e6, 1e-6), pytest.param(0.0, 0.05, marks=pytest.mark.slow)])
def test_what_float32_computes_with_the_signs_is_not_below_the_bound(name: str, offset: float, eps: float):
    x = pixels(3)
    problem = root_of(network(name, 3, offset), x, eps, "float32", TWO)
    logits, inputs = problem.in_float32().run(samples_around(x, eps, 300))
    assert tried(problem, inputs, logits.double() @ TWO.T, 3) > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp", "batch norm", "residual"])
def test_what_float32_computes_goes_below_the_real_bounds(name: str):
    """So its rounding is felt, and the test above can fail."""
    wrong = 0
    for seed in range(3, 9):
        x = pixels(seed)
        problem = root_of(network(name, seed, 1e6), x, 1e-6, "real", TWO)
        logits, _ = problem.in_float32().run(samples_around(x, 1e-6, 300))
        signs = torch.zeros(1, problem.neurons, dtype=torch.int8)
        found = domain(problem, signs, Generator().manual_seed(seed), 0.0)
        summed = logits.double() @ TWO.T @ (found.weights[0] / found.weights.sum())
        wrong += int((summed < RelaxedDomains.of(problem, found).bounds(*variables_of(found))).sum())
    assert wrong > 0


# --- multipliers, by hand --------------------------------------------------------------------------------


def by_hand() -> tuple[Problem, Domains]:
    """f = x − relu(x − 1/2) on [0, 1], and the domain where x ≥ 1/2: there f is 1/2."""
    layers = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, CLASSES)).eval()
    with torch.no_grad():
        layers[0].weight[:], layers[0].bias[:] = torch.tensor([[1.0], [1.0]]), torch.tensor([-0.5, 1.0])
        layers[2].weight[:] = torch.tensor([[-1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
        layers[2].bias[:] = torch.tensor([-1.0, 0.0, 0.0])
    problem = root_of(layers, torch.tensor([[0.5]]), 0.5)
    return problem, domain(problem, torch.tensor([[1, 0]]), Generator(), 0.0)


@pytest.mark.parametrize(("sign", "beta", "expected"), [
    (1, 0.0, 0.5), (1, 1.0, 0.0), (-1, 0.0, 0.0), (-1, 1.0, -0.5), (0, 1.0, 0.0)
])  # fmt: skip
def test_a_multiplier_by_hand(sign: int, beta: float, expected: float):
    """On x ≥ 1/2 it takes β (x − 1/2) off f = 1/2; on x ≤ 1/2 it adds as much to f = x, and that is x + β (x − 1/2)."""
    problem, found = by_hand()
    assert problem.unstable.tolist() == [True, False]
    betas = found.betas.clone()
    betas[0, 0] = beta / float(problem.scale[0])
    found = found._replace(signs=torch.tensor([[sign, 0]], dtype=torch.int8), betas=betas)
    assert domain_bounds(problem, found).item() == pytest.approx(expected, abs=1e-9)


def test_what_rounds_where_a_multiplier_is_added_is_taken_off():
    """By a prefix without any other rounding: a box without width at 0, no rounding error, and a function that is 0."""
    problem = root_of(network("mlp", 0), pixels(0), 0.0)
    start = problem.prefix.start._replace(
        centre=torch.zeros_like(problem.prefix.start.centre), radius=torch.zeros_like(problem.prefix.start.radius)
    )
    records = [record._replace(rounding_error=None) for record in problem.prefix.records]
    number = problem.numbers[0]
    added = {number: torch.full((1, 1, 8), 1e9, dtype=torch.float64)}
    functions = torch.zeros(1, 1, CLASSES, dtype=torch.float64)
    prefix = problem.prefix._replace(records=records, start=start)
    rounded, plain = (
        backsubstitute(prefix, functions, added=added, rounding=rounding).item()
        for rounding in (problem.rounding, None)
    )
    box = records[number].box
    assert box is not None
    largest = (box.centre.abs() + box.radius).sum().item()
    assert Fraction(plain) - Fraction(rounded) >= Fraction(1e9) * Fraction(largest) * 8 * Fraction(2.0**-53)


# --- the search for slopes and multipliers ---------------------------------------------------------------


def searching(name: str, seed: int, arithmetic: str = "real") -> tuple[BranchAndBound, Tensor]:
    x = pixels(seed)
    problem = root_of(network(name, seed), x, EPS, arithmetic)
    return BranchAndBound(problem, settings_of(problem)), problem.run(samples_around(x, EPS, 50).double())[1]


@EVERY
def test_more_steps_never_give_a_worse_bound(name: str):
    search, inputs = searching(name, 5)
    signs = some_signs(search.problem, inputs[0], 3, Generator().manual_seed(5))
    first = search.first(signs)
    bounds = [optimised(search.fast, first, steps).bounds.item() for steps in (0, 1, 2, 5, 10, 20, 40)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0] or bounds[0] > 0 or name == "max pool"  # which has hardly an open unit there


@EVERY
def test_a_domain_gets_the_bound_that_it_gets_alone(name: str):
    """What closes early, and with what else it is searched, decides nothing but the last digits of float32."""
    search, inputs = searching(name, 6)
    generator = Generator().manual_seed(6)
    signs = torch.cat([some_signs(search.problem, inputs[row], row % 7, generator) for row in range(12)])
    shifted = search.fast
    shifted.offsets = shifted.offsets - 10  # none of them closes
    shifted.offsets = shifted.offsets - optimised(shifted, search.first(signs), 10).bounds.median() - 1e-5  # half do
    together = optimised(shifted, search.first(signs), 10)
    alone = [optimised(shifted, search.first(signs[row : row + 1]), 10).bounds.item() for row in range(12)]
    torch.testing.assert_close(together.bounds, torch.tensor(alone), rtol=1e-3, atol=1e-4)
    assert 0 < int((together.bounds > 0).sum()) < 12


@EVERY
def test_a_closed_domain_stays_closed_in_its_parts_and_children_are_not_below_their_parents(name: str):
    search, inputs = searching(name, 7)
    generator = Generator().manual_seed(7)
    parents = search.bound(search.first(some_signs(search.problem, inputs[0], 2, generator)), 20)
    left = [unit for unit in search.problem.unstable.nonzero().flatten().tolist() if parents.signs[0, unit] == 0]
    for unit in left[:6]:
        for sign in (1, -1):
            signs = parents.signs.clone()
            signs[0, unit] = sign
            child = search.bound(parents._replace(signs=signs), 1)
            assert child.bounds.item() >= parents.bounds.item()
