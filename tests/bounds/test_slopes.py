"""The lines that α-CROWN and branch and bound choose: every activation gains by the search."""

import pytest
import torch
from torch import Generator, Tensor, nn

import certtrain
from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.alpha import quick_slope_bounds, slope_search_bounds
from certtrain.bounds.box import input_box
from certtrain.bounds.interval import interval_pass
from certtrain.bounds.linear import Prefix, backsubstitute
from certtrain.bounds.rounding import arithmetic_named
from certtrain.bounds.settings import Settings
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import NONLINEAR
from helpers.activation_cases import ACTIVATED
from helpers.sampling import points_inside

WITH_SLOPES = {name: make for each in ACTIVATED.values() for name, make in each.searched.items()}
EACH = pytest.mark.parametrize("name", WITH_SLOPES)


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network of two layers of that activation, and pixels (8, 1, 4, 4)."""
    act, generator = WITH_SLOPES[name], Generator().manual_seed(1)
    gain = 4.0 if name in ("sigmoid", "softplus") else 1.2  # over narrow intervals these are nearly lines
    layers = [nn.Flatten(), nn.Linear(16, 20), act(), nn.Linear(20, 20), act(), nn.Linear(20, 3)]
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    for parameter in model.parameters():
        fan_in = parameter.shape[-1]
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / fan_in**0.5)
    return model, torch.rand(8, 1, 4, 4, generator=generator)


def test_every_activation_is_tried():
    assert {type(make()) for make in WITH_SLOPES.values()} == set(ACTIVATIONS)


@EACH
def test_optimised_slopes_give_tighter_bounds_than_crown(name: str):
    model, x = network(name)
    labels = model(x).argmax(1)
    crown, alpha = (
        certtrain.margin_bounds(model, x, labels, 0.1, method=method).scatter(1, labels.unsqueeze(1), 0.0)
        for method in ("crown", "alpha-crown")
    )
    others = torch.ones_like(crown, dtype=torch.bool).scatter(1, labels.unsqueeze(1), False)
    assert bool((alpha >= crown - 1e-6).all())
    assert float((alpha - crown)[others].mean()) > 0.02 * float(crown[others].abs().mean())


@EACH
def test_slopes_that_are_searched_in_float32_are_proved_in_float64(name: str):
    model, x = network(name)
    model, settings = model.double(), Settings(rounding=arithmetic_named("real"), iterations=20)
    box = input_box(x.double(), 0.1)
    passed = interval_pass(checked_graph(model), box, boxes_at=NONLINEAR, rounding=settings.rounding)
    prefix, functions = Prefix(passed.records, passed.start), torch.eye(3).double().expand(8, 3, 3)
    plain = backsubstitute(prefix, functions, rounding=settings.rounding)
    quick, whole = quick_slope_bounds(prefix, functions, settings), slope_search_bounds(prefix, functions, settings)
    assert quick.dtype == torch.float64
    assert bool((quick >= plain).all())
    assert float((quick - plain).mean()) > 0.5 * float((whole - plain).mean()) > 0
    for row in range(8):
        points = points_inside(box.lower[row].flatten(), box.upper[row].flatten(), 2000).view(-1, 1, 4, 4)
        assert bool((model(points) >= quick[row]).all())


def test_without_iterations_or_slopes_the_bounds_are_those_of_crown():
    model, x = network("relu")
    model, box = model.double(), input_box(x.double(), 0.1)
    passed = interval_pass(checked_graph(model), box, boxes_at=NONLINEAR)
    prefix, functions = Prefix(passed.records, passed.start), torch.eye(3).double().expand(8, 3, 3)
    plain = backsubstitute(prefix, functions)
    assert torch.equal(quick_slope_bounds(prefix, functions, Settings(iterations=0)), plain)
    narrow = interval_pass(checked_graph(model), input_box(x.double(), 0.0), boxes_at=NONLINEAR)
    still = Prefix(narrow.records, narrow.start)
    assert torch.equal(quick_slope_bounds(still, functions, Settings()), backsubstitute(still, functions))
