"""Complete verification of networks in which there is nothing to split."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from certtrain.attack import PGD
from certtrain.properties.cases import Case, Property
from certtrain.properties.decide import Decision, decide
from helpers.activation_cases import CASES

SHAPE = (1, 2, 2)
Make = Callable[[], list[nn.Module]]
SHORT = PGD(steps=1, restarts=1)


def linear() -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(4, 2)]


def two_linear() -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)]


def convolution() -> list[nn.Module]:
    return [nn.Conv2d(1, 2, 2, padding=1), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(8, 2)]


def sigmoid() -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)]


def max_pool() -> list[nn.Module]:
    return [nn.Conv2d(1, 2, 2, padding=1), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(8, 2)]


def activated(name: str) -> Make:
    def make() -> list[nn.Module]:
        return [nn.Flatten(), nn.Linear(4, 3), copy.deepcopy(CASES[name].layer), nn.Linear(3, 2)]

    return make


AFFINE, CURVED = (linear, two_linear, convolution), (sigmoid, max_pool)
ACTIVATED = [activated(name) for name in ("gelu", "silu", "softplus of a low threshold", "elu, steep", "hardtanh")]


def decided(layers: list[nn.Module], functions: list[list[float]], offsets: list[float], cases: int = 1) -> Decision:
    """By complete verification: `cases` boxes, each a little larger, all with the same functions of the outputs."""
    rows = torch.tensor(functions, dtype=torch.float64)
    added = torch.tensor(offsets, dtype=torch.float64)
    middle = torch.full((4,), 0.5, dtype=torch.float64)
    sizes = torch.linspace(0.3, 0.5, cases).tolist()
    boxes = tuple(Case(middle - size, middle + size, rows, added) for size in sizes)
    network = nn.Sequential(*layers).eval()
    return decide(network, SHAPE, Property(4, 2, boxes), method="complete", attack=SHORT, time_limit=20.0)


def balanced(make: Make, seed: int) -> list[nn.Module]:
    """Both outputs are equal at the middle of the box: the last layer's bias makes them so."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = make()
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        network = nn.Sequential(*layers).eval()
        last.bias -= network(torch.full((1, *SHAPE), 0.5))[0]
    return layers


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", AFFINE)
def test_two_rows_of_an_affine_network_are_decided(make: Make, seed: int) -> None:
    # The larger of y0 − y1 and y1 − y0 is 0 at its least, where no row alone is above zero in the box.
    rows = [[1.0, -1.0], [-1.0, 1.0]]
    proved = decided(balanced(make, seed), rows, [0.01, 0.01], cases=2)
    assert (proved.result, proved.by) == ("unsat", "complete")
    assert 0 < proved.bound <= 0.01 + 1e-6
    broken = decided(balanced(make, seed), rows, [-0.01, -0.01], cases=2)
    assert broken.result == "sat"


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("make", [*AFFINE, *CURVED, *ACTIVATED])
def test_no_number_of_rows_is_decided_wrongly(make: Make, count: int) -> None:
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 7)] * 4).view(-1, *SHAPE)
    answers = []
    for seed in range(2):
        layers = balanced(make, seed)
        rows = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)).tolist()
        with torch.no_grad():
            outputs = nn.Sequential(*layers).eval()(grid * 0.6 + 0.2)
        for offset in (-0.05, 0.02, 0.05):
            found = decided(layers, rows, [offset] * count)
            least = float((outputs @ torch.tensor(rows).T + offset).amax(1).min())
            assert not (found.result == "unsat" and least <= 0), (seed, offset)
            answers.append(found.result)
    if make in AFFINE:
        assert "unknown" not in answers
