"""Growth at initialisation: with weights whose growth is known, then of the schemes themselves."""

import math
from statistics import stdev

import pytest
import torch
from torch import Generator, Tensor

from certtrain import propagate
from certtrain.data import ImageSet, load_images, to_unit
from certtrain.diagnostics.growth import (
    DepthSweep,
    compare_schemes,
    describe_plain,
    growth_rate,
    plain_preset,
    spread,
    sweep_depth,
)
from certtrain.diagnostics.model_states import initial_network
from certtrain.errors import EpsilonError
from certtrain.network.assembly import make_network
from certtrain.network.initialization import SCHEMES
from certtrain.spec.architecture import CNN, MLP
from certtrain.spec.preset import Preset, Scheme, load_preset

MLP_16 = {"name": "mlp", "hidden": [16, 16], "batch_norm": False}
ALL: tuple[Scheme, ...] = ("ibp", "kaiming", "xavier", "orthogonal")


def digits(**changes: object) -> Preset:
    return load_preset("digits", {"model": MLP_16, "eps.max": 0.01, **changes})


@pytest.fixture(scope="module")
def train() -> ImageSet:
    return load_images("digits", "train").take(8)


def grey(count: int = 4) -> ImageSet:
    """Images of one grey, around which no box is cut."""
    pixels = torch.full((count, 1, 8, 8), 128, dtype=torch.uint8)
    return ImageSet("digits", "train", pixels, torch.zeros(count, dtype=torch.int64), tuple("0123456789"))


@pytest.fixture
def factor(monkeypatch: pytest.MonkeyPatch):
    """Make the scheme "ibp" a constant weight, so that each linear layer multiplies the width by a known factor."""

    def use(value: float) -> None:
        def constant_(weight: Tensor, generator: Generator | None) -> None:
            torch.nn.init.constant_(weight, value / weight[0].numel())

        monkeypatch.setitem(SCHEMES, "ibp", constant_)

    return use


@pytest.mark.parametrize(("value", "trend"), [(3.0, "exponential"), (1.0, "constant"), (0.5, "shrinking")])
def test_a_linear_network_grows_by_the_known_factor(factor, value: float, trend: str):
    factor(value)
    (sweep,) = sweep_depth(digits(), grey(), ["ibp"], [0, 1], [1, 2, 5])
    assert [s.mean for s in sweep.growth] == pytest.approx([value, value**2, value**5], rel=1e-4)
    assert [s.std for s in sweep.growth] == pytest.approx([0, 0, 0])
    assert sweep.rate == pytest.approx(value, rel=1e-4)
    assert sweep.trend == trend


def test_the_same_factor_shows_at_each_relu_of_a_comparison(factor):
    factor(3.0)
    (scheme,) = compare_schemes(digits(), grey(), ["ibp"], [0, 1])
    assert [layer.name for layer in scheme.by_weights] == ["linear1_relu", "linear2_relu"]
    assert [layer.growth.mean for layer in scheme.by_weights] == pytest.approx([3, 9], rel=1e-4)
    assert scheme.in_training is None


def test_weights_of_zero_leave_no_width_and_no_rate(factor):
    factor(0.0)
    (sweep,) = sweep_depth(digits(), grey(), ["ibp"], [0], [1, 2])
    assert ([s.mean for s in sweep.growth], sweep.rate, sweep.trend) == ([0, 0], None, "shrinking")


def test_the_rate_by_hand():
    assert growth_rate([1, 2, 4], [3.0, 9.0, 81.0]) == pytest.approx(3)
    assert growth_rate([2, 4], [5.0, 5.0]) == pytest.approx(1)
    # Logarithms 0, 1, 1 at depths 1, 2, 3: the line through them rises by a half.
    assert growth_rate([1, 2, 3], [1.0, math.e, math.e]) == pytest.approx(math.exp(0.5))
    assert growth_rate([1, 2, 3], [0.0, 2.0, 4.0]) == pytest.approx(2)
    assert growth_rate([1, 2, 3], [0.0, 0.0, 4.0]) is None


def test_the_spread_by_hand():
    two, one = spread([1.0, 3.0]), spread([5.0])
    assert (two.mean, two.std, two.min, two.max, two.values) == (2, math.sqrt(2), 1, 3, (1.0, 3.0))
    assert (one.mean, one.std, one.min, one.max) == (5, 0, 5, 5)


def test_a_rate_is_named_by_its_size():
    def trend(rate: float | None) -> str:
        return DepthSweep("ibp", (1, 2), (spread([1.0]), spread([1.0])), rate).trend

    assert [trend(rate) for rate in (1.06, 1.04, 0.96, 0.95, None)] == [
        "exponential",
        "constant",
        "constant",
        "shrinking",
        "shrinking",
    ]


@pytest.mark.parametrize("scheme", ALL)
def test_a_depth_of_the_sweep_is_the_network_of_that_depth(train: ImageSet, scheme: Scheme):
    preset = digits(model={"name": "cnn", "channels": [4], "kernels": [3], "strides": [2], "batch_norm": False})
    (sweep,) = sweep_depth(preset, train, [scheme], [7], [1, 3])
    for depth, growth in zip(sweep.depths, sweep.growth, strict=True):
        plain = plain_preset(preset, train, depth).model_copy(update={"seed": 7})
        network, _ = make_network(plain, train, scheme)
        trace = propagate(network.double().eval(), to_unit(train.images).double(), 0.01)
        assert len(trace.relu_boxes) == depth
        widths = trace.relu_boxes[-1][1].radius.mean() / trace.input.radius.mean()
        assert growth.values == pytest.approx([widths.item()], rel=1e-9)


def test_the_papers_claim_on_plain_linear_networks(train: ImageSet):
    preset = digits(model={"name": "mlp", "hidden": [128], "batch_norm": False})
    sweeps = {sweep.scheme: sweep for sweep in sweep_depth(preset, train, ALL, [0, 1, 2], [2, 4, 8, 16])}
    assert sweeps["ibp"].trend == "constant"
    for scheme in ("kaiming", "xavier", "orthogonal"):
        assert sweeps[scheme].trend == "exponential"
    # Width n: a layer multiplies by n·E|w|, and the ReLU halves. E|w| = √(2/π)·std.
    assert sweeps["kaiming"].rate == pytest.approx(math.sqrt(128 / math.pi), rel=0.1)
    assert sweeps["xavier"].rate == pytest.approx(math.sqrt(128 / math.pi / 2), rel=0.1)


def test_an_explosion_beyond_float32_is_still_measured(train: ImageSet):
    preset = digits(model={"name": "mlp", "hidden": [64] * 80, "batch_norm": False})
    network = initial_network(preset, train, "kaiming")
    assert network.by_weights[-1].growth > 1e40
    (sweep,) = sweep_depth(preset, train, ["kaiming"], [0], [40, 80])
    assert sweep.growth[-1].mean == pytest.approx(network.by_weights[-1].growth, rel=1e-3)


def test_the_plain_network_is_as_wide_as_the_first_layer(train: ImageSet):
    shipped = load_preset("digits")
    convolutions, linear = plain_preset(shipped, train, 3), plain_preset(digits(), train, 2)
    assert convolutions.model == CNN(
        name="cnn", channels=(32, 32, 32), kernels=(3, 3, 3), strides=(1, 1, 1), batch_norm=False
    )
    assert linear.model == MLP(name="mlp", hidden=(16, 16), batch_norm=False)
    assert describe_plain(convolutions) == "3×3 convolutions of 32 channels"
    assert describe_plain(linear) == "linear layers of 16 units"


def test_a_comparison_is_what_each_seed_gives(train: ImageSet):
    preset = load_preset("digits", {"seed": 5})
    reported: list[tuple[int, int]] = []
    schemes = compare_schemes(
        preset, train, ["xavier", "ibp"], [5, 6, 7], examples=4, on_progress=lambda *counts: reported.append(counts)
    )
    assert [scheme.scheme for scheme in schemes] == ["xavier", "ibp"]
    assert reported == [(n, 6) for n in range(1, 7)]
    seeds = [initial_network(load_preset("digits", {"seed": seed}), train, "ibp", examples=4) for seed in (5, 6, 7)]
    growth = [network.by_weights[-1].growth or 0.0 for network in seeds]
    last = schemes[1].by_weights[-1].growth
    assert last.values == pytest.approx(growth)
    assert (last.mean, last.std, last.min, last.max) == pytest.approx(
        (sum(growth) / 3, stdev(growth), min(growth), max(growth))
    )
    assert len(set(growth)) == 3
    trained = schemes[1].in_training
    assert trained is not None
    assert trained[-1].growth.values == pytest.approx([(n.in_training or [])[-1].growth for n in seeds])


def test_batch_norm_in_training_undoes_the_scale(train: ImageSet):
    """All schemes but orthogonal draw the same numbers and scale them; BatchNorm divides the scale out again."""
    ibp, kaiming = compare_schemes(load_preset("digits"), train, ["ibp", "kaiming"], [0])
    assert kaiming.by_weights[-1].growth.mean > 100 * ibp.by_weights[-1].growth.mean
    assert ibp.in_training is not None
    assert kaiming.in_training is not None
    assert kaiming.in_training[-1].growth.mean == pytest.approx(ibp.in_training[-1].growth.mean, rel=0.02)


def test_an_exploding_scheme_is_explained_and_the_ibp_start_is_not(train: ImageSet):
    preset = load_preset("digits", {"model": {"name": "cnn7", "width": 16, "linear_size": 64}})
    ibp, kaiming = compare_schemes(preset, train, ["ibp", "kaiming"], [0])
    assert ibp.findings == []
    finding = kaiming.findings[0]
    assert (finding.layer, finding.kind) == ("linear1_relu", "exploding")
    assert kaiming.to_dict()["findings"] == [finding.to_dict() for finding in kaiming.findings]


def test_over_seeds_a_layer_has_the_finding_of_its_worst_network(train: ImageSet):
    preset = load_preset("digits", {"model": {"name": "cnn7", "width": 16, "linear_size": 64}})
    one, two = (compare_schemes(preset, train, ["kaiming"], seeds)[0] for seeds in ([0], [0, 1]))
    layers = [finding.layer for finding in two.findings]
    assert layers[0] == "linear1_relu"
    assert len(layers) == len(set(layers))
    assert two.findings[0].severity >= one.findings[0].severity


def test_as_plain_values_the_mean_is_the_growth(train: ImageSet):
    (scheme,) = compare_schemes(load_preset("digits"), train, ["ibp"], [0, 1])
    found = scheme.to_dict()
    row = found["by_weights"][-1]
    assert row["growth"] == pytest.approx(sum(row["values"]) / 2)
    assert set(row) == {"name", "growth", "std", "min", "max", "values"}
    assert [network["seed"] for network in found["networks"]] == [0, 1]
    assert found["networks"][1]["by_weights"][-1]["growth"] == row["values"][1]


def test_a_radius_that_rounding_swallows_is_an_error():
    with pytest.raises(EpsilonError, match="no width"):
        initial_network(digits(**{"eps.max": 1e-12}), grey(), "ibp")
