"""Shapes: every rule is held to them, and sums that stretch a side are bounded rightly by every method."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import certtrain
from certtrain.bounds import interval, linear
from certtrain.bounds.box import Box
from certtrain.bounds.contract import check_order, result_shape
from certtrain.bounds.graph import LayerCall
from certtrain.bounds.linear import Substitution
from certtrain.bounds.methods import METHODS
from certtrain.errors import DataError, SoundnessError
from helpers.sampling import points_inside

Sum = Callable[[Tensor], Tensor]


class Stretched(nn.Module):
    """Two values of different shapes, added: `small` is stretched to the shape of a convolution's result."""

    def __init__(self, small: nn.Module, size: int) -> None:
        super().__init__()
        self.conv, self.small, self.head = nn.Conv2d(2, 2, 3, padding=1), small, nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(torch.relu(self.conv(x) + self.small(x)), 1))


SMALL: dict[str, Callable[[], nn.Module]] = {
    "channels": lambda: nn.Conv2d(2, 1, 1),
    "rows and columns": lambda: nn.AdaptiveAvgPool2d(1),
    "rows": lambda: nn.AdaptiveAvgPool2d((1, None)),
    "all": lambda: nn.Sequential(nn.Conv2d(2, 1, 1), nn.AdaptiveAvgPool2d(1)),
}


class Gated(nn.Module):
    """Features and one number, added."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.one, self.head = nn.Linear(5, 8), nn.Linear(5, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.features(x) + self.one(x)))


def networks() -> list[tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    images = torch.rand(3, 2, 4, 5)
    stretched = [(Stretched(small(), 40), images) for small in SMALL.values()]
    return [*stretched, (Gated(), torch.rand(3, 5))]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", range(5))
def test_a_sum_that_stretches_a_side_is_bounded_by_every_method(number: int, method: str):
    model, x = networks()[number]
    model, x = model.double().eval(), x.double()
    lower, upper = certtrain.output_bounds(model, x, 0.1, method=method)
    with torch.no_grad():
        for point in points_inside((x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1), count=200):
            values = model(point)
            assert bool((values >= lower - 1e-9).all())
            assert bool((values <= upper + 1e-9).all())
    exact = certtrain.output_bounds(model, x, 0.0, method=method)
    for end in exact:
        torch.testing.assert_close(end, model(x))


@pytest.mark.parametrize("method", METHODS)
def test_a_sum_over_stretched_channels_is_not_certified_where_an_input_breaks_it(method: str):
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 2, 1), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.conv(x) + x).flatten(1))  # (B, 2, 1, 1) + (B, 1, 1, 1)

    model = Skip().eval()
    with torch.no_grad():
        model.conv.weight.copy_(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
        model.conv.bias.zero_()
        model.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        model.head.bias.copy_(torch.tensor([-1.0, 0.0]))
    x = torch.full((1, 1, 1, 1), 0.55)  # logits (2x − 1, 0): 0.46 is in the box and has another class
    found = certtrain.certify(model, x, torch.tensor([0]), 0.1, method=method)
    assert found.verdicts == ("open",)
    assert found.margin.item() == pytest.approx(-0.1, abs=1e-5)


@pytest.mark.parametrize("shapes", [((4, 3), (4, 1, 1)), ((4, 3), (1, 3)), ((4, 3), (4, 2)), ((2, 3, 1, 1), (2, 3))])
def test_sums_that_would_mix_examples_or_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...]):
    call = LayerCall("sum", certtrain.bounds.graph.Add(), (0, 1))
    with pytest.raises(DataError, match="layer 'sum' is given values of shape"):
        result_shape(call, [torch.Size(shape) for shape in shapes])


def test_inputs_without_a_batch_are_refused():
    with pytest.raises(DataError, match="layer '0' is given values of shape \\(5,\\), but it takes 5 features"):
        certtrain.output_bounds(nn.Sequential(nn.Linear(5, 2)), torch.rand(5), 0.1)


def test_an_interval_rule_that_gives_another_shape_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    def flat(layer: nn.Module, box: Box) -> Box:
        return Box(box.centre.mean(1, keepdim=True), box.radius.mean(1, keepdim=True))

    monkeypatch.setitem(interval.INTERVAL_RULES, nn.ReLU, flat)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with pytest.raises(SoundnessError, match=r"layer '1' \(ReLU\) gives values of shape"):
        certtrain.certify(model, torch.rand(2, 4), torch.tensor([0, 1]), 0.1)


@pytest.mark.parametrize("method", ["crown-ibp", "crown", "alpha-crown"])
def test_a_linear_rule_that_hands_back_another_shape_is_a_fault(method: str, monkeypatch: pytest.MonkeyPatch):
    def narrow(record: interval.LayerRecord, coefficients: Tensor) -> Substitution:
        return Substitution((coefficients.mean(2, keepdim=True),))

    monkeypatch.setitem(linear.LINEAR_RULES, nn.Identity, narrow)
    model = nn.Sequential(nn.Linear(4, 3), nn.Identity(), nn.Linear(3, 2)).eval()
    with pytest.raises(SoundnessError, match=r"layer '1' \(Identity\) returns values of shape"):
        certtrain.output_bounds(model, torch.rand(2, 4), 0.1, method=method)


def test_bounds_in_the_wrong_order_are_a_fault():
    with pytest.raises(SoundnessError, match=r"1 lower bounds of the logits are above the upper ones, by up to 0.5"):
        check_order(torch.tensor([[0.0, 1.5]]), torch.tensor([[0.0, 1.0]]), "the logits", tolerance=1e-3)
    check_order(torch.tensor([[0.0, float("nan")]]), torch.tensor([[0.0, 1.0]]), "the logits")
