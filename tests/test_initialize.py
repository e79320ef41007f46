"""Initial weights: their spread, what is left alone, and what they do to the bounds' widths."""

import math

import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain import ibp_init_, propagate
from certtrain.errors import UnsupportedLayer
from certtrain.initialize import InitRecord, initialize_
from certtrain.preset import Scheme

SCHEMES: tuple[Scheme, ...] = ("ibp", "kaiming", "xavier", "orthogonal")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


LAYERS = {
    "linear": (nn.Linear(100, 400), 100),
    "convolution": (nn.Conv2d(16, 64, 3), 16 * 9),
    "grouped convolution": (nn.Conv2d(32, 64, 5, groups=4), 8 * 25),
    "without bias": (nn.Linear(200, 200, bias=False), 200),
}


@pytest.mark.parametrize("name", LAYERS)
def test_ibp_weights_have_standard_deviation_root_two_pi_over_fan_in(name: str):
    layer, fan_in = LAYERS[name]
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(1, 1))
    (record,) = ibp_init_(model, seeded())
    expected = math.sqrt(2 * math.pi) / fan_in
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.03)
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.03 * expected)
    assert layer.bias is None or not layer.bias.any()
    assert record == InitRecord("0", "ibp", fan_in, layer.weight.std().item(), halved=False)


def test_the_last_layer_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before = [model[2].weight.clone(), model[2].bias.clone()]
    records = ibp_init_(model, seeded())
    assert [record.name for record in records] == ["0"]
    assert torch.equal(model[2].weight, before[0])
    assert torch.equal(model[2].bias, before[1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_initialize_draws_the_last_layer_too_and_from_the_same_generator(scheme: Scheme):
    models = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)) for _ in range(2)]
    for model in models:
        initialize_(model, scheme, seeded())
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert models[0][1].weight.abs().max() <= 0.5  # PyTorch's default: uniform within 1/√4
    assert models[0][1].bias.any()


@pytest.mark.parametrize(
    ("scheme", "std"), [("kaiming", math.sqrt(2 / 100)), ("xavier", math.sqrt(2 / 500)), ("orthogonal", 1 / 20)]
)
def test_the_classic_schemes_have_their_own_spread(scheme: Scheme, std: float):
    model = nn.Sequential(nn.Linear(100, 400), nn.Linear(400, 2))
    (record,) = initialize_(model, scheme, seeded())
    assert model[0].weight.std().item() == pytest.approx(std, rel=0.03)
    assert (record.scheme, record.halved) == (scheme, False)
    assert not model[0].bias.any()


class Residual(nn.Module):
    """A sum that feeds one layer directly, one through BatchNorm and ReLU, and a layer behind that one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 200), nn.Linear(200, 200)
        self.direct, self.through = nn.Linear(200, 200), nn.Linear(200, 200)
        self.norm, self.relu = nn.BatchNorm1d(200), nn.ReLU()
        self.behind, self.last = nn.Linear(200, 200), nn.Linear(200, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.direct(self.second(x) + x)
        x = self.through(self.relu(self.norm(x + x)))
        return self.last(self.behind(torch.relu(x)))


def test_layers_fed_by_a_residual_sum_are_halved():
    model = Residual()
    records = {record.name: record for record in ibp_init_(model, seeded())}
    halved = {name for name, record in records.items() if record.halved}
    assert (set(records), halved) == ({"first", "second", "direct", "through", "behind"}, {"direct", "through"})
    full = math.sqrt(2 * math.pi) / 200
    for name, record in records.items():
        expected = full / 2 if name in halved else math.sqrt(2 * math.pi) / record.fan_in
        assert model.get_submodule(name).weight.std().item() == pytest.approx(expected, rel=0.03)


def test_only_ibp_halves():
    assert not any(record.halved for record in initialize_(Residual(), "kaiming", seeded()))


def deep(depth: int = 10, width: int = 300) -> nn.Sequential:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 2))


def mean_radii(model: nn.Module) -> list[float]:
    """The bounds' mean radius at the input, then at each ReLU."""
    trace = propagate(model, torch.rand(4, 300, generator=seeded(1)), 1e-3, clip=None)
    return [trace.input.radius.mean().item(), *(box.radius.mean().item() for _, box in trace.relu_boxes)]


def test_ibp_keeps_the_width_of_the_bounds_through_ten_layers():
    model = deep()
    ibp_init_(model, seeded())
    start, *radii = mean_radii(model)
    # Each layer keeps the input's width, then a ReLU that is half the time unstable or active halves it at most.
    assert len(radii) == 10
    assert radii[0] == pytest.approx(2 * start, rel=0.25)
    assert radii == pytest.approx([radii[0]] * 10, rel=0.25)


@pytest.mark.parametrize("scheme", ["kaiming", "xavier", "orthogonal"])
def test_the_classic_schemes_let_the_width_explode(scheme: Scheme):
    model = deep()
    initialize_(model, scheme, seeded())
    assert mean_radii(model)[-1] > 1e4 * 1e-3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_global_random_numbers_are_not_touched(scheme: Scheme):
    model, before = deep(2), torch.get_rng_state()
    initialize_(model, scheme, seeded())
    ibp_init_(model, seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_other_weights():
    first, second = deep(1), deep(1)
    ibp_init_(first, seeded(0))
    ibp_init_(second, seeded(1))
    assert not torch.equal(first[0].weight, second[0].weight)


def test_without_a_generator_torchs_own_is_used():
    first, second = deep(1), deep(1)
    with torch.random.fork_rng():
        for model in (first, second):
            torch.manual_seed(3)
            ibp_init_(model)
    assert torch.equal(first[0].weight, second[0].weight)


def test_a_layer_used_twice_is_drawn_once():
    shared = nn.Linear(4, 4)
    records = ibp_init_(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2)), seeded())
    assert [record.name for record in records] == ["0"]


def test_gradients_are_not_recorded():
    model = deep(1)
    ibp_init_(model, seeded())
    assert model[0].weight.requires_grad
    assert model[0].weight.is_leaf


def test_a_network_without_weights_is_an_error():
    with pytest.raises(UnsupportedLayer, match="no linear or convolutional layer"):
        ibp_init_(nn.Sequential(nn.ReLU()))
