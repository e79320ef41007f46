"""The guard: what inference contradicts is a fault, whatever method claims it, and what holds passes."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from certtrain.bounds import interval, relaxation
from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.box import Box
from certtrain.bounds.guard import check_margins
from certtrain.bounds.lines import Lines
from certtrain.bounds.methods import METHODS
from certtrain.errors import SoundnessError
from certtrain.properties.cases import robustness
from certtrain.properties.decide import decide
from certtrain.verification.certificate import Certifier, certify
from certtrain.verification.verify import verify
from helpers import tiny_classifier


def too_narrow(layer: nn.ReLU, box: Box) -> Box:
    """A rule for intervals that forgets what is below the centre."""
    return Box(torch.relu(box.centre), torch.zeros_like(box.radius), box.clean)


def too_high(layer: nn.ReLU, box: Box) -> Lines:
    """Lines whose lower one lies above the curve: the chord on both sides, which bounds from above alone."""
    lines = RELU.lines(layer, box)
    return Lines(lines.upper_slope, lines.upper_offset, lines.upper_slope, lines.upper_offset)


RELU = ACTIVATIONS[nn.ReLU]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def batch() -> tuple[nn.Module, Tensor, Tensor]:
    model, x = network(), torch.rand(12, 6)
    return model, x, model(x).argmax(1)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interval.INTERVAL_RULES, nn.ReLU, too_narrow)
    monkeypatch.setattr(relaxation, "ACTIVATIONS", {**ACTIVATIONS, nn.ReLU: replace(RELU, lines=too_high)})


@pytest.mark.parametrize("arithmetic", ["float32", "tf32", "bf16", "real"])
@pytest.mark.parametrize("method", METHODS)
def test_what_holds_passes(method: str, arithmetic: str):
    model, x, labels = batch()
    assert "certified" in certify(model, x, labels, 0.001, method=method, arithmetic=arithmetic).verdicts


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("arithmetic", ["float32", "real"])
@pytest.mark.parametrize("method", METHODS)
def test_certify_refuses_what_inference_contradicts(method: str, arithmetic: str):
    model, x, labels = batch()
    with pytest.raises(SoundnessError, match="This is a fault in certtrain"):
        certify(model, x, labels, 0.3, method=method, arithmetic=arithmetic)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("method", ["ibp", "alpha-crown", "auto"])
def test_verify_refuses_it_without_an_attack(method: str):
    model, images = tiny_classifier.classifier(), tiny_classifier.images(60)
    with pytest.raises(SoundnessError, match="This is a fault in certtrain"):
        verify(model, images, 0.5, attack=None, method=method)


@pytest.mark.usefixtures("broken")
def test_decide_refuses_it():
    model, x, labels = batch()
    asked = robustness(x[0], int(labels[0]), 0.3, 3)
    with pytest.raises(SoundnessError, match="This is a fault in certtrain"):
        decide(model, (6,), asked)


def linear_network(weight: list[list[float]]) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ torch.tensor(weight, dtype=x.dtype).T


IDENTITY = linear_network([[1.0, 0.0], [0.0, 1.0]])
X, LABEL = torch.tensor([[0.5, 0.25]]), torch.tensor([0])  # margin 0.25; over a box of radius 0.1 at least 0.05


def bound(value: float) -> Tensor:
    return torch.tensor([[0.0, value]], dtype=torch.float64)


def test_a_bound_at_the_true_minimum_passes_and_one_above_it_is_found_at_a_corner():
    check_margins(IDENTITY, X, LABEL, 0.1, bound(0.05 - 1e-6))
    with pytest.raises(SoundnessError, match=r"inference gives 0.05 at a corner of a box, where 0.06"):
        check_margins(IDENTITY, X, LABEL, 0.1, bound(0.06))


def test_a_bound_above_the_value_at_the_centre_is_found_there():
    with pytest.raises(SoundnessError, match=r"inference gives 0.25 at the centre of a box, where 0.3"):
        check_margins(IDENTITY, X, LABEL, 0.0, bound(0.3))


def test_of_the_smallest_margin_alone_the_bound_is_checked_as_well():
    smallest = torch.tensor([[0.06]], dtype=torch.float64)
    with pytest.raises(SoundnessError):
        check_margins(IDENTITY, X, LABEL, 0.1, smallest)


@pytest.mark.parametrize("nothing", [math.nan, -math.inf, math.inf])
def test_what_is_not_finite_claims_nothing(nothing: float):
    check_margins(IDENTITY, X, LABEL, 0.1, bound(nothing))


def test_logits_that_are_not_finite_contradict_any_bound():
    with pytest.raises(SoundnessError):
        check_margins(linear_network([[math.inf, 0.0], [0.0, math.inf]]), X, LABEL, 0.1, bound(0.01))


def test_of_intervals_those_that_are_certified_are_compared_first():
    model, x, labels = batch()
    labels[6:] = (labels[6:] + 1) % 3
    certifier, seen = Certifier(model), list[Tensor]()
    certifier.guard = lambda x, *others: seen.append(x)
    certified = certifier.certify(x, labels, 0.001).certified
    assert bool(certified[:6].any())
    assert all(any(torch.equal(row, other) for other in x[certified]) for row in seen[0])
