"""Numbers of each ReLU layer: by hand, over several batches, and where they are not finite."""

import math

import pytest
import torch
from torch import Tensor, nn

from certtrain import propagate
from certtrain.bounds.box import Box
from certtrain.bounds.graph import LayerCall
from certtrain.bounds.interval import LayerRecord
from certtrain.bounds.trace import BoundTrace, Logits
from certtrain.diagnostics.findings import EXPLODING, is_exploding
from certtrain.diagnostics.layer_states import layer_states
from certtrain.errors import NonFiniteError
from certtrain.runs.epoch import LayerState
from certtrain.training.regularizers import Sums, balance_ratios, sums_of
from helpers.tiny_classifier import SHAPE, classifier


def trace(*layers: tuple[str, Box], input_radius: float = 0.25) -> BoundTrace:
    """A pass of which only the input's and the layers' boxes matter."""
    count = len(layers[0][1].centre)
    start = Box(torch.zeros(count, 2), torch.full((count, 2), input_radius))
    records = [
        LayerRecord(LayerCall(name, nn.ReLU(), (0,)), (box.radius.shape,), box.radius.shape, box, None)
        for name, box in layers
    ]
    return BoundTrace(start, start, records, Logits(start, None, start))


def box(lower: list[list[float]], upper: list[list[float]]) -> Box:
    ends = torch.tensor(lower), torch.tensor(upper)
    return Box((ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2)


# Two examples of three units: active, inactive and unstable; active, touching zero from below, inactive.
LAYER = box([[1, -3, -1], [2, -2, -4]], [[3, -1, 1], [4, 0, -2]])


def test_by_hand():
    (state,) = layer_states([trace(("first", LAYER))])
    mean = (2 - 2 + 0 + 3 - 1 - 3) / 6
    above = (2 - mean) ** 2 + (3 - mean) ** 2
    below = (-2 - mean) ** 2 + (-1 - mean) ** 2 + (-3 - mean) ** 2
    assert (state.name, state.units) == ("first", 3)
    assert (state.active, state.inactive, state.unstable) == pytest.approx((2 / 6, 3 / 6, 1 / 6))
    assert state.dead == pytest.approx(1 / 3)
    assert (state.centre, state.width, state.growth) == pytest.approx((mean, 2, 4))
    assert (state.mean_ratio, state.variance_ratio) == pytest.approx((5 / 6, min(above / below, below / above)))


def test_all_fields_are_plain_values():
    (state,) = layer_states([trace(("first", LAYER))])
    assert LayerState(**state.to_dict()) == state


def batches(count: int) -> list[BoundTrace]:
    """The same twelve examples in one batch or in several of unequal size."""
    model, x = classifier(seed=2), torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(0))
    parts: tuple[Tensor, ...] = (x,) if count == 1 else x.split([5, 4, 3])
    return [propagate(model, part, 0.02) for part in parts]


def test_several_batches_add_up_to_one():
    (whole,), (parts,) = layer_states(batches(1)), layer_states(iter(batches(3)))
    (name, *numbers), (same_name, *same) = whole.to_dict().values(), parts.to_dict().values()
    assert name == same_name == "linear1_relu"
    assert numbers == pytest.approx(same, rel=1e-5)
    assert 0 < whole.unstable < 1


def test_the_ratios_are_the_regularisers():
    (state,), ((_, layer),) = layer_states(batches(1)), batches(1)[0].relu_boxes
    assert (state.mean_ratio, state.variance_ratio) == pytest.approx(
        [r.item() for r in balance_ratios(Sums(*sums_of([layer]).unbind(1)))], rel=1e-4
    )


def test_a_unit_is_dead_only_if_all_batches_agree():
    off, on = box([[-2, -2]], [[-1, -1]]), box([[-2, 1]], [[-1, 2]])
    assert layer_states([trace(("a", off)), trace(("a", off))])[0].dead == 1
    assert layer_states([trace(("a", off)), trace(("a", on))])[0].dead == 0.5
    assert layer_states([trace(("a", on)), trace(("a", off))])[0].dead == 0.5


def test_a_channel_is_dead_if_all_its_units_are():
    lower = torch.tensor([[[[-3.0, -3.0], [-3.0, -3.0]], [[-3.0, -3.0], [-3.0, 1.0]]]])  # (1, 2 channels, 2, 2)
    (state,) = layer_states([trace(("a", Box(lower + 0.5, torch.full_like(lower, 0.5))))])
    assert (state.dead, state.dead_channels) == (7 / 8, 1 / 2)
    (linear,) = layer_states([trace(("a", LAYER))])
    assert linear.dead_channels == linear.dead


def test_without_active_and_inactive_units_there_are_no_ratios():
    (state,) = layer_states([trace(("a", box([[-1.0, -2.0]], [[1.0, 2.0]])))])
    assert (state.mean_ratio, state.variance_ratio, state.unstable) == (None, None, 1)


def test_one_sided_layers_have_ratio_zero():
    (state,) = layer_states([trace(("a", box([[1.0, 2.0]], [[2.0, 5.0]])))])
    assert (state.mean_ratio, state.variance_ratio) == (0, 0)
    assert math.copysign(1, state.mean_ratio) == 1


@pytest.mark.parametrize("active", range(11))
def test_shares_are_never_below_zero(active: int):
    lower, upper = [[1.0] * active + [-2.0] * (10 - active)], [[2.0] * active + [-1.0] * (10 - active)]
    (state,) = layer_states([trace(("a", box(lower, upper)))])
    assert state.unstable >= 0
    assert state.active + state.inactive + state.unstable == pytest.approx(1)


def test_without_width_at_the_input_there_is_no_growth():
    (state,) = layer_states([trace(("a", LAYER), input_radius=0.0)])
    assert (state.growth, is_exploding(state)) == (None, False)


@pytest.mark.parametrize(("radius", "exploding"), [(0.99, False), (1.01, True)])
def test_bounds_explode_from_a_certain_growth(radius: float, exploding: bool):
    wide = Box(torch.zeros(1, 2), torch.full((1, 2), radius * EXPLODING))
    (state,) = layer_states([trace(("a", wide), input_radius=1.0)])
    assert is_exploding(state) == exploding


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["centre", "radius"])
def test_the_first_layer_that_is_not_finite_is_named(value: float, part: str):
    broken = Box(torch.zeros(1, 2), torch.ones(1, 2))
    getattr(broken, part)[0, 1] = value
    fine = Box(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(NonFiniteError, match=r"'second' are not finite"):
        layer_states([trace(("first", fine), ("second", broken), ("third", broken))])


def test_a_network_without_relu_has_no_states():
    start = Box(torch.zeros(1, 2), torch.ones(1, 2))
    assert layer_states([BoundTrace(start, start, [], Logits(start, None, start))]) == []
