"""The training loss by hand: certified cross-entropy, what counts as certified, both regularisers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain import objective_terms, propagate
from certtrain.bounds.box import Box
from certtrain.bounds.trace import BoundTrace
from certtrain.errors import DataError, EpsilonError, MethodError
from certtrain.spec.schedule import warmup_weight
from certtrain.training.loss import LossTerms, Regularizers, loss_terms
from certtrain.training.objectives.base import RobustLosses, margin_losses
from certtrain.training.regularizers import Sums, balance_ratios, relu_balance_loss, sums_of, tightness_loss
from certtrain.verdicts import certified_examples, correct_examples

NAN, INF = math.nan, math.inf


def box(*ends: tuple[float, float]) -> Box:
    """One example's box from (lower, upper) pairs."""
    lower, upper = torch.tensor(ends, dtype=torch.float64).T.unsqueeze(1)
    return Box((lower + upper) / 2, (upper - lower) / 2)


def sums(*boxes: Box) -> Sums:
    """What the regularisers know of these boxes, each of one layer."""
    return Sums(*sums_of(boxes).unbind(1))


# --- certified cross-entropy -----------------------------------------------------------------------------


def test_certified_cross_entropy_by_hand():
    margins = torch.tensor([[0.0, math.log(3), math.log(2)]])
    assert margin_losses(margins, torch.tensor([0])).item() == pytest.approx(math.log(1 + 1 / 3 + 1 / 2))


def test_certified_cross_entropy_has_a_value_for_each_example():
    margins, labels = torch.tensor([[0.0, 1.0], [-2.0, 0.0]]), torch.tensor([0, 1])
    expected = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))]
    assert margin_losses(margins, labels).tolist() == pytest.approx(expected)


# --- what counts as certified ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margins", "certified"),
    [
        ([0.0, 1.0, 2.0], True),
        ([0.0, 1e-30, 2.0], True),
        ([0.0, 0.0, 2.0], False),
        ([0.0, -1.0, 2.0], False),
        ([NAN, 1.0, 2.0], True),  # the label's own column says nothing
        ([-INF, 1.0, 2.0], True),
        ([0.0, NAN, 2.0], False),
        ([0.0, 1.0, NAN], False),
        ([0.0, INF, 2.0], False),
        ([0.0, 1.0, INF], False),
        ([0.0, INF, INF], False),
        ([0.0, -INF, 2.0], False),
        ([NAN, NAN, NAN], False),
        ([INF, INF, INF], False),
    ],
)
def test_only_finite_margins_above_zero_certify(margins: list[float], certified: bool):
    assert certified_examples(torch.tensor([margins]), torch.tensor([0])).tolist() == [certified]


@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_column_left_out_is_the_labels(label: int):
    margins = torch.ones(1, 3)
    margins[0, label] = 0.0
    assert certified_examples(margins, torch.tensor([label])).tolist() == [True]
    assert certified_examples(margins, torch.tensor([(label + 1) % 3])).tolist() == [False]


def test_each_point_is_judged_by_itself():
    margins = torch.tensor([[0.0, 1.0], [0.0, NAN], [0.0, -1.0], [0.0, 2.0]])
    assert certified_examples(margins, torch.zeros(4, dtype=torch.long)).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("logits", "correct"),
    [
        ([2.0, 1.0, 0.0], True),
        ([2.0, 2.0, 0.0], False),
        ([1.0, 2.0, 0.0], False),
        ([NAN, 1.0, 0.0], False),
        ([2.0, NAN, 0.0], False),
        ([2.0, 1.0, NAN], False),
        ([INF, 1.0, 0.0], False),
        ([2.0, 1.0, -INF], False),
        ([NAN, NAN, NAN], False),
    ],
)
def test_correct_means_the_one_largest_and_finite(logits: list[float], correct: bool):
    assert correct_examples(torch.tensor([logits]), torch.tensor([0])).tolist() == [correct]


# --- tightness -------------------------------------------------------------------------------------------


def test_tightness_by_hand():
    start, layers = box((-1, 1), (0, 2)), [box((-4, 4)), box((-8, 8)), box((-1, 1))]
    expected = ((0.5 - 1 / 4) + (0.5 - 1 / 8) + 0) / 0.5 / 3
    assert tightness_loss(sums(start), sums(*layers), 0.5).item() == pytest.approx(expected)


def test_the_width_is_the_mean_over_batch_and_units():
    layer = Box(torch.zeros(2, 2), torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
    assert tightness_loss(sums(box((-1, 1))), sums(layer), 0.5).item() == pytest.approx((0.5 - 1 / 4) / 0.5)


@pytest.mark.parametrize("growth", [2.0, 1.0, 0.5])
def test_tightness_is_zero_once_its_tolerance_is_met(growth: float):
    assert tightness_loss(sums(box((-1, 1))), sums(box((-growth, growth))), 0.5).item() == 0


def test_tightness_pulls_only_on_layers_that_are_too_wide():
    radii = [torch.tensor([[r]], requires_grad=True) for r in (4.0, 1.0, 0.0)]
    tightness_loss(sums(box((-1, 1))), sums(*(Box(torch.zeros(1, 1), r) for r in radii)), 0.5).backward()
    assert [r.grad.item() for r in radii] == pytest.approx([1 / 16 / 0.5 / 3, 0, 0])


# --- balance ---------------------------------------------------------------------------------------------

BALANCED = box((1, 3), (-3, -1))  # centres 2 and −2, one active and one inactive
UNSTABLE = box((-1, 1), (-2, 2))


def test_balance_ratios_by_hand():
    layer = box((3, 5), (0.5, 1.5), (-3, -1), (-1, 2))  # centres 4, 1, −2, 0.5; the last is unstable
    deviations = [(c - 0.875) ** 2 for c in (4, 1, -2)]
    mean, variance = balance_ratios(sums(layer))
    assert mean.item() == pytest.approx(2 / (4 + 1))
    assert variance.item() == pytest.approx(deviations[2] / (deviations[0] + deviations[1]))


def test_balance_ratios_are_folded_alike():
    centres, radius = torch.tensor([[4.0, 2.0, -2.0]]), torch.full((1, 3), 0.1)
    both = balance_ratios(sums(Box(centres, radius))), balance_ratios(sums(Box(-centres, radius)))
    for mine, mirrored in zip(*both, strict=True):
        assert mine.item() == pytest.approx(mirrored.item())
        assert 0 < mine.item() < 1


@pytest.mark.parametrize("end", [0.0, -0.5])
def test_bounds_that_touch_zero_are_unstable(end: float):
    mean, _ = balance_ratios(sums(box((end, 2), (-2, -end))))
    assert mean.isnan()


def test_balance_by_hand():
    loss, skipped = relu_balance_loss(sums(box((3, 5), (-2, 0.0 - 1e-9))), 0.5)
    mean, variance = 1 / 4, 1.0  # two centres are equally far from their mean
    assert loss.item() == pytest.approx(((0.5 - mean) + max(0.5 - variance, 0)) / 0.5, abs=1e-6)
    assert skipped.item() == 0


def test_balance_is_zero_once_its_tolerance_is_met():
    loss, skipped = relu_balance_loss(sums(BALANCED), 0.5)
    assert (loss.item(), skipped.item()) == (0, 0)


def test_layers_without_a_ratio_are_skipped_and_counted():
    one_sided = box((1, 2), (2, 3))
    loss, skipped = relu_balance_loss(sums(UNSTABLE, BALANCED, one_sided, UNSTABLE), 0.5)
    assert loss.item() == pytest.approx((0 + 0 + 2 + 0) / 4)
    assert skipped.item() == 2


CORNER_CASES = {
    "all active": [[1.0, 2.0, 4.0], [3.0, 1.0, 2.0]],
    "all inactive": [[-1.0, -2.0, -4.0], [-3.0, -1.0, -2.0]],
    "all unstable": [[0.01, -0.02, 0.0], [0.03, 0.0, -0.01]],
    "one of each": [[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]],
    "all alike": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
    "all zero": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
}


@pytest.mark.parametrize("name", CORNER_CASES)
@pytest.mark.parametrize("radius", [0.0, 0.1])
def test_both_regularisers_have_finite_gradients(name: str, radius: float):
    centre = torch.tensor(CORNER_CASES[name], requires_grad=True)
    radii = torch.full_like(centre, radius).requires_grad_()
    layer = Box(centre, radii)
    loss = relu_balance_loss(sums(layer), 0.5)[0] + tightness_loss(sums(box((-1e-6, 1e-6))), sums(layer), 0.5)
    loss.backward()
    assert loss.isfinite()
    assert centre.grad is not None
    assert centre.grad.isfinite().all()
    assert radii.grad.isfinite().all()


@pytest.mark.parametrize("name", ["all active", "all inactive"])
def test_a_one_sided_layer_is_penalised_in_full(name: str):
    loss, skipped = relu_balance_loss(sums(Box(torch.tensor(CORNER_CASES[name]), torch.zeros(2, 3))), 0.5)
    assert (loss.item(), skipped.item()) == (2, 0)


# --- the whole loss --------------------------------------------------------------------------------------

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


@torch.no_grad()
def small(*, relu: bool = True) -> nn.Sequential:
    """Its first weights are large, so that the bounds grow."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)] if relu else [nn.Linear(4, 3)]
    layers[0].weight.mul_(4)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize(("eps", "share"), [(0.0, 1.0), (0.025, 0.75), (0.05, 0.5), (0.1, 0.0)])
def test_the_weight_falls_to_zero_as_the_warm_up_ends(eps: float, share: float):
    assert warmup_weight(eps, eps_max=0.1) == pytest.approx(share)


@pytest.mark.parametrize("eps", [0.0, 0.02, 0.1])
def test_the_total_is_made_of_its_terms(eps: float):
    terms = objective_terms(small(), X, Y, eps, eps_max=0.1, weight=0.6, tolerance=1.0)
    assert terms.tightness > 0
    assert terms.relu_balance > 0
    main = terms.robust if eps > 0 else terms.natural
    expected = main + 0.6 * (1 - eps / 0.1) * (terms.tightness + terms.relu_balance)
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-12)


def test_robust_and_natural_losses_by_their_definitions():
    model = small()
    terms, trace = objective_terms(model, X, Y, 0.05, eps_max=0.1), propagate(model, X, 0.05)
    worst = -trace.margins(Y)
    assert terms.natural.item() == pytest.approx(F.cross_entropy(model(X), Y).item(), rel=1e-12)
    assert terms.robust.item() == pytest.approx(F.cross_entropy(worst, Y).item(), rel=1e-12)
    assert terms.robust > terms.natural


def test_the_robust_loss_is_above_the_loss_at_every_sample():
    model = small()
    robust = objective_terms(model, X, Y, 0.1, eps_max=0.1).robust
    for sign in (-1, 1):
        assert robust >= F.cross_entropy(model((X + sign * 0.1).clamp(0, 1)), Y)


def test_while_eps_is_zero_the_regularisers_see_a_tiny_box():
    at_zero, tiny = (objective_terms(small(), X, Y, eps, eps_max=0.1) for eps in (0.0, 1e-6))
    assert at_zero.tightness.item() == tiny.tightness.item()
    assert at_zero.relu_balance.item() == tiny.relu_balance.item()


def test_a_network_without_relu_has_no_regularisers():
    terms = objective_terms(small(relu=False), X, Y, 0.05, eps_max=0.1)
    assert [t.item() for t in (terms.tightness, terms.relu_balance, terms.skipped_layers)] == [0, 0, 0]
    assert terms.total.item() == terms.robust.item()


def terms_of(model: nn.Module, robust_share: float, regularizers: Regularizers | None) -> LossTerms:
    trace: BoundTrace = propagate(model, X, 0.05)
    assert trace.clean is not None
    robust = RobustLosses(margin_losses(trace.margins(Y), Y), trace.margins(Y), (trace,))
    return loss_terms(trace.clean, robust, Y, robust_share=robust_share, regularizers=regularizers)


def test_each_regulariser_has_its_own_weight():
    both = terms_of(small(), 1.0, Regularizers(0.3, 0.7, 1.0))
    assert both.total.item() == pytest.approx((both.robust + 0.3 * both.tightness + 0.7 * both.relu_balance).item())
    assert (both.tightness > 0, both.relu_balance > 0) == (True, True)


@pytest.mark.parametrize("share", [1.0, 0.0, 0.25])
def test_without_regularisers_the_total_is_a_mix_of_two_losses(share: float):
    terms = terms_of(small(), share, None)
    mix = share * terms.robust + (1 - share) * terms.natural
    assert terms.total.item() == (pytest.approx(mix.item()) if share == 0.25 else mix.item())
    assert [t.item() for t in (terms.tightness, terms.relu_balance, terms.skipped_layers)] == [0, 0, 0]


def gradients(model: nn.Module, eps: float) -> list[Tensor]:
    objective_terms(model, X, Y, eps, eps_max=0.1).total.backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.1])
def test_all_gradients_are_finite(eps: float):
    assert all(gradient.isfinite().all() for gradient in gradients(small(), eps))


@pytest.mark.parametrize("objective", ["crown", {"name": "crown"}])
def test_an_unknown_objective_is_an_error(objective: object):
    with pytest.raises(MethodError, match="'crown' is not known; choose from: 'ibp', 'crown-ibp', 'pgd'"):
        objective_terms(small(), X, Y, 0.1, eps_max=0.1, objective=objective)


def test_the_objective_under_its_old_name_is_warned_of():
    with pytest.warns(DeprecationWarning, match="method of objective_terms is now objective"):
        old = objective_terms(small(), X, Y, 0.05, eps_max=0.1, method="crown-ibp")
    assert old.total.item() == objective_terms(small(), X, Y, 0.05, eps_max=0.1, objective="crown-ibp").total.item()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"eps": 0.0, "eps_max": 0.0}, EpsilonError),
        ({"eps": 0.2, "eps_max": 0.1}, EpsilonError),
        ({"eps": -0.1, "eps_max": 0.1}, EpsilonError),
        ({"eps": 0.1, "eps_max": 0.1, "x": X + 1}, DataError),
        ({"eps": 0.1, "eps_max": 0.1, "labels": Y + 1}, DataError),
    ],
)
def test_wrong_arguments_are_named_errors(arguments: dict, error: type[Exception]):
    with pytest.raises(error):
        objective_terms(small(), **{"x": X, "labels": Y} | arguments)
