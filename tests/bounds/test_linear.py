"""Linear bounds: each rule alone, the lines that stand for nonlinear layers, and whole networks."""

import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain import margin_bounds, output_bounds
from certtrain.bounds import interval, linear
from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.box import Box
from certtrain.bounds.graph import Add
from certtrain.bounds.relaxation import relaxed
from certtrain.bounds.shape_layers import Concat
from certtrain.bounds.trace import NONLINEAR
from certtrain.errors import DataError
from helpers.activation_cases import CASES
from helpers.layer_cases import AFFINE, ALL, ready
from helpers.sampling import points_inside

BATCH = 3
CURVED = {name: case.layer for name, case in CASES.items()}
CURVED |= {"steep leaky relu": nn.LeakyReLU(3.0), "flat leaky relu": nn.LeakyReLU(1.0)}


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.LeakyReLU(0.1)])
@pytest.mark.parametrize("centre", [-1.0, 1e-20, 1.0])
def test_the_chord_of_a_stable_unit_has_no_gradient_however_narrow_its_interval(layer: nn.Module, centre: float):
    middle, radius = torch.tensor([[centre]]).requires_grad_(), torch.tensor([[1e-30]]).requires_grad_()
    lines = relaxed(layer, Box(middle, radius))
    assert lines.upper_offset is not None
    (lines.upper_slope + lines.upper_offset).sum().backward()
    assert middle.grad == 0
    assert radius.grad == 0


class Features(nn.Module):
    """A layer, then all its values as logits."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.layer(x), 1)


class Joined(nn.Module):
    """A layer of two inputs, both the same."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.layer(x, x), 1)


def network(name: str) -> nn.Module:
    layer, _ = ALL[name]
    return Joined(layer) if isinstance(layer, (Add, Concat)) else Features(ready(layer))


def batch(name: str) -> Tensor:
    return torch.randn(BATCH, *ALL[name][1], generator=Generator().manual_seed(1), dtype=torch.float64)


def test_every_layer_with_a_rule_for_intervals_has_one_here():
    assert linear.LINEAR_RULES.keys() == interval.INTERVAL_RULES.keys()
    assert set(NONLINEAR) == {*ACTIVATIONS, nn.MaxPool2d}


@pytest.mark.parametrize("name", ALL)
def test_without_width_the_bounds_are_the_value(name: str):
    model, x = network(name), batch(name)
    for end in output_bounds(model, x, 0.0, method="crown-ibp", clip=None):
        torch.testing.assert_close(end, model(x.clone()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", AFFINE)
def test_an_affine_layer_has_the_bounds_of_intervals(name: str):
    model, x = network(name), batch(name)
    found = output_bounds(model, x, 0.3, method="crown-ibp", clip=None)
    for mine, theirs in zip(found, output_bounds(model, x, 0.3, clip=None), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("eps", [0.1, 1.0])
def test_random_functions_of_a_layer_stay_above_their_bound(name: str, eps: float):
    model, x = network(name), batch(name)
    head = nn.Linear(model(x).shape[1], 4).double()
    lower, upper = output_bounds(nn.Sequential(model, head), x, eps, method="crown-ibp", clip=None)
    with torch.no_grad():
        for point in points_inside(x - eps, x + eps, count=100):
            values = head(model(point))
            assert bool((values >= lower - 1e-12).all())
            assert bool((values <= upper + 1e-12).all())


# --- lines -----------------------------------------------------------------------------------------------

ENDS = torch.tensor([-3.0, -1.0, -0.5, -1e-8, 0.0, 1e-8, 0.3, 1.0, 4.0], dtype=torch.float64)


def boxes() -> tuple[Tensor, Tensor]:
    """Every pair of ends, a box without width among them."""
    pairs = [(low, high) for low in ENDS.tolist() for high in ENDS.tolist() if low <= high]
    lower, upper = torch.tensor(pairs, dtype=torch.float64).T
    return lower, upper


def at(x: Tensor, slope: Tensor, offset: Tensor | None) -> Tensor:
    return slope * x + (0.0 if offset is None else offset)


@pytest.mark.parametrize("name", CURVED)
def test_lines_lie_on_their_sides_of_the_curve(name: str):
    layer, (lower, upper) = CURVED[name].double(), boxes()
    lines = relaxed(layer, Box((lower + upper) / 2, (upper - lower) / 2))
    for share in torch.linspace(0, 1, 101, dtype=torch.float64):
        x = torch.lerp(lower, upper, share)
        assert bool((at(x, lines.lower_slope, lines.lower_offset) <= layer(x.clone()) + 1e-14).all())
        assert bool((at(x, lines.upper_slope, lines.upper_offset) >= layer(x.clone()) - 1e-14).all())


@pytest.mark.parametrize("name", ["relu", "leaky relu", "steep leaky relu", "flat leaky relu"])
def test_where_a_rectifier_does_not_bend_both_lines_are_exact(name: str):
    layer, (lower, upper) = CURVED[name].double(), boxes()
    straight = (lower >= 0) | (upper <= 0)
    lines = relaxed(layer, Box((lower + upper) / 2, (upper - lower) / 2))
    for end in (lower, upper):
        for slope, offset in ((lines.lower_slope, lines.lower_offset), (lines.upper_slope, lines.upper_offset)):
            torch.testing.assert_close(
                at(end, slope, offset)[straight], layer(end.clone())[straight], rtol=0, atol=1e-14
            )


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((-1.0, 3.0), (1.0, 0.75, 0.75)), ((-3.0, 1.0), (0.0, 0.25, 0.75)), ((-2.0, 2.0), (0.0, 0.5, 1.0))],
)
def test_the_lines_of_a_relu_by_hand(ends: tuple[float, float], expected: tuple[float, ...]):
    lower, upper = (torch.tensor([[end]]) for end in ends)
    lines = relaxed(nn.ReLU(), Box((lower + upper) / 2, (upper - lower) / 2))
    assert lines.lower_offset is None
    assert [lines.lower_slope.item(), lines.upper_slope.item(), lines.upper_offset.item()] == list(expected)


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.Tanh()])
def test_on_one_side_of_zero_an_s_shaped_curve_lies_between_its_chord_and_a_tangent(layer: nn.Module):
    lower, upper = (torch.tensor([end], dtype=torch.float64) for end in ([1.0, -3.0], [3.0, -1.0]))
    lines = relaxed(layer, Box((lower + upper) / 2, (upper - lower) / 2))
    middle, chord = torch.tensor([[2.0, -2.0]], dtype=torch.float64), (layer(upper) - layer(lower)) / 2
    touching = [at(middle, lines.upper_slope, lines.upper_offset)[0, 0]]
    touching += [at(middle, lines.lower_slope, lines.lower_offset)[0, 1]]
    torch.testing.assert_close(torch.stack(touching), layer(middle)[0])
    torch.testing.assert_close(torch.stack([lines.lower_slope[0, 0], lines.upper_slope[0, 1]]), chord[0])


# --- whole networks --------------------------------------------------------------------------------------


def test_a_network_by_hand():
    # relu(x) − relu(x − 1) on [−1, 1]: intervals forget that both come from one x.
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    model.load_state_dict(
        {
            "0.weight": torch.tensor([[1.0], [1.0]]),
            "0.bias": torch.tensor([0.0, 2.0]),
            "2.weight": torch.tensor([[1.0, -1.0], [0.0, 0.0]]),
            "2.bias": torch.tensor([0.0, 0.0]),
        }
    )
    x, labels = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([1])
    # logit[1] − logit[0] = relu(x + 2) − relu(x): by intervals at least 1 − 1; linearly 2 + x − (x + 1)/2 at x = −1.
    assert margin_bounds(model, x, labels, 1.0, clip=None).tolist() == [[0.0, 0.0]]
    assert margin_bounds(model, x, labels, 1.0, clip=None, method="crown-ibp").tolist() == [[1.0, 0.0]]


def test_a_result_that_two_layers_use_is_relaxed_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            return self.left(x) + self.right(x)

    torch.manual_seed(0)
    twice = Twice().double()
    once = nn.Sequential(twice.first, nn.ReLU(), nn.Linear(5, 4).double())
    with torch.no_grad():
        once[2].weight.copy_(twice.left.weight + twice.right.weight)
        once[2].bias.copy_(twice.left.bias + twice.right.bias)
    x = torch.rand(6, 3, dtype=torch.float64)
    for mine, theirs in zip(*(output_bounds(m, x, 0.4, method="crown-ibp") for m in (twice, once)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_a_layer_that_nothing_uses_is_left_out():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            return self.used(x)

    model, x = Idle().double(), torch.rand(2, 3, dtype=torch.float64)
    expected = output_bounds(model.used, x, 0.1)
    for mine, theirs in zip(output_bounds(model, x, 0.1, method="crown-ibp"), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_outputs_that_are_no_logits_are_an_error():
    with pytest.raises(DataError, match=r"need logits of shape \(B, K\)"):
        output_bounds(nn.Sequential(nn.ReLU()), torch.rand(3, 3, 3), 0.1, method="crown-ibp")


def test_images_without_a_channel_are_refused():
    model = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(DataError, match="layer '0' is given values of shape \\(3, 4, 4\\), but it takes images"):
        output_bounds(model, torch.rand(3, 4, 4), 0.0, method="crown-ibp")
