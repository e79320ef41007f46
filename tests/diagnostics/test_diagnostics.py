"""Numbers of each ReLU layer: by hand, over several batches, and where they are not finite."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import SHAPE, classifier
from torch import Tensor, nn

from certtrain import propagate
from certtrain.bounds.box import Box
from certtrain.bounds.graph import LayerCall
from certtrain.bounds.interval import LayerRecord
from certtrain.bounds.trace import BoundTrace, Logits
from certtrain.diagnostics.findings import (
    AT_START,
    DEAD,
    EXPLODING,
    INACTIVE,
    KINDS,
    MATTERS,
    UNBALANCED,
    UNSTABLE,
    Kind,
    LayerState,
    explain,
    first_in_words,
    in_words,
    layer_means,
    worst,
)
from certtrain.diagnostics.layer_states import layer_states
from certtrain.errors import NonFiniteError
from certtrain.training.regularizers import Sums, balance_ratios, sums_of


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
    assert (state.growth, state.exploding) == (None, False)


@pytest.mark.parametrize(("radius", "exploding"), [(0.99, False), (1.01, True)])
def test_bounds_explode_from_a_certain_growth(radius: float, exploding: bool):
    wide = Box(torch.zeros(1, 2), torch.full((1, 2), radius * EXPLODING))
    (state,) = layer_states([trace(("a", wide), input_radius=1.0)])
    assert state.exploding == exploding


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


# --- what a bad row means --------------------------------------------------------------------------------

FINE = LayerState(
    name="fine",
    units=10,
    active=0.4,
    inactive=0.5,
    unstable=0.1,
    dead=0.1,
    centre=0.0,
    width=0.2,
    growth=2.0,
    mean_ratio=0.8,
    variance_ratio=0.9,
)


def test_a_good_layer_needs_no_sentence():
    assert explain(FINE) is None
    assert worst([FINE, FINE]) == []
    assert worst([]) == []


ON_THE_EDGE: dict[Kind, dict[str, float]] = {
    "exploding": {"growth": EXPLODING, "unstable": MATTERS},
    "dead": {"dead": DEAD},
    "inactive": {"inactive": INACTIVE},
    "unstable": {"unstable": UNSTABLE},
    "unbalanced": {"mean_ratio": UNBALANCED * 0.999},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_starts_at_its_threshold(kind: Kind):
    finding = explain(replace(FINE, **ON_THE_EDGE[kind]))
    assert finding is not None
    assert (finding.kind, finding.layer) == (kind, "fine")
    assert finding.badness == pytest.approx(1, rel=0.01)
    closer = {"growth": EXPLODING * 0.999} | dict.fromkeys(("dead", "inactive", "unstable"), 0.4) | {"mean_ratio": 0.1}
    assert explain(replace(FINE, **{name: closer[name] for name in ON_THE_EDGE[kind]})) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"growth": 4.2e4, "unstable": 0.99}, ("4.2e+04 times as wide", 'init = "ibp"', "eps.length")),
        ({"dead": 0.625}, ("62.5% of the units", "dead", "train.learning_rate")),
        ({"inactive": 0.97}, ("97.0% of its ReLUs are off", "regularizer.weight")),
        ({"unstable": 0.995}, ("99.5% of the ReLUs", "unstable", "a smaller ε")),
        ({"variance_ratio": 0.03}, ("ratio 0.03", "regularizer.relu_balance")),
    ],
)
def test_a_sentence_says_what_is_wrong_where_and_what_helps(changes: dict[str, float], told: tuple[str, ...]):
    finding = explain(replace(FINE, name="conv3_relu", **changes))
    assert finding is not None
    assert all(part in finding.sentence for part in ("'conv3_relu'", *told))
    assert "\n" not in finding.sentence
    assert finding.to_dict() == {"layer": "conv3_relu", "kind": finding.kind, "sentence": finding.sentence}


def test_wide_bounds_do_not_matter_while_they_leave_most_relus_stable():
    """As at the start of the ramp, when BatchNorm has let them grow and ε is tiny."""
    assert explain(replace(FINE, growth=1e6, unstable=0.02)) is None


def test_a_layer_without_growth_or_ratios_can_still_be_judged():
    bare = replace(FINE, growth=None, mean_ratio=None, variance_ratio=None)
    assert explain(bare) is None
    assert [finding.kind for finding in worst([replace(bare, unstable=1.0)])] == ["unstable"]


def test_a_ratio_of_zero_is_out_of_balance():
    finding = explain(replace(FINE, mean_ratio=0.0))
    assert finding is not None
    assert finding.kind == "unbalanced"


def test_the_worst_kind_comes_first_then_the_worst_layer():
    layers = [
        replace(FINE, name="a", unstable=0.85),
        replace(FINE, name="b", dead=0.6),
        FINE,
        replace(FINE, name="c", unstable=0.95),
        replace(FINE, name="d", growth=2e3, unstable=1.0),
        replace(FINE, name="e", growth=9e3, unstable=1.0),
    ]
    assert [(f.layer, f.kind) for f in worst(layers)] == [
        ("e", "exploding"),
        ("d", "exploding"),
        ("b", "dead"),
        ("c", "unstable"),
        ("a", "unstable"),
    ]


def test_more_bad_layers_than_sentences_are_counted():
    found = worst(replace(FINE, name=f"layer{number}", dead=0.5 + number / 20) for number in range(9))
    words = in_words(found)
    assert [word.split("'")[1] for word in words[:3]] == ["layer8", "layer7", "layer6"]
    assert words[3:] == ["and 6 more layers; --json lists them"]
    assert in_words(found[:4])[3:] == ["and 1 more layer; --json lists them"]
    assert len(in_words(found[:3])) == 3
    assert in_words([]) == []
    assert first_in_words(found).endswith("(and 8 more layers)")
    assert first_in_words(found[:1]) == found[0].sentence


def test_no_advice_tells_to_turn_on_what_may_be_on_already():
    bad = {"growth": 1e5, "unstable": 1.0}, {"mean_ratio": 0.0}
    for changes in bad:
        (finding,) = worst([replace(FINE, **changes)])
        assert "start from" not in finding.sentence
        assert "turn " not in finding.sentence


def test_before_training_unstable_and_unbalanced_layers_are_no_fault():
    layers = [replace(FINE, unstable=1.0), replace(FINE, mean_ratio=0.0), replace(FINE, name="dead", dead=0.9)]
    assert [finding.layer for finding in worst(layers, kinds=AT_START)] == ["dead"]


def test_means_count_each_layer_the_same_and_leave_out_what_is_not_there():
    other = replace(FINE, units=1000, active=0.8, growth=6.0, mean_ratio=None)
    means = layer_means([FINE, other])
    assert (means.active, means.growth, means.largest_growth) == pytest.approx((0.6, 4.0, 6.0))
    assert means.mean_ratio == FINE.mean_ratio
    assert means.variance_ratio == pytest.approx(0.9)


def test_without_layers_there_are_no_means():
    assert set(layer_means([]).to_dict().values()) == {None}
