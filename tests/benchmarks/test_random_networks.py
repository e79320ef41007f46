"""Random networks of all supported layers: no claim about them is contradicted, and a wrong rule is found."""

import contextlib

import pytest
import torch
from random_networks import ACTIVATED, describe, draw_network, drawn_networks
from random_trials import Trial, random_campaign, real_bounds
from torch import nn

from certtrain.bounds import guard, interval, linear
from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.graph import Add
from certtrain.bounds.linear import Substitution
from certtrain.bounds.reading import read_layers

SEED = 0
COUNT = 12  # networks that are tested here; .ci/run tests 200
DRAWN = 150  # of which each layer is one
QUIET = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.mark.slow
def test_nothing_that_is_claimed_of_random_networks_is_contradicted():
    total = random_campaign(COUNT, SEED)
    assert total.faults == [], f"seed {SEED}"
    assert total.networks == COUNT
    assert total.certified > COUNT


@QUIET
def test_every_layer_with_a_rule_is_drawn():
    drawn = (read_layers(network) for _, network, _ in drawn_networks(DRAWN, SEED))
    assert {type(call.layer) for graph in drawn for call in graph.calls} == set(interval.INTERVAL_RULES)


def test_every_activation_can_be_drawn():
    assert ACTIVATED.keys() == ACTIVATIONS.keys()


def test_the_same_seed_draws_the_same_network():
    first, again = draw_network(5), draw_network(5)
    assert describe(first[0]) == describe(again[0])
    x = torch.rand(2, *first[1])
    torch.testing.assert_close(first[0](x), again[0](x), rtol=0, atol=0)


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks of shapes and of proofs, so that a wrong rule is not stopped before it makes false claims."""
    monkeypatch.setattr(linear, "check_coefficients", lambda *about: None)
    monkeypatch.setattr(guard, "_compare", lambda *about: None)


def first_false_bound(first: int) -> str:
    """What is found against the bounds of the first network that contradicts them; crashes do not count.

    The search begins with the network `first`, which is known to do so while networks are drawn as they are today.
    """
    for number in range(first, first + 400):
        trial = Trial(number, *draw_network(number))
        x = torch.rand(2, *trial.shape, generator=torch.Generator().manual_seed(number))
        with contextlib.suppress(Exception):
            real_bounds(trial, x, 0.1, torch.Generator().manual_seed(number))
        if found := [fault for fault in trial.faults if "its lower bound" in fault]:
            return str(found[0])
    return ""


@QUIET
@pytest.mark.usefixtures("unguarded")
def test_linear_bounds_that_forget_a_stretched_side_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(
        linear.LINEAR_RULES, Add, lambda record, coefficients: Substitution((coefficients, coefficients))
    )
    assert "add of" in first_false_bound(269)


@QUIET
@pytest.mark.usefixtures("unguarded")
def test_a_linear_rule_without_its_constant_is_found(monkeypatch: pytest.MonkeyPatch):
    right = linear.LINEAR_RULES[nn.MaxPool2d]
    monkeypatch.setitem(linear.LINEAR_RULES, nn.MaxPool2d, lambda record, c: right(record, c)._replace(constant=None))
    assert first_false_bound(116)


@QUIET
@pytest.mark.usefixtures("unguarded")
def test_an_interval_rule_that_is_too_narrow_is_found(monkeypatch: pytest.MonkeyPatch):
    def too_narrow(layer: nn.Module, box: interval.Box) -> interval.Box:
        found = right(layer, box)
        return found._replace(radius=found.radius * 0.7)

    right = interval.INTERVAL_RULES[nn.ReLU]
    monkeypatch.setitem(interval.INTERVAL_RULES, nn.ReLU, too_narrow)
    assert first_false_bound(46)
