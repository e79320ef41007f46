"""Planted counterexamples: networks with a narrow spike, at a known input, that attacks miss. No method proves them.

The networks have no gradient away from the spike, as those of SoundnessBench (Zhou et al. 2024) have a misleading one.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain.bounds.box import box_between
from certtrain.bounds.rounding import arithmetic_named
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.bounds.supported import checked_graph
from certtrain.branching.boxes import tightened_prefix
from certtrain.branching.examples import BoxedExample, decide_example
from certtrain.branching.input_domains import InputProblem
from certtrain.branching.inputs import InputSearch
from certtrain.branching.problem import Problem
from certtrain.branching.search import BranchAndBound
from certtrain.properties.cases import Case, Property
from certtrain.properties.decide import decide

STEEP = 2.0**10  # a spike is about 1/STEEP wide
MANY = 52  # inputs: too many to split them
SETTINGS = replace(VERDICT_SETTINGS, rounding=arithmetic_named("real"), domains=8, iterations=1)


def spike(point: Tensor) -> nn.Sequential:
    """Logits (0.5 − relu(1 − STEEP Σ |x − p|), 0) over a few inputs: the first is the smaller one only near p."""
    count = len(point)
    return filled(
        [nn.Linear(count, 2 * count), nn.ReLU(), nn.Linear(2 * count, 1), nn.ReLU(), nn.Linear(1, 2)],
        (torch.cat([torch.eye(count), -torch.eye(count)]) * STEEP, torch.cat([-point, point]) * STEEP),
        (-torch.ones(1, 2 * count), torch.ones(1)),
        (torch.tensor([[-1.0], [0.0]]), torch.tensor([0.5, 0.0])),
    )


def smooth_spike(point: Tensor) -> nn.Sequential:
    """The same with sums of σ(STEEP (x − p) + 4) − σ(STEEP (x − p) − 4), which are 0.964 at p."""
    count, eye, shift = len(point), torch.eye(len(point)) * STEEP, torch.full((len(point),), 4.0)
    return filled(
        [nn.Linear(count, 2 * count), nn.Sigmoid(), nn.Linear(2 * count, 2)],
        (torch.cat([eye, eye]), torch.cat([shift, -shift]) - (torch.cat([point, point]) * STEEP)),
        (
            torch.stack([torch.cat([-torch.ones(count), torch.ones(count)]), torch.zeros(2 * count)]),
            torch.tensor([0.9 * count, 0.0]),
        ),
    )


def one_of_many(point: Tensor) -> nn.Sequential:
    """The spike over the first two of many inputs, with a little of the others."""
    inner = spike(point[:2])
    first = nn.Linear(len(point), 4)
    with torch.no_grad():
        first.weight.fill_(1e-3)
        first.weight[:, :2] = inner[0].weight
        first.bias.copy_(inner[0].bias - 1e-3 * point[2:].sum())
    return nn.Sequential(first, *list(inner)[1:]).requires_grad_(False).eval()


def filled(layers: list[nn.Module], *values: tuple[Tensor, Tensor]) -> nn.Sequential:
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for layer, (weight, bias) in zip(linear, values, strict=True):
        layer.weight.data, layer.bias.data = weight, bias
    return nn.Sequential(*layers).requires_grad_(False).eval()


NETWORKS: dict[str, tuple[Callable[[Tensor], nn.Sequential], int]] = {
    "relu": (spike, 2),
    "relu-3": (spike, 3),
    "sigmoid": (smooth_spike, 2),
    "many inputs": (one_of_many, MANY),
}


def planted(name: str, seed: int) -> tuple[nn.Sequential, Tensor]:
    """A network over the unit box, and its counterexample (N,)."""
    make, count = NETWORKS[name]
    # Numbers with few digits, so that all sums are exact.
    point = torch.randint(100, 924, (count,), generator=Generator().manual_seed(seed)) / 1024 + 1 / 4096
    model = make(point)
    assert float(model(point.unsqueeze(0))[0, 0]) < 0
    return model, point


def asked(count: int, others: int) -> Property:
    """That the first logit is above the second, and cases that hold in the same box before and after it."""
    lower, upper = torch.zeros(count).double(), torch.ones(count).double()
    margin, zero = torch.tensor([[1.0, -1.0]]).double(), torch.zeros(1).double()
    # Both functions are at most zero at the spike alone.
    spiked = Case(lower, upper, torch.cat([margin, 3 * margin]), torch.tensor([0.0, -0.25]).double())
    holds = [Case(lower, upper, margin, zero + 1 + number) for number in range(others)]
    return Property(count, 2, (*holds, spiked, *holds))


@pytest.mark.parametrize(("name", "others"), list(zip(NETWORKS, [0, 2, 2, 1], strict=True)))
def test_a_counterexample_that_attacks_miss_is_found(name: str, others: int) -> None:
    model, point = planted(name, others)
    question = asked(len(point), others)
    assert decide(model, (len(point),), question).result == "unknown"  # the attack misses it
    found = decide(model, (len(point),), question, method="complete", time_limit=10)
    assert found.result == "sat"
    assert found.counterexample is not None
    assert float(model.double()(found.counterexample.unsqueeze(0))[0, 0]) <= 0


@pytest.mark.parametrize("name", NETWORKS)
def test_no_search_that_does_not_look_for_counterexamples_proves_it(name: str) -> None:
    model, point = planted(name, 5)
    graph, case = checked_graph(model.double()), asked(len(point), 0).cases[0]
    lower, upper = case.lower.unsqueeze(0), case.upper.unsqueeze(0)
    problem = InputProblem.of(graph, lower, upper, [(case.functions, case.offsets)], SETTINGS.rounding)
    for keep_tree in (False, True):
        outcome = InputSearch(problem, SETTINGS, keep_tree=keep_tree).run()
        assert not outcome.proved
        assert outcome.open > 0
    prefix = tightened_prefix(graph, box_between(lower, upper), SETTINGS)
    for planes in (False, True):
        search = BranchAndBound(Problem(prefix, case.functions, case.offsets, SETTINGS.rounding), SETTINGS)
        if planes:
            search.use_planes()
        outcome = search.run()
        assert not outcome.proved
        assert outcome.open > 0


@pytest.mark.parametrize("name", ["relu", "sigmoid"])
def test_an_example_is_not_certified(name: str) -> None:
    model, point = planted(name, 0)
    graph, x = checked_graph(nn.Sequential(*model).double()), torch.full((1, len(point)), 0.5)
    model, _ = planted(name, 0)  # in float32
    example = BoxedExample(model, graph, x, torch.tensor([0]), 0.5, "float32")
    result = decide_example(example, 2, replace(SETTINGS, rounding=arithmetic_named("float32"), domains=1000))
    assert not result.proved
    assert result.counterexample is not None


@pytest.fixture(scope="module", params=[0, 1])
def trained(request: pytest.FixtureRequest) -> tuple[nn.Sequential, Tensor]:
    """A network trained to be right on random inputs and on those that PGD finds, but wrong at one point (N,)."""
    generator = Generator().manual_seed(request.param)
    sizes = [10, 32, 16]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], 2))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    point = 0.1 + 0.8 * torch.rand(10, generator=generator).round()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(400):
        x = torch.rand(256, 10, generator=generator)
        loss = (0.5 - margin(model, torch.cat([x, descended(model, x)]))).relu().square().mean()
        (loss + 5 * (0.2 + margin(model, point.unsqueeze(0))).relu().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.double().requires_grad_(False).eval(), point.double()


def margin(model: nn.Module, x: Tensor) -> Tensor:
    logits = model(x)
    return logits[:, 0] - logits[:, 1]


def descended(model: nn.Module, x: Tensor) -> Tensor:
    for _ in range(5):
        x = x.detach().requires_grad_()
        x = (x - 0.1 * torch.autograd.grad(margin(model, x).sum(), x)[0].sign()).clamp(0, 1)
    return x.detach()


def test_no_search_proves_what_a_trained_network_violates_at_one_point(trained: tuple[nn.Sequential, Tensor]) -> None:
    model, point = trained
    least = float(margin(model, point.unsqueeze(0)))
    assert least < 0 < float(margin(model, torch.rand(500, 10).double()).median()), "else it is not trained"
    case = Case(torch.zeros(10).double(), torch.ones(10).double(), torch.tensor([[1.0, -1.0]]).double(), torch.zeros(1))
    graph, offset = checked_graph(model), torch.tensor([-least - 1e-4]).double()  # the point is just a violation
    lower, upper, settings = case.lower.unsqueeze(0), case.upper.unsqueeze(0), replace(SETTINGS, domains=300)
    prefix = tightened_prefix(graph, box_between(lower, upper), settings)
    for planes in (False, True):
        search = BranchAndBound(Problem(prefix, case.functions, offset, settings.rounding), settings)
        if planes:
            search.use_planes()
            assert search.planes.used
        assert not search.run().proved
    problem = InputProblem.of(graph, lower, upper, [(case.functions, offset)], settings.rounding)
    assert not InputSearch(problem, settings).run().proved
    question = Property(10, 2, (replace(case, offsets=offset),))
    for method in ("crown-ibp", "complete"):
        assert decide(model, (10,), question, method=method, time_limit=10).result != "unsat"
