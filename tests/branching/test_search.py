"""Branch and bound: what it proves is proved, and whatever ends it early, nothing else is."""

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain.bounds.box import box_between
from certtrain.bounds.rounding import arithmetic_named
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.bounds.supported import checked_graph
from certtrain.branching import examples as points
from certtrain.branching import search
from certtrain.branching.boxes import tightened_prefix
from certtrain.branching.domains import Domains
from certtrain.branching.examples import BoxedExample, CompleteResult, decide_example
from certtrain.branching.leaves import leaf_solution
from certtrain.branching.problem import Problem
from certtrain.branching.search import BranchAndBound, Outcome, branch_and_bound, unproved_leaves
from certtrain.branching.tree import Tree, leaves_of
from helpers.branching_problems import (
    NETWORKS,
    inputs_with_signs,
    network,
    pixels,
    root_of,
    samples_around,
    settings_of,
)
from helpers.deadlines import CountedDeadline
from helpers.enumeration import least, random_network
from helpers.sampling import points_inside

REAL = arithmetic_named("real")
SETTINGS = replace(VERDICT_SETTINGS, iterations=3, rounding=REAL)
FUNCTION, DIFFERENCE = np.array([1.0, -1.0, 0.0]), torch.tensor([[1.0, -1.0]]).double()
ZERO, ONE = torch.zeros(1).double(), torch.ones(1).double()


def tiny(seed: int, margin: float, hidden: tuple[int, ...] = (3, 3)) -> tuple[nn.Sequential, Problem]:
    """A network of two inputs, and its problem for a function whose least value over the box is `margin`."""
    generator = Generator().manual_seed(seed)
    model = random_network(generator, 2, hidden, 2)
    centre = torch.rand(2, generator=generator, dtype=torch.float64)
    lower, upper = centre - 0.5, centre + 0.5
    value = least(model, FUNCTION, lower.numpy(), upper.numpy()).value
    return model, root_between(model, lower, upper, torch.tensor([[1.0, -1.0]]).double(), [margin - value])


def root_between(model: nn.Module, lower: Tensor, upper: Tensor, functions: Tensor, offsets: list[float]) -> Problem:
    prefix = tightened_prefix(checked_graph(model), box_between(lower[None], upper[None]), SETTINGS)
    return Problem(prefix, functions, torch.tensor(offsets, dtype=torch.float64), REAL)


@cache
def hard(seed: int, margin: float) -> tuple[nn.Sequential, Problem]:
    """A network of four inputs, and a function whose least value at many inputs of its box is `margin`."""
    generator = Generator().manual_seed(seed)
    model = random_network(generator, 4, (10, 10), 2)
    lower, upper = torch.zeros(4).double(), torch.ones(4).double()
    function = torch.tensor([[1.0, -1.0]]).double()
    with torch.no_grad():
        value = float((model(points_inside(lower, upper, 20_000)) @ function.T).min())
    return model, root_between(model, lower, upper, function, [margin - value])


HARD, CLEAR, BROKEN = (6, 7, 13), 0.5, -1e-3


# --- what ends a search early ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", HARD)
def test_a_limit_of_domains_is_kept_and_nothing_is_proved_before_all_are_closed(seed: int):
    problem = hard(seed, CLEAR)[1]
    whole = branch_and_bound(problem, SETTINGS, clips=False)  # which would need too few domains
    assert whole.proved
    for domains in (1, 2, whole.domains // 2, whole.domains - 2, whole.domains):
        outcome = branch_and_bound(problem, replace(SETTINGS, domains=domains), clips=False)
        assert outcome.domains <= domains + 1
        assert outcome.proved == (domains >= whole.domains)
        assert outcome.proved == (outcome.open == 0)


@pytest.mark.parametrize("domains", [1, 2, 9, 40])
def test_what_an_input_breaks_is_not_proved_by_any_number_of_domains(domains: int):
    outcome = branch_and_bound(hard(HARD[0], BROKEN)[1], replace(SETTINGS, domains=domains))
    assert not outcome.proved
    assert outcome.open > 0
    assert outcome.domains <= domains + 1


@pytest.mark.parametrize("seed", HARD)
def test_time_that_is_over_leaves_it_open(seed: int):
    problem = hard(seed, CLEAR)[1]
    outcomes = []
    for asked in (0, 60, 80, 100, 10**6):
        outcomes.append(branch_and_bound(problem, replace(SETTINGS, deadline=CountedDeadline(asked)), clips=False))
    assert not outcomes[0].proved
    assert outcomes[0].domains == 1
    assert [outcome.domains for outcome in outcomes] == sorted(outcome.domains for outcome in outcomes)
    assert outcomes[-1].proved
    assert all(outcome.proved == (outcome.domains == outcomes[-1].domains) for outcome in outcomes)


@pytest.mark.parametrize("seed", HARD)
def test_memory_that_is_full_leaves_it_open_and_little_memory_proves_the_same(seed: int):
    problem = hard(seed, CLEAR)[1]
    full = branch_and_bound(problem, replace(SETTINGS, memory=1))
    assert (full.proved, full.domains) == (False, 1)
    assert full.open == 1
    little, much = branch_and_bound(problem, replace(SETTINGS, memory=2000)), branch_and_bound(problem, SETTINGS)
    assert BranchAndBound(problem, replace(SETTINGS, memory=2000)).most < 10
    assert little.proved == much.proved is True
    assert (little.tree.leaves, little.bound) == (much.tree.leaves, pytest.approx(much.bound, rel=0.01))


def test_the_tree_of_a_search_that_ended_early_has_leaves_that_are_not_proved():
    problem = hard(HARD[0], CLEAR)[1]
    outcome = branch_and_bound(problem, replace(SETTINGS, domains=3))
    above = hard(HARD[0], BROKEN)[1]
    assert unproved_leaves(above, leaves_of(str(outcome.tree)), SETTINGS) > 0
    whole = branch_and_bound(problem, SETTINGS)
    assert unproved_leaves(problem, leaves_of(str(whole.tree)), SETTINGS) == 0
    assert unproved_leaves(problem, leaves_of(str(whole.tree)), replace(SETTINGS, memory=1000)) == 0


@pytest.mark.parametrize("seed", HARD)
def test_an_attack_that_succeeds_ends_the_search(seed: int):
    model, problem = hard(seed, BROKEN)
    seen: list[Tensor] = []

    def attack(inputs: Tensor) -> bool:
        seen.append(inputs.double())
        return bool((model(inputs.double()) @ problem.functions.T + problem.offsets <= 0).any())

    outcome = branch_and_bound(problem, SETTINGS, falsifies=attack)
    assert (outcome.falsified, outcome.proved) == (True, False)
    start = problem.prefix.start
    for inputs in seen:
        assert bool(((inputs >= start.lower - 1e-6) & (inputs <= start.upper + 1e-6)).all())


# --- what is no bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_domain_whose_bound_is_no_number_is_open(value: float, which: int, monkeypatch: pytest.MonkeyPatch):
    """Also where all others are closed."""
    problem, actual = hard(HARD[0], CLEAR)[1], search.domain_bounds
    calls = itertools.count()

    def spoilt(given: Problem, domains: Domains) -> Tensor:
        found = actual(given, domains)
        if given.rounding is not None and next(calls) > 0 and len(found) > 1:
            found[which] = value
        return found

    monkeypatch.setattr(search, "domain_bounds", spoilt)
    outcome = branch_and_bound(problem, replace(SETTINGS, domains=12), clips=False)
    assert next(calls) > 2
    assert not outcome.proved
    assert outcome.open > 0


def closed(bound: float) -> Outcome:
    return Outcome(bound, Tree(), open=0, domains=1, falsified=False)


@pytest.mark.parametrize("bound", [torch.nan, torch.inf, -torch.inf, 0.0, -1.0])
def test_a_point_is_not_proved_if_a_class_is_not(bound: float, monkeypatch: pytest.MonkeyPatch):
    found = decided_with([closed(0.5), closed(bound), closed(0.5)], monkeypatch)
    assert (found.proved, found.margin, found.trees) == (False, None, {})


@pytest.mark.parametrize("change", [{"open": 1}, {"falsified": True}])
def test_a_point_is_not_proved_while_a_leaf_is_open_or_an_input_falsifies_it(
    change: dict[str, int], monkeypatch: pytest.MonkeyPatch
):
    found = decided_with([closed(0.5), replace(closed(0.5), **change), closed(0.5)], monkeypatch)
    assert (found.proved, found.margin, found.trees) == (False, None, {})


def test_a_point_is_proved_by_its_least_margin(monkeypatch: pytest.MonkeyPatch):
    found = decided_with([closed(0.5), closed(0.25), closed(1.0)], monkeypatch)
    assert found.proved
    assert (found.margin, list(found.trees)) == (0.25, [0, 2, 3])


def decided_with(outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch) -> CompleteResult:
    rest = iter(outcomes)
    monkeypatch.setattr(points, "by_few_domains", lambda *given: replace(closed(0.5), open=1))
    monkeypatch.setattr(points, "first_outcome", lambda *given, **named: next(rest))
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4)).eval()
    boxed = BoxedExample(
        model, checked_graph(nn.Sequential(*model).double()), torch.rand(1, 2), torch.tensor([1]), 0.1, "real"
    )
    return decide_example(boxed, 4, SETTINGS)


# --- leaves ----------------------------------------------------------------------------------------------


def pattern_at(problem: Problem, x: Tensor) -> Domains:
    """The domain of all signs as they are at x (1, …)."""
    inputs = problem.run(x)[1]
    return BranchAndBound(problem, settings_of(problem)).first(torch.where(inputs >= 0, 1, -1))


def linear_program(problem: Problem, domain: Domains, at: Tensor) -> float:
    """The largest lower bound that there is: the least of the largest function over the domain, by another model."""
    optimize = pytest.importorskip("scipy.optimize")
    signs, point = domain.signs[0].double(), at.double()
    inputs = problem.run(point, domain.signs)[1]

    def functions(x: Tensor) -> Tensor:
        return (problem.run(x, domain.signs)[0] @ problem.functions.T + problem.offsets)[0]

    slopes, planes = (
        torch.autograd.functional.jacobian(of, point).flatten(1).numpy()
        for of in (functions, lambda x: problem.run(x, domain.signs)[1][0])
    )
    flat = point.flatten().numpy()
    rows = [np.c_[slopes, -np.ones(len(slopes))], np.c_[-signs[:, None].numpy() * planes, np.zeros(len(planes))]]
    ends = [
        slopes @ flat - functions(point).numpy(),
        (signs * inputs[0]).numpy() - signs.numpy() * (planes @ flat),
    ]
    start = problem.prefix.start
    box = [*zip(start.lower.flatten().tolist(), start.upper.flatten().tolist(), strict=True), (None, None)]
    found = optimize.linprog(
        [0.0] * len(flat) + [1.0], A_ub=np.concatenate(rows), b_ub=np.concatenate(ends), bounds=box
    )
    assert found.status == 0
    return float(found.fun)


AFFINE = [name for name in NETWORKS if name not in ("curves", "bends", "max pool")]
BOTH = torch.tensor([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]], dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("count", [1, 2])
def test_a_domain_with_nothing_left_to_split_gets_the_best_bound_that_there_is(name: str, count: int):
    pytest.importorskip("scipy.optimize")
    x = pixels(8)
    problem = root_of(network(name, 8), x, 0.2, functions=BOTH[:count])
    domain = pattern_at(problem, x.double())
    leaf = leaf_solution(problem, domain)
    assert leaf is not None
    best = linear_program(problem, domain, x)
    assert leaf.bound == pytest.approx(best, abs=1e-6)
    inside = points_inside(problem.prefix.start.lower[0], problem.prefix.start.upper[0], 2000)
    logits, inputs = problem.run(torch.cat([x.double(), inside]))
    values = (logits @ problem.functions.T).amax(1)[inputs_with_signs(inputs, domain.signs)]
    assert bool((values >= leaf.bound - 1e-12).all())


@pytest.mark.parametrize("name", ["curves", "max pool"])
def test_where_the_rest_is_not_affine_a_leaf_stays_open(name: str):
    problem = root_of(network(name, 8), pixels(8), 0.2)
    assert leaf_solution(problem, pattern_at(problem, pixels(8).double())) is None


def test_a_domain_without_inputs_is_closed():
    """Two units are the same number, and may not have two signs."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        model[0].weight[:], model[0].bias[:] = 1.0, torch.tensor([-0.5, -0.4]).double()
        model[2].weight[:], model[2].bias[:] = 1.0, torch.tensor([0.0, 10.0]).double()
    problem = root_between(model, ZERO, ONE, DIFFERENCE, [0.0])
    leaf = leaf_solution(problem, BranchAndBound(problem, SETTINGS).first(torch.tensor([[1, -1]])))
    assert leaf is not None
    assert leaf.bound > 0


def test_units_that_nothing_weighs_at_the_root_have_multipliers_all_the_same():
    """The first layer's Λ is zero there, for the second layer's line below has slope zero; it is not in parts."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double().eval()
    with torch.no_grad():
        for layer, weight, bias in ((model[0], 1.0, -0.5), (model[2], 1.0, -0.4)):
            layer.weight[:], layer.bias[:] = weight, bias
        model[4].weight[:], model[4].bias[:] = torch.tensor([[1.0], [0.0]]), 0.0
    problem = root_between(model, ZERO, ONE, DIFFERENCE, [1e-3])
    assert bool((problem.scale > 0).all())
    assert bool(problem.scale.isfinite().all())
    assert branch_and_bound(problem, SETTINGS).proved
    for signs in itertools.product((1, -1), repeat=2):
        leaf = leaf_solution(problem, BranchAndBound(problem, SETTINGS).first(torch.tensor([signs])))
        assert leaf is not None
        assert leaf.bound > 0


@pytest.mark.parametrize("margin", [0.1, -0.1])
@pytest.mark.parametrize("seed", range(4))
def test_without_scipy_nothing_breaks_and_nothing_wrong_is_said(
    seed: int, margin: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    problem = tiny(seed, margin)[1]
    outcome = branch_and_bound(problem, replace(SETTINGS, domains=500))
    assert not (outcome.proved and margin < 0)
    assert margin < 0 or outcome.proved  # as far from zero as this, ascent does


# --- networks without rectifiers, or with others ---------------------------------------------------------

OTHERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(4, 3)),
    "two linear": lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)),
    "sigmoid": lambda: nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3)),
    "identity": lambda: nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(1.0), nn.Linear(5, 3)),
    "dead": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_a_network_with_nothing_to_split_is_decided_or_open(name: str, arithmetic: str):
    torch.manual_seed(0)
    model = OTHERS[name]().eval()
    if name == "dead":
        model[0].bias -= 10
    x, settings, proved = torch.rand(1, 4), replace(SETTINGS, rounding=arithmetic_named(arithmetic)), []
    for eps in (0.0, 0.01, 0.1, 0.5, 1.0):
        exact = OTHERS[name]().double().eval()
        exact.load_state_dict(model.state_dict())
        label = model(x).argmax(1)
        found = decide_example(BoxedExample(model, checked_graph(exact), x, label, eps, arithmetic), 3, settings)
        inside = points_inside((x[0] - eps).clamp(0, 1), (x[0] + eps).clamp(0, 1), 2000)
        broken = bool((model(inside).argmax(1) != label).any())
        assert not (found.proved and broken)
        assert name == "sigmoid" or found.proved or found.counterexample is not None
        proved.append(found.proved)
    assert proved[0]
    assert proved == sorted(proved, reverse=True)


def test_one_class_alone_has_no_margin_and_nothing_is_claimed():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1)).eval()
    exact: Any = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1)).double().eval()
    boxed = BoxedExample(model, checked_graph(exact), torch.rand(1, 4), torch.tensor([0]), 0.1, "real")
    assert not decide_example(boxed, 1, SETTINGS).proved


def test_boxes_stay_as_wide_as_they_are_once_time_is_over():
    model = random_network(Generator().manual_seed(3), 4, (10, 10), 2)
    box = box_between(torch.zeros(1, 4).double(), torch.ones(1, 4).double())
    widths = []
    for limit in (0, 1, 2, 100):
        prefix = tightened_prefix(checked_graph(model), box, replace(SETTINGS, deadline=CountedDeadline(limit)))
        widths.append(sum(float(record.box.radius.sum()) for record in prefix.records if record.box is not None))
    assert widths[0] > widths[-1]
    assert sorted(widths, reverse=True) == widths


# --- curves ----------------------------------------------------------------------------------------------

CURVED: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "elu, steep": lambda: nn.ELU(3.0),
}


def curved(name: str) -> nn.Sequential:
    """A network of two layers of the activation, and of no other."""
    generator = Generator().manual_seed(2)
    layers = [nn.Linear(16, 12), CURVED[name](), nn.Linear(12, 12), CURVED[name](), nn.Linear(12, 3)]
    for layer in layers:
        for tensor in layer.parameters():
            tensor.data.normal_(generator=generator).mul_(3 * tensor.shape[-1] ** -0.5)
    return nn.Sequential(nn.Flatten(), *layers).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", CURVED)
def test_splits_of_curves_prove_more_than_the_whole_box_and_are_proved_again(name: str):
    model, x, eps = curved(name), pixels(2), 0.3
    root = root_of(model, x, eps)
    low = Problem(root.prefix, root.functions, ONE * -1e3, root.rounding)  # ascent stops above zero
    whole = BranchAndBound(low, settings_of(low), clips=False)
    bound = 1e3 + float(whole.bound(whole.first(torch.zeros(1, root.neurons)), search.FIRST_STEPS).bounds)
    seen = root.run(samples_around(x, eps, 3000).double())[0] @ root.functions.T
    missing = 0.05 * (float(seen.min()) - bound)
    assert missing > 0
    problem = Problem(root.prefix, root.functions, ONE * (-bound - missing), root.rounding)
    outcome = BranchAndBound(problem, settings_of(problem), clips=False).run()
    assert outcome.proved
    assert outcome.domains > 1
    assert float(seen.min()) - bound - missing >= outcome.bound
    leaves = list(leaves_of(str(outcome.tree)))
    assert len(leaves) > 1
    assert unproved_leaves(problem, leaves, settings_of(problem)) == 0
    less = Problem(root.prefix, root.functions, ONE * (-float(seen.min()) - 1e-3), root.rounding)
    assert unproved_leaves(less, leaves, settings_of(less)) > 0
