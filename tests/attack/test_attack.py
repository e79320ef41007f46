"""The attack: finds what a closed form says is there, stays in the box, and repeats itself."""

import pytest
import torch
from tiny import classifier, images
from torch import Generator, Tensor, nn

from certtrain.attack import APGD, ATTACKS, PGD, Attacked, Settings, attack, named
from certtrain.data import to_unit
from certtrain.objective import correct_points

EPS = 0.1


def linear() -> nn.Linear:
    """Two logits, w·x and −w·x, with w of mixed signs and sum zero: both classes are alike often."""
    layer, weight = nn.Linear(6, 2, bias=False), torch.linspace(-1, 1, 6)
    layer.load_state_dict({"weight": torch.stack([weight, -weight])})
    return layer


@torch.no_grad()
def points(count: int = 200) -> tuple[Tensor, Tensor]:
    """Random pixels, with the class that the linear model gives them."""
    x = torch.rand(count, 6, generator=Generator().manual_seed(5))
    return x, linear()(x).argmax(1)


@torch.no_grad()
def exact_margins(x: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The smallest margin of the linear model over each box: at the corner that its weights point away from."""
    sign, (first, second) = 1 - 2 * labels, linear().weight
    slopes = sign.unsqueeze(1) * (first - second)
    corner = torch.where(slopes > 0, (x - eps).clamp(min=0), (x + eps).clamp(max=1))
    return (slopes * corner).sum(1)


def test_on_a_linear_model_it_finds_an_adversarial_input_exactly_where_there_is_one():
    x, labels = points()
    worst = exact_margins(x, labels, EPS)
    clear = worst.abs() > 1e-5
    broken = attack(linear(), x, labels, EPS, PGD()).broken
    assert torch.equal(broken[clear], worst[clear] < 0)
    assert 20 < broken.sum() < 180


def attacked() -> tuple[nn.Module, Tensor, Tensor, Attacked]:
    model, data = classifier(seed=1), images(60)
    x = to_unit(data.images)
    with torch.no_grad():
        labels = model(x).argmax(1)
    return model, x, labels, attack(model, x, labels, EPS, PGD(steps=10))


def test_adversarial_inputs_stay_in_the_box_of_pixels():
    _, x, _, found = attacked()
    assert (found.adversarial - x).abs().max() <= EPS + 1e-6
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1


def test_adversarial_inputs_are_misclassified_and_others_untouched():
    model, x, labels, found = attacked()
    assert 0 < found.broken.sum() < len(x)
    with torch.no_grad():
        assert torch.equal(correct_points(model(found.adversarial), labels), ~found.broken)
    assert torch.equal(found.adversarial[~found.broken], x[~found.broken])


def test_more_eps_breaks_no_fewer():
    x, labels = points()
    counts = [attack(linear(), x, labels, eps, PGD()).broken.sum().item() for eps in (0.0, 0.02, 0.1, 0.3, 1.0)]
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[1]
    assert counts[-1] == 200


def test_the_same_seed_repeats_and_another_starts_elsewhere():
    model, x, labels, _ = attacked()
    runs = [attack(model, x, labels, 0.3, PGD(steps=2, seed=seed)).adversarial for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_each_batch_has_starts_of_its_own():
    model, x, labels, _ = attacked()
    first, second = (attack(model, x, labels, 0.3, PGD(steps=2), index).adversarial for index in (0, 1))
    assert not torch.equal(first, second)


def test_the_global_random_numbers_are_not_touched():
    before = torch.get_rng_state()
    attacked()
    assert torch.equal(torch.get_rng_state(), before)


def test_restarts_break_no_fewer():
    model, x, labels, _ = attacked()
    once, often = (attack(model, x, labels, EPS, PGD(steps=2, restarts=n)).broken for n in (1, 5))
    assert bool((often | ~once).all())


def test_without_eps_only_what_is_misclassified_is_broken():
    model, x, labels, _ = attacked()
    wrong = torch.arange(len(x)) % 3 == 0
    found = attack(model, x, torch.where(wrong, (labels + 1) % 3, labels), 0.0, PGD())
    assert torch.equal(found.broken, wrong)
    assert torch.equal(found.adversarial, x)


def test_what_is_misclassified_already_counts_as_broken():
    model, x, labels, _ = attacked()
    assert attack(model, x, (labels + 1) % 3, EPS, PGD(steps=1)).broken.all()


def test_what_is_not_finite_counts_as_broken():
    model = linear()
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    assert attack(model, *points(5), EPS, PGD(steps=2)).broken.all()


@pytest.mark.parametrize("training", [True, False])
def test_it_changes_neither_gradients_nor_input(training: bool):
    model, (x, labels) = linear().train(training), points(10)
    kept = x.clone()
    attack(model, x, labels, EPS, PGD(steps=2))
    assert model.weight.grad is None
    assert torch.equal(x, kept)
