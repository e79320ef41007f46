"""The fused loss: sound, exact where it should be, finite where bounds are wide, and where it stands to the unfused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain import objective_terms
from certtrain.bounds import linear
from certtrain.bounds.box import input_box
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.training.fusion import fused_cross_entropy
from helpers.oracle_networks import NETS
from helpers.oracles import inputs, network
from helpers.sampling import ball, points_inside

RADII = [0.1 / 255, 2 / 255, 8 / 255, 0.1, 0.3]
EVERY_NET = pytest.mark.parametrize("net", NETS)


def traced(net: str, eps: float) -> tuple[nn.Module, BoundTrace, Tensor, Tensor]:
    model, (x, labels) = network(net), inputs(net)
    return model, trace_bounds(checked_graph(model), input_box(x, eps)), x, labels


def unfused(margins: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(-margins, labels, reduction="none")


def head(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False).double()
    layer.load_state_dict({"weight": torch.tensor(weight)})
    return layer


def fused(model: nn.Module, x: Tensor, labels: list[int], eps: float) -> Tensor:
    return fused_cross_entropy(trace_bounds(checked_graph(model), input_box(x, eps, None)), torch.tensor(labels))


def test_two_classes_by_hand():
    # z = logit[1] − logit[0] = 2x, at most 2 · (1 + 0.5): the chord meets exp there.
    found = fused(head([[0.0], [2.0]]), torch.ones(1, 1, dtype=torch.float64), [0], 0.5)
    assert found.item() == pytest.approx(math.log(1 + math.exp(3)))


def test_classes_that_cannot_all_be_worst_at_once_by_hand():
    # z₁ = x and z₂ = −x on [−1, 1]: by class 1 + e + e, by the sum of two chords 1 + 2 cosh 1.
    model, x = head([[0.0], [1.0], [-1.0]]), torch.zeros(1, 1, dtype=torch.float64)
    assert fused(model, x, [0], 1.0).item() == pytest.approx(math.log(1 + 2 * math.cosh(1)))
    trace = trace_bounds(checked_graph(model), input_box(x, 1.0, None))
    by_class = unfused(linear.margins(trace, torch.tensor([0])), torch.tensor([0]))
    assert by_class.item() == pytest.approx(math.log(1 + 2 * math.e))


@EVERY_NET
def test_without_width_it_is_the_cross_entropy(net: str):
    model, trace, x, labels = traced(net, 0.0)
    torch.testing.assert_close(fused_cross_entropy(trace, labels), unfused(-model(x), labels), rtol=0, atol=1e-11)


@torch.no_grad()
def samples(model: nn.Module, x: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The cross-entropy (N, B) at many points of each box."""
    return torch.stack([unfused(-model(p), labels) for p in points_inside(*ball(x, eps, (0.0, 1.0)), count=60)])


def worst_corner(model: nn.Module, x: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The cross-entropy (B,) after ascending steps, each to the corner that the gradient points at."""
    lower, upper = ball(x, eps, (0.0, 1.0))
    for _ in range(3):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(unfused(-model(x), labels).sum(), x)
        x = torch.where(gradient > 0, upper, lower)
    return unfused(-model(x), labels).detach()


@EVERY_NET
@pytest.mark.parametrize("eps", RADII)
def test_no_point_of_a_box_has_a_larger_loss(net: str, eps: float):
    model, trace, x, labels = traced(net, eps)
    bound = fused_cross_entropy(trace, labels).detach()
    assert bool((samples(model, x, labels, eps) <= bound + 1e-12).all())
    assert bool((worst_corner(model, x, labels, eps) <= bound + 1e-12).all())


@EVERY_NET
@pytest.mark.parametrize("eps", RADII)
def test_it_is_never_above_the_loss_of_intervals_where_linear_bounds_are_tighter(net: str, eps: float):
    _, trace, _, labels = traced(net, eps)
    tighter = (linear.margins(trace, labels) >= trace.margins(labels) - 1e-12).all(1)
    below = fused_cross_entropy(trace, labels) <= unfused(trace.margins(labels), labels) + 1e-12
    assert bool(tighter.any())
    assert bool(below[tighter].all())


def test_it_may_lie_on_either_side_of_the_loss_by_class():
    gaps = []
    for eps in RADII:
        _, trace, _, labels = traced("mlp", eps)
        gaps += (fused_cross_entropy(trace, labels) - unfused(linear.margins(trace, labels), labels)).tolist()
    assert min(gaps) < 0 < max(gaps)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
def test_wide_bounds_overflow_nothing(size: float):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight.mul_(size)
    x, labels = torch.rand(5, 3), torch.tensor([0, 1, 2, 3, 0])
    bound = fused_cross_entropy(trace_bounds(checked_graph(model), input_box(x, 0.2)), labels)
    bound.sum().backward()
    assert bool(bound.isfinite().all())
    assert bool((unfused(-model(x), labels) <= bound * (1 + 1e-5)).all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


# --- in the objective ------------------------------------------------------------------------------------


def crown_ibp(loss_fusion: bool) -> dict[str, object]:
    return {"name": "crown-ibp", "loss_fusion": loss_fusion}


@pytest.mark.parametrize("loss_fusion", [True, False])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_objective_mixes_by_the_warm_up(loss_fusion: bool, share: float):
    net, eps_max = "cnn4_bn", 0.1
    eps = share * eps_max
    model, trace, x, labels = traced(net, eps)
    terms = objective_terms(model, x, labels, eps, eps_max=eps_max, weight=0.0, objective=crown_ibp(loss_fusion))
    by_interval, by_line = trace.margins(labels), linear.margins(trace, labels)
    if loss_fusion:
        losses = unfused(by_interval, labels).mean(), fused_cross_entropy(trace, labels).mean()
        expected = share * losses[0] + (1 - share) * losses[1]
    else:
        expected = unfused(share * by_interval + (1 - share) * by_line, labels).mean()
    assert terms.robust.item() == pytest.approx(expected.item(), rel=1e-12)
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("loss_fusion", [True, False])
def test_gradients_are_those_of_finite_differences(loss_fusion: bool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double().train()
    x, labels = torch.rand(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])

    def loss(weight: Tensor) -> Tensor:
        with torch.no_grad():
            model[0].weight.copy_(weight)
        return objective_terms(model, x, labels, 0.05, eps_max=0.1, objective=crown_ibp(loss_fusion)).total

    start = model[0].weight.detach().clone()
    loss(start).backward()
    direction, step = torch.randn_like(start), 1e-6
    with torch.no_grad():
        slope = (loss(start + step * direction) - loss(start - step * direction)) / (2 * step)
    assert (model[0].weight.grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5)
