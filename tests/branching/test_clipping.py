"""Clipped ends of neurons' inputs: they hold wherever the margin is small, and only there."""

from dataclasses import replace
from fractions import Fraction
from functools import partial

import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain.branching import search
from certtrain.branching.bounds import domain_bounds, optimised
from certtrain.branching.clipping import MULTIPLIERS, CentredBounds, _least, _rounded_down, clipped, neuron_bounds
from certtrain.branching.domains import Domains, concatenated
from certtrain.branching.problem import Problem
from certtrain.branching.search import BranchAndBound, branch_and_bound, unproved_leaves
from certtrain.branching.tree import leaves_of
from certtrain.runtime.deadline import NEVER
from helpers.branching_problems import (
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
from helpers.deadlines import CountedDeadline
from helpers.enumeration import random_network

EPS, SAMPLES = 0.25, 4000
TWO = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
PLACES = torch.arange(3).unsqueeze(0)


def clip(problem: Problem, domains: Domains, threshold: float) -> Domains:
    known = neuron_bounds(problem, settings_of(problem))
    return domains if known is None else clipped(problem, known, domains, threshold, NEVER)


def whole(problem: Problem) -> Domains:
    return BranchAndBound(problem, settings_of(problem)).first(torch.zeros(1, problem.neurons))


# --- by hand ---------------------------------------------------------------------------------------------


@torch.no_grad()
def line() -> Problem:
    """f = x on [0, 1], from a stable neuron, beside the neurons x − 0.3, 0.6 − x and x − 0.1."""
    layers = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    layers[0].weight[:] = torch.tensor([[1.0], [1.0], [-1.0], [1.0]])
    layers[0].bias[:] = torch.tensor([1.0, -0.3, 0.6, -0.1])
    layers[2].weight[:] = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    layers[2].bias[:] = torch.tensor([0.0, 1.0, 0.0])
    return root_of(layers, torch.tensor([[0.5]]), 0.5)


def test_the_ends_are_those_of_the_inputs_with_a_small_margin():
    problem = line()
    found = clip(problem, whole(problem), 0.25)
    infinite = torch.inf  # where the box's end is the same
    assert found.upper[0].tolist() == pytest.approx([infinite, -0.05, infinite, 0.15], abs=1e-4)
    assert found.lower[0].tolist() == pytest.approx([-infinite, -infinite, 0.35, -infinite], abs=1e-4)
    x = torch.tensor([[0.25]]).double()
    inputs = problem.run(x)[1]
    assert bool(((inputs >= found.lower) & (inputs <= found.upper)).all()), "0.25 has a margin of 0.25"
    assert found.thresholds.item() == 0.25
    assert problem.known_signs(found).tolist() == [[0, -1, 1, 0]]


def test_a_domain_is_empty_if_its_split_contradicts_the_ends():
    problem = line()
    signs = torch.tensor([[0, 0, 0, 0], [0, -1, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 1, 0]])
    each = BranchAndBound(problem, settings_of(problem)).first(signs)
    assert problem.empty(each).tolist() == [False] * 5
    ends = clip(problem, whole(problem), 0.25)
    each = each._replace(lower=ends.lower.expand(5, -1), upper=ends.upper.expand(5, -1))
    assert problem.empty(each).tolist() == [False, False, True, True, False]
    assert problem.empty(clip(problem, whole(problem), -0.01)).item(), "no margin is below zero"


def test_a_bound_must_exceed_the_threshold_and_proves_no_more_than_it():
    problem = line()
    found = whole(problem)._replace(bounds=torch.tensor([0.3]).double(), thresholds=torch.tensor([0.25]).double())
    assert (found.closed.item(), found.proved.item()) == (True, 0.25)
    assert not found._replace(bounds=found.thresholds).closed.item()
    assert (found.unclipped().closed.item(), found.unclipped().proved.item()) == (True, pytest.approx(0.3))
    for value in (torch.nan, torch.inf, -torch.inf):
        assert not found._replace(bounds=torch.tensor([value]).double()).closed.item()


# --- rounding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_the_dual_bound_is_not_above_its_exact_value(seed: int):
    generator = Generator().manual_seed(seed)
    random = partial(torch.randn, generator=generator, dtype=torch.float64)
    scale = 10.0 ** torch.randint(-30, 30, (4,), generator=generator, dtype=torch.float64)
    radius, values = random(9).abs(), random(3, 9) * scale[0]
    g = (values[:1] * -0.5 if seed % 3 == 0 else random(1, 9) * scale[1]).clone()  # nearly cancels
    bounds, margin = random(3) * scale[2], random(1) * scale[3]
    known, own = CentredBounds.of(bounds, values, radius), CentredBounds.of(margin, g, radius)
    found = _least(known, PLACES, own)[0]
    r = [Fraction(v) for v in radius.tolist()]

    def at_centre(bound: float, row: Tensor) -> tuple[Fraction, Fraction, list[Fraction]]:
        scaled = [Fraction(v) * each for v, each in zip(row.tolist(), r, strict=True)]
        size = sum(map(abs, scaled), Fraction(0))
        return Fraction(bound) + size, size, scaled

    h, g_size, g_scaled = at_centre(float(margin), g[0])
    for number in range(3):
        p, size, scaled = at_centre(float(bounds[number]), values[number])
        exact = []
        for multiplier in map(Fraction, MULTIPLIERS):
            mu = multiplier * size / g_size
            distances = [abs(a + mu * b) for a, b in zip(scaled, g_scaled, strict=True)]
            exact.append(p + mu * h - sum(distances, Fraction(0)))
        assert Fraction(float(found[number])) <= max(exact)
        units = Fraction(1, 10**4) * (abs(p) + size + max(MULTIPLIERS) * size * (1 + abs(h) / g_size))
        assert Fraction(float(found[number])) >= max(exact) - units


def test_ends_are_rounded_outwards():
    values = torch.tensor([0.1, -0.1, 1.0, 1e-300, -1e-300, 1e300, -1e300, -torch.inf]).double()
    assert bool((_rounded_down(values).double() <= values).all())
    assert _rounded_down(values)[2].item() == 1.0
    assert (_rounded_down(values[:2]).double() - values[:2]).abs().max().item() < 1e-8


def test_bounds_that_are_not_finite_or_vanish_clip_nothing():
    bounds, radius = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0, 1.0, 1.0]), torch.ones(2).double()
    rows = torch.tensor([[1.0, 1.0]] * 3 + [[0.0, 0.0], [torch.nan, 1.0], [1e-300, 0.0]]).double()
    odd = CentredBounds.of(bounds.double(), rows, radius)
    assert odd.constants.tolist() == [-torch.inf] * 6
    fine = CentredBounds.of(torch.zeros(6).double(), torch.ones(6, 2).double(), radius)
    places = torch.arange(6).expand(6, 6)
    assert bool((_least(fine, places, odd) == -torch.inf).all())
    assert bool((_least(odd, places, fine) == -torch.inf).all())
    assert _least(fine, torch.tensor([[-1]] * 6), fine).flatten().tolist() == [-torch.inf] * 6


# --- sampling --------------------------------------------------------------------------------------------


@torch.no_grad()
def assert_holds(problem: Problem, inputs: Tensor, values: Tensor, seed: int) -> tuple[int, int]:
    """Ends and bounds of clipped domains hold at the inputs with their signs whose margins are small.

    Returns how many inputs these are, and how many others are outside the ends.
    """
    generator, inside, outside = Generator().manual_seed(seed), 0, 0
    for decided, share in ((0, 0.01), (6, 0.3), (30, 0.01)):
        found = domain(problem, some_signs(problem, inputs[decided], decided, generator), generator, 0.0)
        fits = inputs_with_signs(inputs, found.signs)
        threshold = float(values[fits].amax(1).quantile(share))
        for _ in range(2):
            found = clip(problem, optimised(problem, found, 10), threshold)
            small = fits & (values.amax(1) <= threshold)
            lower, upper = found.lower.double(), found.upper.double()
            holds = ((inputs >= lower) & (inputs <= upper)).all(1)
            assert bool(holds[small].all()), "an input with a small margin is outside"
            assert not (bool(small.any()) and bool(problem.empty(found))), "a domain with inputs is called empty"
            inside, outside = inside + int(small.sum()), outside + int((fits & ~holds).sum())
            betas = torch.rand(found.betas.shape, generator=generator, dtype=torch.float64)
            bound = domain_bounds(problem, found._replace(betas=betas))
            summed = values @ (found.weights[0].double() / found.weights.double().sum())
            assert bool((summed[small] >= bound).all()), "an input with a small margin is below the bound"
    return inside, outside


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_no_input_with_a_small_margin_is_outside_the_ends(name: str):
    x = pixels(5)
    problem = root_of(network(name, 5), x, EPS, functions=TWO)
    logits, inputs = problem.run(samples_around(x, EPS, SAMPLES).double())
    slack = 1e-12 * (1 + logits.abs().amax(1, keepdim=True))
    inside, _ = assert_holds(problem, inputs, logits @ TWO.T + slack, 5)
    assert inside > 40


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_in_two_dimensions_the_ends_are_close_and_hold(seed: int):
    inside, _ = in_two_dimensions(seed)
    assert inside > 1000


@torch.no_grad()
def in_two_dimensions(seed: int) -> tuple[int, int]:
    generator = Generator().manual_seed(seed)
    model = nn.Sequential(*random_network(generator, 2, (6, 6), 3)).eval()
    x = torch.rand(1, 2, generator=generator)
    problem = root_of(model, x, 0.2, functions=TWO[:1])
    logits, inputs = problem.run(samples_around(x, 0.2, 20_000).double())
    slack = 1e-12 * (1 + logits.abs().amax(1, keepdim=True))
    return assert_holds(problem, inputs, logits @ TWO[:1].T + slack, seed)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_what_float32_computes_with_a_small_margin_is_inside_the_ends(name: str):
    x = pixels(3)
    problem = root_of(network(name, 3, 1e6), x, 1e-6, "float32", TWO)
    logits, inputs = problem.in_float32().run(samples_around(x, 1e-6, 300))
    assert_holds(problem, inputs.double(), logits.double() @ TWO.T, 3)


def test_many_inputs_are_outside_so_something_is_clipped():
    assert sum(in_two_dimensions(seed)[1] for seed in range(4)) > 10_000


# --- the search ------------------------------------------------------------------------------------------


@torch.no_grad()
def clear(seed: int) -> Problem:
    """A problem over a box of 16 inputs that is true at many samples with a margin of a fifth of the outputs' size."""
    x = pixels(seed)
    problem = root_of(network("mlp", seed), x, EPS, functions=TWO[:1])
    logits, _ = problem.run(samples_around(x, EPS, SAMPLES).double())
    least = float((logits @ TWO[:1].T).min())
    return Problem(problem.prefix, TWO[:1], TWO.new_tensor([0.2 * logits.abs().mean() - least]), problem.rounding)


def test_fewer_domains_are_needed_and_their_leaves_are_proved_again():
    saved = 0
    for seed in range(4):
        problem = clear(seed)
        settings = settings_of(problem)
        with_clips, without = (branch_and_bound(problem, settings, clips=clips) for clips in (True, False))
        assert with_clips.proved
        assert without.proved
        saved += without.domains - with_clips.domains
        again = Problem(problem.prefix, TWO[:1], problem.offsets - 0.999 * with_clips.bound, problem.rounding)
        assert unproved_leaves(again, leaves_of(str(with_clips.tree)), settings) == 0
    assert saved > 10


def test_the_whole_and_its_parts_are_clipped_alike():
    problem = clear(1)
    known = neuron_bounds(problem, settings_of(problem))
    assert known is not None
    both = concatenated([whole(problem), domain(problem, torch.zeros(1, problem.neurons), Generator(), 0.0)])
    together = clipped(problem, known, both, 0.1, NEVER)
    for row in range(2):
        alone = clipped(problem, known, both.take(slice(row, row + 1)), 0.1, NEVER)
        assert torch.allclose(together.lower[row], alone.lower[0], rtol=1e-5, equal_nan=True)
        assert torch.allclose(together.upper[row], alone.upper[0], rtol=1e-5, equal_nan=True)


def test_a_deadline_ends_it_with_what_holds_so_far(monkeypatch: pytest.MonkeyPatch):
    problem = clear(2)
    settings = settings_of(problem)
    assert neuron_bounds(problem, replace(settings, deadline=CountedDeadline(0))) is None
    known = neuron_bounds(problem, settings)
    assert known is not None
    unchanged = clipped(problem, known, whole(problem), 0.1, CountedDeadline(0))
    assert bool((unchanged.lower == -torch.inf).all() & (unchanged.upper == torch.inf).all())
    monkeypatch.setattr(search, "neuron_bounds", lambda problem, settings: None)
    assert branch_and_bound(problem, settings).proved, "without bounds of neurons it goes on as before"


def test_where_memory_is_short_the_largest_relaxations_are_clipped(monkeypatch: pytest.MonkeyPatch):
    problem = clear(3)
    monkeypatch.setattr("certtrain.branching.clipping.COEFFICIENT_BYTES", 3 * 8 * 16)
    known = neuron_bounds(problem, settings_of(problem))
    assert known is not None
    assert len(known.lower.sums) == int((known.places >= 0).sum()) == 3
    lower, upper = problem.ends
    worth = (problem.scale * lower * upper / (lower - upper)).where(problem.unstable, 0.0)
    assert set(worth.topk(3).indices.tolist()) == set((known.places >= 0).nonzero().flatten().tolist())
