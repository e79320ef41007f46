"""Upper planes of the first rectifiers: they hold, they contain chords and facets, and searches need fewer domains."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain.bounds.rounding import ARITHMETICS
from certtrain.branching import hull as hull_module
from certtrain.branching.bounds import domain_bounds, optimised
from certtrain.branching.domains import Domains
from certtrain.branching.hull import Hull, hull_of
from certtrain.branching.problem import Problem
from certtrain.branching.search import BranchAndBound, branch_and_bound, unproved_leaves
from certtrain.branching.tree import leaves_of
from helpers.branching_problems import (
    NETWORKS,
    domain,
    hard_problem,
    network,
    pixels,
    root_of,
    samples_around,
    settings_of,
    some_signs,
)
from helpers.deadlines import CountedDeadline

EPS, SAMPLES, STEEP = 0.25, 4000, 2.0**18
SEEDS = (0, 1, 4)  # of hard problems
TWO = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
WITHOUT = ("rectifier first",)  # its first neurons are the inputs themselves
WITH = [("real", name) for name in NETWORKS if name not in WITHOUT]
WITH += [("float32", name) for name in ("mlp", "leaky", "curves", "bends")]


@torch.no_grad()
def model_of(name: str, seed: int, steep: bool) -> nn.Module:
    """A network; a steep one has large weights in its first layer, whose results nearly cancel around pixels(seed)."""
    model = network(name, seed)
    first = next(layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)))
    if steep:
        first.weight.mul_(STEEP)
        assert first.bias is not None
        at = first(pixels(seed).flatten(1) if isinstance(first, nn.Linear) else pixels(seed))
        first.bias.sub_(at.flatten(2).mean(2).flatten() if at.dim() > 2 else at.flatten())
    return model


def problem_with_hull(name: str, seed: int, arithmetic: str = "real") -> Problem:
    """In float32, that of a steep network, whose rounding is about a tenth of its first results."""
    steep = arithmetic == "float32"
    problem = root_of(model_of(name, seed, steep), pixels(seed), EPS / STEEP if steep else EPS, arithmetic, TWO)
    problem.hull = hull_of(problem.prefix, problem.rounding, settings_of(problem))
    return problem


def hull_in(problem: Problem) -> Hull:
    assert problem.hull is not None
    return problem.hull


def with_shares(problem: Problem, domains: Domains, generator: Generator) -> Domains:
    """The domains with random shares, ends of their range among them."""
    hull = hull_in(problem)
    shares = torch.rand(domains.total, *hull.inputs.shape, generator=generator, dtype=torch.float64)
    return domains._replace(shares=(1.5 * shares - 0.25).clamp(0, 1).clamp(min=hull.slope))


# --- which neurons have planes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_rectifier_after_an_affine_part_has_planes(name: str):
    found = [problem_with_hull(name, seed).hull for seed in range(4)]
    assert all(each is None for each in found) == (name in WITHOUT)
    for each in found:
        assert each is None or (each.inputs.shape == each.weights.shape == each.spans.shape and len(each.neurons) > 0)


@pytest.mark.parametrize("most", [1, 20, 40])
def test_the_largest_relaxations_have_planes_where_not_all_can(most: int, monkeypatch: pytest.MonkeyPatch):
    every = hull_in(problem_with_hull("mlp", 1))
    monkeypatch.setattr(hull_module, "MOST_COEFFICIENTS", most)
    few = hull_in(problem_with_hull("mlp", 1))
    assert len(few.neurons) == max(1, most // 16) < len(every.neurons)
    assert few.neurons.tolist() == every.neurons[: len(few.neurons)].tolist()


# --- they hold -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("arithmetic", "name"), WITH)
def test_no_rectifier_is_above_its_plane_in_its_box(arithmetic: str, name: str):
    checked, generator = 0, Generator().manual_seed(2)
    for seed in range(3):
        problem = problem_with_hull(name, seed, arithmetic)
        if problem.hull is None:
            continue
        hull, own = problem.hull, problem.parts[problem.hull.record]
        x = samples_around(pixels(seed), EPS if arithmetic == "real" else EPS / STEEP, SAMPLES)
        z = (problem.run(x.double()) if arithmetic == "real" else problem.in_float32().run(x))[1][:, own].double()
        for shrunk in (0.0, 0.2, 0.4):
            record = problem.prefix.records[hull.record]
            assert record.box is not None
            box = record.box._replace(radius=record.box.radius * (1 - shrunk))
            shares = with_shares(problem, domain(problem, torch.zeros(1, problem.neurons), generator), generator).shares
            for each in (shares, hull.chords(box)):
                planes = hull.planes(each, box)
                inside = (z >= box.lower.flatten()) & (z <= box.upper.flatten())
                height = (planes.weights[0] * x.double().flatten(1)[:, hull.inputs]).sum(2) + planes.offsets[0]
                inputs = z[:, hull.neurons]
                value = torch.maximum(inputs, hull.slope * inputs)
                chosen = inside[:, hull.neurons] & planes.unstable
                tolerance = 1e-12 if arithmetic == "real" else 0.0
                assert bool((height - value >= -tolerance)[chosen].all())
                checked += int(chosen.sum())
    assert checked > 1000


@torch.no_grad()
@pytest.mark.parametrize(("arithmetic", "name"), WITH)
def test_no_input_is_below_a_bound_with_any_shares(arithmetic: str, name: str):
    fitting, generator = 0, Generator().manual_seed(3)
    for seed in range(3):
        problem = problem_with_hull(name, seed, arithmetic)
        if problem.hull is None:
            continue
        x = samples_around(pixels(seed), EPS if arithmetic == "real" else EPS / STEEP, SAMPLES // 4)
        logits, z = problem.run(x.double()) if arithmetic == "real" else problem.in_float32().run(x)
        values = logits.double() @ TWO.T + (1e-12 * (1 + logits.abs().amax()) if arithmetic == "real" else 0.0)
        for count in (0, 2, 6):
            signs = some_signs(problem, z[int(values[:, 0].argmin())], count, generator)
            domains = with_shares(problem, domain(problem, signs, generator), generator)
            fits = ((z * signs >= 0) | (signs == 0)).all(1)
            bound = domain_bounds(problem, domains)
            summed = values @ (domains.weights[0] / domains.weights.sum())
            assert bool(bound.isfinite())
            assert bool((summed[fits] >= bound).all())
            fitting += int(fits.sum())
    assert fitting > 100


@pytest.mark.parametrize("seed", range(30))
def test_a_plane_with_all_rounding_is_not_below_its_exact_value(seed: int):
    """Two neurons with weights of many sizes: the plane's height at random inputs, in fractions."""
    generator = Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layer = nn.Linear(6, 2).double()
    with torch.no_grad():
        layer.weight[:] = random(2, 6) * 10.0 ** torch.randint(-20, 20, (2, 6), generator=generator)
        layer.bias[:] = -layer.weight.sum(1) / 2 + 0.1 * layer.weight.abs().sum(1) * random(2)
    problem = root_of(nn.Sequential(layer, nn.ReLU(), nn.Linear(2, 3).double()), torch.full((1, 6), 0.5), 0.5)
    hull = hull_of(problem.prefix, problem.rounding, settings_of(problem))
    if hull is None:
        return
    shares = torch.rand(1, *hull.inputs.shape, generator=generator, dtype=torch.float64)
    box = problem.prefix.records[hull.record].box
    assert box is not None
    planes = hull.planes(shares, box)
    for x in torch.rand(20, 6, generator=generator, dtype=torch.float64).round(decimals=1).tolist():
        for row, neuron in enumerate(hull.neurons.tolist()):
            weights = layer.weight[neuron].tolist()
            z = sum(
                (Fraction(w) * Fraction(v) for w, v in zip(weights, x, strict=True)),
                Fraction(layer.bias[neuron].item()),
            )
            at = [x[i] for i in hull.inputs[row].tolist()]
            terms = zip(planes.weights[0, row].tolist(), at, strict=True)
            height = sum((Fraction(w) * Fraction(v) for w, v in terms), Fraction(planes.offsets[0, row].item()))
            assert height >= max(z, Fraction(0))


@torch.no_grad()
def test_planes_of_the_real_network_are_below_what_float32_computes():
    """So its rounding is felt, and the tests above can fail."""
    wrong = 0
    for seed in range(6):
        model = model_of("mlp", seed, steep=True)
        problem = root_of(model, pixels(seed), EPS / STEEP, "real", TWO)
        hull, box = hull_of(problem.prefix, problem.rounding, settings_of(problem)), problem.prefix.records[2].box
        assert hull is not None
        assert box is not None
        inputs = pixels(seed).flatten().repeat(len(hull.neurons), 1)
        inputs = inputs.scatter(1, hull.inputs, hull.corners.float())
        start = problem.prefix.start
        inside = torch.where(inputs > start.upper.flatten(), inputs.nextafter(torch.zeros(())), inputs)
        inside = torch.where(inside < start.lower.flatten(), inside.nextafter(torch.ones(())), inside)
        z = problem.in_float32().run(inside.view(-1, 1, 4, 4))[1][:, problem.parts[hull.record]][:, hull.neurons]
        planes = hull.planes(hull.chords(box), box)
        height = (planes.weights[0] * inside.double()[:, hull.inputs]).sum(2) + planes.offsets[0]
        wrong += int((height < z.relu()).sum())
    assert wrong > 0


# --- how tight they are ----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", [name for arithmetic, name in WITH if arithmetic == "real"])
def test_with_the_shares_of_chords_the_bound_is_that_of_chords(name: str):
    for seed in range(3):
        problem = problem_with_hull(name, seed)
        if problem.hull is None:
            continue
        domains = domain(problem, torch.zeros(1, problem.neurons), Generator().manual_seed(seed))
        box = problem.restricted(domains).records[problem.hull.record].box
        assert box is not None
        chords = domains._replace(shares=problem.hull.chords(box))
        torch.testing.assert_close(domain_bounds(problem, chords), domain_bounds(problem, domains), rtol=0, atol=1e-9)


def corner() -> Problem:
    """f = x₀ − relu(x₀ + x₁ − 1) on [0, 1]²: at least 0, and at least −1/2 by the chord."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3)).eval()
    with torch.no_grad():
        layers[0].weight[:], layers[0].bias[:] = torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([0.0, -1.0])
        layers[2].weight[:], layers[2].bias[:] = torch.tensor([[1.0, -1], [0, 0], [0, 0]]), torch.zeros(3)
    return root_of(layers, torch.full((1, 2), 0.5), 0.5)


def test_planes_reach_the_convex_hull_where_a_chord_does_not():
    problem = corner()
    search = BranchAndBound(problem, settings_of(problem))
    whole = search.first(torch.zeros(1, problem.neurons))
    assert optimised(search.fast, whole, 200).bounds.item() == pytest.approx(-0.5, abs=1e-3)
    assert optimised(search.fast, search.planes.with_shares(whole), 200).bounds.item() == pytest.approx(0.0, abs=1e-3)


def test_a_tighter_box_makes_a_plane_lower():
    hull = hull_in(problem_with_hull("mlp", 1))
    problem = problem_with_hull("mlp", 1)
    box = problem.prefix.records[hull.record].box
    assert box is not None
    shares = with_shares(problem, domain(problem, torch.zeros(1, problem.neurons), Generator()), Generator()).shares
    shares = shares.clamp(0.3, 0.6)
    offsets = [hull.planes(shares, box._replace(radius=box.radius * share)).offsets for share in (1.0, 0.8, 0.5)]
    assert bool((offsets[0] >= offsets[1]).all())
    assert bool((offsets[1] > offsets[2] + 1e-6).any())


# --- in a search -----------------------------------------------------------------------------------------


def test_a_search_turns_to_planes_and_needs_fewer_domains(monkeypatch: pytest.MonkeyPatch):
    domains = {True: 0, False: 0}
    for planes in domains:
        if not planes:
            monkeypatch.setattr("certtrain.branching.planes.hull_of", lambda *given: None)
        for seed in SEEDS:
            search = BranchAndBound(hard_problem(seed, 0.05), settings_of(hard_problem(seed, 0.05)))
            outcome = search.run()
            assert outcome.proved
            assert search.planes.used == planes
            domains[planes] += outcome.domains
    assert domains[True] < 0.7 * domains[False]


def test_leaves_that_planes_proved_are_proved_again_and_smaller_trees_are_not():
    for seed in SEEDS[:2]:
        problem = hard_problem(seed, 0.05)
        outcome = branch_and_bound(problem, settings_of(problem))
        assert outcome.proved
        leaves = list(leaves_of(str(outcome.tree)))
        assert unproved_leaves(problem, leaves, settings_of(problem)) == 0
        problem.offsets = problem.offsets - 0.1  # some input is below zero now
        again = replace(settings_of(problem), domains=5)
        assert unproved_leaves(problem, leaves, again) > 0


def begun() -> BranchAndBound:
    search = BranchAndBound(hard_problem(1, 0.05), settings_of(hard_problem(1, 0.05)))
    search.begin(search.first(torch.zeros(1, search.problem.neurons)))
    for _ in range(4):
        search._step(search._take())
    return search


def test_planes_are_used_where_they_gain_enough(monkeypatch: pytest.MonkeyPatch):
    search = begun()
    search._try_planes()
    assert search.planes.used
    assert all(part.shares.shape[1] for part in search.waiting)
    monkeypatch.setattr("certtrain.branching.planes.PLANE_GAIN", 0.99)
    search = begun()
    search._try_planes()
    assert not search.planes.used
    assert not search.planes.due(search.domains)
    assert search.planes.due(64)


def test_planes_are_not_taken_up_where_their_shares_fill_the_memory():
    search = begun()
    hull, waiting = search.planes.hull, sum(part.total for part in search.waiting)
    assert hull is not None
    search.planes.settings = replace(search.settings, memory=4 * waiting * hull.bytes - 4)
    assert not search.planes.trial(search.waiting[-1], waiting)
    search.planes.settings = replace(search.settings, memory=4 * waiting * hull.bytes)
    assert search.planes.trial(search.waiting[-1], waiting)


def test_batches_are_smaller_with_planes_and_so_are_those_of_a_check(monkeypatch: pytest.MonkeyPatch):
    problem = hard_problem(1, 0.05)
    outcome = branch_and_bound(problem, settings_of(problem))
    search = BranchAndBound(problem, replace(settings_of(problem), memory=2**21))
    before = search.most
    search.use_planes()
    assert search.most < before
    bounded, bound = list[int](), BranchAndBound._optimised

    def recorded(self: BranchAndBound, domains: Domains, steps: int) -> Domains:
        bounded.append(domains.total if domains.shares.shape[1] else 0)
        return bound(self, domains, steps)

    monkeypatch.setattr(BranchAndBound, "_optimised", recorded)
    assert unproved_leaves(problem, leaves_of(str(outcome.tree)), search.settings) == 0
    assert 0 < max(bounded) <= search.most


def test_after_the_deadline_no_further_neurons_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hull_module, "ROWS", 2)
    problem = hard_problem(1, 0.05)
    for most in (0, 1, 3):
        settings = replace(settings_of(problem), deadline=CountedDeadline(most))
        hull = hull_of(problem.prefix, problem.rounding, settings)
        assert (0 if hull is None else len(hull.neurons)) == 2 * most


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_a_search_with_planes_from_the_start_proves_nothing_false(arithmetic: str):
    for seed in SEEDS:
        problem = hard_problem(seed, 0.05)
        rounding = ARITHMETICS[arithmetic]
        problem = Problem(problem.prefix, problem.functions, problem.offsets - 0.06, rounding)
        search = BranchAndBound(problem, replace(settings_of(problem), rounding=rounding, domains=100))
        search.use_planes()
        assert not search.run().proved, "an input is below zero"
