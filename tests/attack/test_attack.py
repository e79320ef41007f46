"""The attack: finds what a closed form says is there, stays in the box, and repeats itself."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain.attack import APGD, ATTACKS, PGD, AttackResult, AttackSettings, attack, named
from certtrain.attack.criterion import computing_in
from certtrain.data import to_unit
from certtrain.errors import DataError, EpsilonError, MethodError
from certtrain.verdicts import correct_examples
from helpers.tiny_classifier import classifier, images

EPS = 0.1
SETTINGS: list[AttackSettings] = [named(name, steps=12) for name in ATTACKS]
STRONG = (PGD(), APGD(), APGD("dlr", targets=9))
every_attack = pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.name)


class Recorder(nn.Module):
    """A network that keeps its inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.inputs = network, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.detach().clone())
        return self.network(x)


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


@every_attack
def test_on_a_linear_model_it_finds_an_adversarial_input_exactly_where_there_is_one(settings: AttackSettings):
    x, labels = points()
    worst = exact_margins(x, labels, EPS)
    clear = worst.abs() > 1e-5
    broken = attack(linear(), x, labels, EPS, settings).falsified
    assert torch.equal(broken[clear], worst[clear] < 0)
    assert 20 < broken.sum() < 180


def attacked() -> tuple[nn.Module, Tensor, Tensor, AttackResult]:
    model, data = classifier(seed=1), images(60)
    x = to_unit(data.images)
    with torch.no_grad():
        labels = model(x).argmax(1)
    return model, x, labels, attack(model, x, labels, EPS, PGD(steps=10))


def test_adversarial_inputs_are_misclassified_and_others_untouched():
    model, x, labels, found = attacked()
    assert 0 < found.falsified.sum() < len(x)
    with torch.no_grad():
        assert torch.equal(correct_examples(model(found.adversarial), labels), ~found.falsified)
    assert torch.equal(found.adversarial[~found.falsified], x[~found.falsified])


@pytest.mark.parametrize("eps", [0.0, 1e-9, 8 / 255, 0.1, 1.0])
@every_attack
def test_no_input_that_is_tried_leaves_the_box_of_real_numbers(settings: AttackSettings, eps: float):
    model, data = Recorder(classifier(seed=1)), images(14)
    x = to_unit(data.images)
    x[:4], x[4:8] = 0.0, 1.0
    for row in range(len(x)):
        model.inputs.clear()
        label = model(x[row : row + 1]).argmax(1)
        attack(model, x[row : row + 1], label, eps, settings)
        for tried in torch.cat(model.inputs).flatten(1).tolist():
            for pixel, centre in zip(tried, x[row].flatten().tolist(), strict=True):
                assert abs(Fraction(pixel) - Fraction(centre)) <= Fraction(eps)
                assert 0 <= pixel <= 1


def test_more_eps_breaks_no_fewer():
    x, labels = points()
    counts = [attack(linear(), x, labels, eps, PGD()).falsified.sum().item() for eps in (0.0, 0.02, 0.1, 0.3, 1.0)]
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[1]
    assert counts[-1] == 200


@every_attack
def test_the_same_seed_repeats_and_another_starts_elsewhere(settings: AttackSettings):
    model, x, labels, _ = attacked()
    runs = [attack(model, x, labels, 0.3, replace(settings, steps=2, seed=seed)).adversarial for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_each_example_has_a_start_of_its_own_by_its_number():
    model, x, labels, _ = attacked()
    first, second = (attack(model, x, labels, 0.3, PGD(steps=2), index).adversarial for index in (0, 1))
    assert not torch.equal(first, second)
    numbers = torch.arange(len(x)).flip(0)
    flipped = attack(model, x.flip(0), labels.flip(0), 0.3, PGD(steps=2), numbers)
    assert torch.allclose(flipped.adversarial.flip(0), first)


@every_attack
@pytest.mark.parametrize("size", [1, 7])
def test_the_size_of_the_batches_does_not_change_what_is_found(settings: AttackSettings, size: int):
    model, x, labels, _ = attacked()
    whole = attack(model, x, labels, EPS, settings)
    firsts = range(0, len(x), size)
    parts = [attack(model, x[n : n + size], labels[n : n + size], EPS, settings, n) for n in firsts]
    assert torch.equal(torch.cat([part.falsified for part in parts]), whole.falsified)
    assert torch.allclose(torch.cat([part.adversarial for part in parts]), whole.adversarial, atol=1e-5)
    assert 0 < whole.falsified.sum() < len(x)


@every_attack
def test_one_more_attack_only_breaks_more(settings: AttackSettings):
    model, x, labels, _ = attacked()
    weak = attack(model, x, labels, EPS, PGD(steps=1))
    both = attack(model, x, labels, EPS, (PGD(steps=1), settings))
    assert bool((both.falsified | ~weak.falsified).all())
    assert torch.equal(both.adversarial[weak.falsified], weak.adversarial[weak.falsified])
    assert both.falsified.sum() > weak.falsified.sum()


def test_without_attacks_only_the_clean_inputs_are_tried():
    model, x, labels, _ = attacked()
    assert not attack(model, x, labels, EPS, ()).falsified.any()
    assert attack(model, x, (labels + 1) % 3, EPS, ()).falsified.all()


def test_points_that_are_broken_are_left_alone():
    model, (_, x, labels, _) = Recorder(classifier(seed=1)), attacked()
    broken = attack(model, x, labels, EPS, PGD(steps=40)).falsified
    sizes = [len(x) for x in model.inputs if len(x) > 1]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == len(x)
    assert sizes[-1] == (~broken).sum()


def test_what_breaks_in_a_batch_alone_is_no_counterexample():
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return linear()(x) * (1 if len(x) == 1 else -1)

    x, labels = points()
    assert not attack(Moody(), x, labels, 0.0, PGD()).falsified.any()


def test_a_constant_network_gives_no_direction_and_no_harm():
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (0 * x.sum(1, keepdim=True)) + torch.tensor([1.0, 0.0, 0.0, 0.0])

    x, labels = torch.rand(5, 6), torch.zeros(5, dtype=torch.long)
    assert not attack(Flat(), x, labels, EPS, SETTINGS).falsified.any()


def test_a_gradient_that_is_no_number_is_no_direction():
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            stuck = (x.sum(1, keepdim=True) * 0).abs().sqrt()  # 0, and its slope 0 · ∞
            return torch.cat([1 + stuck, -stuck], dim=1)

    x, labels = torch.rand(5, 6), torch.zeros(5, dtype=torch.long)
    assert not attack(Root(), x, labels, EPS, SETTINGS).falsified.any()


def test_a_tie_is_a_counterexample():
    class Clipped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = x[:, :1]
            return torch.cat([(first - 0.5).relu(), torch.zeros_like(first)], dim=1)

    x, labels = torch.full((1, 1), 0.55), torch.zeros(1, dtype=torch.long)
    assert attack(Clipped(), x, labels, EPS, PGD()).falsified.all()
    assert not attack(Clipped(), x, labels, 0.04, PGD()).falsified.any()


@pytest.mark.parametrize("arithmetic", ["real", "float32", "tf32", "bf16"])
def test_counterexamples_hold_in_the_named_arithmetic(arithmetic: str):
    model, x, labels, _ = attacked()
    found = attack(model, x, labels, EPS, STRONG, arithmetic=arithmetic)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "bf16"):
        alone = torch.cat([model(point.unsqueeze(0)) for point in found.adversarial])
    assert torch.equal(correct_examples(alone, labels), ~found.falsified)
    assert 0 < found.falsified.sum() < len(x)


def test_coarser_arithmetic_is_another_network():
    """Logits 256.5 and 256 are alike in bfloat16."""
    layer, x = nn.Linear(1, 2, bias=False), torch.ones(1, 1)
    layer.load_state_dict({"weight": torch.tensor([[256.5], [256.0]])})
    label = torch.zeros(1, dtype=torch.long)
    assert not attack(layer, x, label, 0.0, ()).falsified.any()
    assert attack(layer, x, label, 0.0, (), arithmetic="bf16").falsified.all()


def test_it_stops_when_it_should_and_keeps_what_it_has():
    model, x, labels, whole = attacked()
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 4

    early = attack(model, x, labels, EPS, STRONG, stop=stop)
    assert len(asked) < 10
    assert 0 < early.falsified.sum() <= whole.falsified.sum()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.full((2, 6), 1.5)}, DataError, "inputs must be finite and in"),
        ({"labels": torch.tensor([0, 2])}, DataError, "outside the 2 classes"),
        ({"x": torch.rand(2, 5)}, DataError, "do not fit the network"),
        ({"eps": 1.5}, EpsilonError, "1.5"),
        ({"arithmetic": "fp8"}, MethodError, "arithmetic 'fp8' is not known; choose from: real, float32, tf32, bf16"),
    ],
)
def test_wrong_arguments_are_named(change: dict, error: type[Exception], message: str):
    arguments = {"x": torch.rand(2, 6), "labels": torch.zeros(2, dtype=torch.long), "eps": EPS, "settings": PGD()}
    with pytest.raises(error, match=message):
        attack(linear(), **(arguments | change))


def test_the_global_random_numbers_are_not_touched():
    before = torch.get_rng_state()
    attacked()
    assert torch.equal(torch.get_rng_state(), before)


def test_restarts_break_no_fewer():
    model, x, labels, _ = attacked()
    once, often = (attack(model, x, labels, EPS, PGD(steps=2, restarts=n)).falsified for n in (1, 5))
    assert bool((often | ~once).all())


def test_without_eps_only_what_is_misclassified_is_broken():
    model, x, labels, _ = attacked()
    wrong = torch.arange(len(x)) % 3 == 0
    found = attack(model, x, torch.where(wrong, (labels + 1) % 3, labels), 0.0, PGD())
    assert torch.equal(found.falsified, wrong)
    assert torch.equal(found.adversarial, x)


def test_what_is_misclassified_already_counts_as_broken():
    model, x, labels, _ = attacked()
    assert attack(model, x, (labels + 1) % 3, EPS, PGD(steps=1)).falsified.all()


def test_what_is_not_finite_counts_as_broken():
    model = linear()
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    assert attack(model, *points(5), EPS, PGD(steps=2)).falsified.all()


@pytest.mark.parametrize("training", [True, False])
def test_it_changes_neither_gradients_nor_input(training: bool):
    model, (x, labels) = linear().train(training), points(10)
    kept = x.clone()
    attack(model, x, labels, EPS, PGD(steps=2))
    assert model.weight.grad is None
    assert torch.equal(x, kept)


def test_inference_runs_without_convolutions_that_transform_their_operands():
    """NNPACK's do, and no certificate allows for what that rounds."""
    seen: list[bool] = []

    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.backends.nnpack.set_flags(False)[0])
            return x.flatten(1)

    before = torch.backends.nnpack.set_flags(True)
    try:
        with computing_in("float32", "cpu"):
            Network()(torch.rand(1, 1, 2, 2))
    finally:
        torch.backends.nnpack.set_flags(*before)
    assert seen == [False]
