"""Bounds of whole networks: sound on samples, independent of the batch, and one pass in training mode."""

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from certtrain import margin_bounds, output_bounds, propagate
from certtrain.bounds.box import input_box
from certtrain.bounds.methods import METHODS
from certtrain.bounds.settings import Settings
from certtrain.bounds.supported import checked_graph
from certtrain.errors import DataError, EpsilonError, MethodError
from certtrain.spec.architecture import CNN3, CNN5, DM, NETWORKS
from helpers.networks import BUILT, case
from helpers.oracle_networks import NETS
from helpers.sampling import assert_inside, ball, points_inside

QUICK_SEARCH = Settings(iterations=5, neurons=20)


ALL = [*NETS, *BUILT]
BOXES = [(0.0, (0.0, 1.0)), (2 / 255, (0.0, 1.0)), (0.1, (0.0, 1.0)), (0.1, None), (1.0, None)]
EVERY_BOX = pytest.mark.parametrize(("eps", "clip"), BOXES)
EVERY_NET = pytest.mark.parametrize("name", ALL)
EVERY_METHOD = pytest.mark.parametrize("method", ["ibp", "crown-ibp"])

# The expensive methods, on networks that they are done with in a moment; the others are left to the slow tests.
QUICK = ["mlp", *(name for name in BUILT if "cnn7" not in name)]
EXPENSIVE = pytest.mark.parametrize("method", [method for method in METHODS if method not in ("ibp", "crown-ibp")])
EVERY_QUICK_NET = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
SOME_BOXES = pytest.mark.parametrize(("eps", "clip"), [(0.02, (0.0, 1.0)), (0.1, None)])


@cache
@torch.no_grad()
def sampled_logits(name: str, eps: float, clip: tuple[float, float] | None) -> Tensor:
    """The logits (P, B, K) of the network of that name at points in the boxes around its inputs."""
    model, x, _ = case(name)
    points = points_inside(*ball(x, eps, clip), count=60)
    return model(points.flatten(0, 1)).unflatten(0, points.shape[:2])


def test_every_architecture_is_built():
    """But Gowal's, too large for these images, cnn3 and cnn5, all built as a cnn is; test_models.py has them."""
    assert {type(a) for a in BUILT.values()} == set(NETWORKS.values()) - {DM, CNN3, CNN5}


@EVERY_NET
@EVERY_BOX
@EVERY_METHOD
def test_logits_of_samples_stay_inside(name: str, eps: float, clip: tuple[float, float] | None, method: str):
    model, x, _ = case(name)
    assert_inside(sampled_logits(name, eps, clip), *output_bounds(model, x, eps, clip=clip, method=method))


@EVERY_NET
@EVERY_BOX
@EVERY_METHOD
def test_margins_of_samples_stay_above(name: str, eps: float, clip: tuple[float, float] | None, method: str):
    model, x, labels = case(name)
    logits, lower = sampled_logits(name, eps, clip), margin_bounds(model, x, labels, eps, clip=clip, method=method)
    own = logits.gather(2, labels.view(1, -1, 1).expand(len(logits), -1, 1))
    rounding = 1e-12 * (1 + lower.abs().max())
    assert bool((own - logits >= lower - rounding).all())


@EVERY_QUICK_NET
@SOME_BOXES
@EXPENSIVE
def test_samples_stay_inside_the_bounds_of_expensive_methods(
    name: str, eps: float, clip: tuple[float, float] | None, method: str
):
    model, x, labels = case(name)
    kept = slice(None) if name in QUICK and "resnext" not in name else slice(1)  # one input takes long enough
    x, labels, logits = x[kept], labels[kept], sampled_logits(name, eps, clip)[:, kept]
    bounds = METHODS[method](checked_graph(model), input_box(x, eps, clip), QUICK_SEARCH)
    assert_inside(logits, *bounds.ends())
    own = logits.gather(2, labels.view(1, -1, 1).expand(len(logits), -1, 1))
    lower = bounds.margins(labels)
    assert bool((own - logits >= lower - 1e-12 * (1 + lower.abs().max())).all())


@pytest.mark.parametrize("name", ["mlp", "cnn built", "wide-resnet built"])
@EXPENSIVE
def test_expensive_bounds_do_not_depend_on_the_batch(name: str, method: str):
    model, x, labels = case(name)
    graph, bound = checked_graph(model), METHODS[method]
    together = bound(graph, input_box(x, 0.03, None), QUICK_SEARCH).margins(labels)
    for i in range(3):
        alone = bound(graph, input_box(x[i : i + 1], 0.03, None), QUICK_SEARCH).margins(labels[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["mlp", "cnn built"])
@pytest.mark.parametrize("method", METHODS)
def test_linear_functions_of_sampled_logits_stay_above_their_bounds(name: str, method: str):
    model, x, labels = case(name)
    bounds = METHODS[method](checked_graph(model), input_box(x, 0.03), QUICK_SEARCH)
    functions = torch.randn(3, 5, bounds.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lower = bounds.lower_bounds_of(functions)
    seen = torch.einsum("bsk,nbk->nbs", functions, sampled_logits(name, 0.03, (0.0, 1.0)))
    assert bool((seen >= lower - 1e-12 * (1 + lower.abs().max())).all())
    each = torch.eye(bounds.shape[1], dtype=torch.float64)
    margins = bounds.lower_bounds_of(each[labels].unsqueeze(1) - each)
    torch.testing.assert_close(margins, bounds.margins(labels), rtol=0, atol=1e-9)


@EVERY_NET
def test_relu_inputs_of_samples_stay_inside(name: str):
    model, x, _ = case(name)
    boxes, seen = propagate(model, x, 0.05).relu_inputs, []
    for relu in (layer for layer in model.modules() if isinstance(layer, nn.ReLU)):
        relu.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    with torch.no_grad():
        for point in points_inside(*ball(x, 0.05, (0.0, 1.0)), count=10):
            model(point)
    assert len(seen) == (10 * len(boxes) if name != "residual_bn" else 0)
    for number, value in enumerate(seen):
        box = boxes[number % len(boxes)]
        assert_inside(value.unsqueeze(0), box.lower, box.upper)


@EVERY_NET
@pytest.mark.parametrize("eps", [0.0, 2 / 255, 0.1])
def test_eliding_the_last_layer_is_never_looser(name: str, eps: float):
    model, x, labels = case(name)
    lower, upper = output_bounds(model, x, eps)
    margins, column = margin_bounds(model, x, labels, eps), labels.unsqueeze(1)
    apart = (lower.gather(1, column) - upper).scatter(1, column, 0.0)
    rounding = 1e-12 * (1 + apart.abs().max())
    assert bool((margins >= apart - rounding).all())
    assert bool((margins.gather(1, column) == 0).all())
    if name in ("mlp", "residual_bn", "cnn built"):  # the others' last features may all be cut off
        assert bool((margins > apart + rounding).any()) == (eps > 0)


def test_without_a_linear_last_layer_margins_come_from_the_logits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).double()
    x, labels = torch.rand(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    lower, upper = output_bounds(model, x, 0.1)
    found, rows = margin_bounds(model, x, labels, 0.1), torch.arange(4)
    apart = lower[rows, labels] - upper[rows, 1 - labels]
    torch.testing.assert_close(found[rows, 1 - labels], apart, rtol=1e-12, atol=1e-12)  # other sums, other roundings
    assert torch.equal(found[rows, labels], torch.zeros(4, dtype=torch.float64))


@EVERY_NET
def test_a_box_without_width_is_the_forward_pass(name: str):
    model, x, _ = case(name)
    trace = propagate(model, x, 0.0)
    with torch.no_grad():
        for found in (trace.lower, trace.upper, trace.clean):
            torch.testing.assert_close(found, model(x), rtol=0, atol=1e-11)


@EVERY_NET
@EVERY_METHOD
def test_in_evaluation_mode_a_bound_does_not_depend_on_the_batch(name: str, method: str):
    model, x, labels = case(name)
    together = margin_bounds(model, x, labels, 0.02, method=method)
    one_by_one = [margin_bounds(model, x[i : i + 1], labels[i : i + 1], 0.02, method=method) for i in range(3)]
    alone = torch.cat(one_by_one)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)


def test_bounds_agree_with_the_trace():
    model, x, labels = case("cnn built")
    trace = propagate(model, x, 0.05)
    for mine, theirs in zip((trace.lower, trace.upper), output_bounds(model, x, 0.05), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(trace.margins(labels), margin_bounds(model, x, labels, 0.05))
    assert [interval.name for interval in trace.relu_inputs] == ["conv1_relu", "conv2_relu", "linear1_relu"]


def test_the_input_box_is_measured_after_normalisation():
    model, x, _ = case("cnn built")
    lower, upper = ((end - torch.tensor([0.4, 0.5]).view(2, 1, 1)) for end in ball(x, 0.05, (0.0, 1.0)))
    deviation = torch.tensor([0.2, 0.3]).view(2, 1, 1)
    box = propagate(model, x, 0.05).input
    torch.testing.assert_close(box.lower, lower / deviation, rtol=0, atol=1e-7)
    torch.testing.assert_close(box.upper, upper / deviation, rtol=0, atol=1e-7)


# --- training mode ---------------------------------------------------------------------------------------

WITH_NORM = [name for name in ALL if name != "mlp" and "without" not in name]
TRAINED = pytest.mark.parametrize("name", WITH_NORM)


def training_case(name: str) -> tuple[nn.Module, Tensor]:
    """In training mode, with inputs whose boxes are cut on one side, so that their centres are elsewhere."""
    model, x, _ = case(name)
    return model.train(), x.clamp(max=0.02)


@TRAINED
def test_the_running_statistics_are_those_of_one_forward_pass(name: str):
    model, x = training_case(name)
    plain = copy.deepcopy(model)
    propagate(model, x, 0.1)
    plain(x)
    expected = dict(plain.named_buffers())
    assert any("num_batches_tracked" in buffer for buffer in expected)
    for buffer, found in model.named_buffers():
        torch.testing.assert_close(found, expected[buffer], rtol=1e-12, atol=1e-13)


@TRAINED
def test_in_training_mode_all_use_the_statistics_of_the_clean_batch(name: str):
    model, x = training_case(name)
    centre = sum(ball(x, 0.1, (0.0, 1.0))) / 2
    by_centre = propagate(copy.deepcopy(model), centre, 0.0).clean
    with torch.no_grad():
        clean = copy.deepcopy(model)(x)
        frozen = frozen_at(model, x)
    trace = propagate(model, x, 0.1)
    torch.testing.assert_close(trace.clean, clean, rtol=0, atol=1e-10)
    for mine, theirs in zip((trace.lower, trace.upper), output_bounds(frozen, x, 0.1), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(by_centre, clean, rtol=1e-3)


def frozen_at(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in evaluation mode whose running statistics are the mean and biased variance of the batch `x`."""
    frozen = copy.deepcopy(model).train()
    for layer in frozen.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.register_forward_pre_hook(_take_statistics)
    frozen(x)
    for layer in frozen.modules():
        layer._forward_pre_hooks.clear()
    return frozen.eval()


def _take_statistics(layer: nn.Module, given: tuple[Tensor]) -> None:
    dims = [d for d in range(given[0].dim()) if d != 1]
    variance, mean = torch.var_mean(given[0], dims, correction=0)
    layer.eval()
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)


def test_momentum_none_averages_all_batches():
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=None)).double().train()
    plain = copy.deepcopy(model)
    for seed in range(3):
        x = torch.rand(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        propagate(model, x, 0.1)
        plain(x)
    torch.testing.assert_close(model[0].running_mean, plain[0].running_mean)
    torch.testing.assert_close(model[0].running_var, plain[0].running_var)


def test_evaluation_leaves_the_statistics_alone():
    model, x, labels = case("cnn built")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    propagate(model, x, 0.1)
    margin_bounds(model, x, labels, 0.1)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


# --- arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.01, 1.01, torch.nan, torch.inf, -torch.inf])
def test_inputs_outside_the_range_are_an_error(value: float):
    model, x, labels = case("cnn built")
    x[1, 0, 2, 2] = value
    for bound in (propagate, output_bounds):
        with pytest.raises(DataError, match=r"must be finite and in \[0, 1\]"):
            bound(model, x, 0.1)
    with pytest.raises(DataError, match=r"must be finite and in \[0, 1\]"):
        margin_bounds(model, x, labels, 0.1)


def test_without_clip_inputs_need_only_be_finite():
    model, x, _ = case("cnn built")
    assert propagate(model, 5 * x, 0.1, clip=None).lower.isfinite().all()
    with pytest.raises(DataError, match="finite"):
        propagate(model, x / 0, 0.1, clip=None)


@pytest.mark.parametrize("eps", [-0.1, 1.5, float("nan"), "8/0"])
def test_a_wrong_eps_is_an_error(eps: float):
    model, x, _ = case("cnn built")
    with pytest.raises(EpsilonError):
        propagate(model, x, eps)


def test_an_unknown_method_is_an_error_that_lists_the_known_ones():
    model, x, _ = case("cnn built")
    with pytest.raises(MethodError, match=r"'crwn' is not known; choose from: .*ibp"):
        output_bounds(model, x, 0.1, method="crwn")


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1, 4], "outside the 4 classes"), ([-1, 0, 1], "outside the 4 classes"), ([0, 1], r"need shape \(3,\)")],
)
def test_labels_that_do_not_fit_are_an_error(labels: list[int], message: str):
    model, x, _ = case("cnn built")
    with pytest.raises(DataError, match=message):
        margin_bounds(model, x, torch.tensor(labels), 0.1)


@pytest.mark.parametrize("shape", [(3, 2, 9, 9), (3, 1, 8, 8), (3, 128)])
def test_inputs_of_the_wrong_shape_are_an_error(shape: tuple[int, ...]):
    model, _, labels = case("cnn built")
    x = torch.full(shape, 0.5, dtype=torch.float64)
    for bound in (propagate, output_bounds):
        with pytest.raises(DataError, match="shape"):
            bound(model, x, 0.1)
    with pytest.raises(DataError, match="shape"):
        margin_bounds(model, x, labels, 0.1)


def test_margins_need_one_row_of_logits_for_each_input():
    model = nn.Sequential(nn.Conv2d(2, 2, 1))
    with pytest.raises(DataError, match="logits"):
        margin_bounds(model, torch.rand(3, 2, 4, 4), torch.tensor([0, 1, 1]), 0.1)
