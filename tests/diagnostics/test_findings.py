"""What is wrong with a layer by its numbers, and the sentences on it."""

from dataclasses import replace

import pytest

from certtrain.diagnostics.findings import (
    AT_START,
    DEAD,
    EXPLODING,
    EXPLODING_UNSTABLE,
    INACTIVE,
    KINDS,
    UNBALANCED,
    UNSTABLE,
    InUse,
    Kind,
    findings_at,
    first_sentence,
    layer_finding,
    layer_means,
    ranked_findings,
    sentences,
)
from certtrain.runs.epoch import LayerState
from certtrain.spec.preset import Preset, load_preset

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
    assert layer_finding(FINE) is None
    assert ranked_findings([FINE, FINE]) == []
    assert ranked_findings([]) == []


ON_THE_EDGE: dict[Kind, dict[str, float]] = {
    "exploding": {"growth": EXPLODING, "unstable": EXPLODING_UNSTABLE},
    "dead": {"dead": DEAD},
    "inactive": {"inactive": INACTIVE},
    "unstable": {"unstable": UNSTABLE},
    "unbalanced": {"mean_ratio": UNBALANCED * 0.999},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_starts_at_its_threshold(kind: Kind):
    finding = layer_finding(replace(FINE, **ON_THE_EDGE[kind]))
    assert finding is not None
    assert (finding.kind, finding.layer) == (kind, "fine")
    assert finding.severity == pytest.approx(1, rel=0.01)
    closer = {"growth": EXPLODING * 0.999} | dict.fromkeys(("dead", "inactive", "unstable"), 0.4) | {"mean_ratio": 0.1}
    assert layer_finding(replace(FINE, **{name: closer[name] for name in ON_THE_EDGE[kind]})) is None


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"growth": 4.2e4, "unstable": 0.99}, ("4.2e+04 times as wide", 'init = "ibp"', "eps.length")),
        ({"dead": 0.625}, ("62.5% of the units", "dead", "train.learning_rate")),
        ({"inactive": 0.97}, ("97.0% of the ReLUs", "regularizer.weight")),
        ({"unstable": 0.995}, ("99.5% of the ReLUs", "unstable", "a smaller ε")),
        ({"variance_ratio": 0.03}, ("ratio 0.03", "regularizer.relu_balance")),
    ],
)
def test_a_sentence_says_what_is_wrong_where_and_what_helps(changes: dict[str, float], parts: tuple[str, ...]):
    finding = layer_finding(replace(FINE, name="conv3_relu", **changes))
    assert finding is not None
    assert all(part in finding.sentence for part in ("'conv3_relu'", *parts))
    assert "\n" not in finding.sentence
    assert finding.to_dict() == {"layer": "conv3_relu", "kind": finding.kind, "sentence": finding.sentence}


def test_wide_bounds_do_not_matter_while_they_leave_most_relus_stable():
    """As at the start of the ramp, when BatchNorm has let them grow and ε is tiny."""
    assert layer_finding(replace(FINE, growth=1e6, unstable=0.02)) is None


def test_unstable_relus_are_no_finding_in_adversarial_training() -> None:
    loose = replace(FINE, unstable=1.0)
    assert len(ranked_findings([loose], in_use=InUse.by(load_preset("digits"), 0.1))) == 1
    assert ranked_findings([loose], in_use=InUse.by(load_preset("mnist-0.1-pgd"), 0.1)) == []


def test_a_layer_without_growth_or_ratios_can_still_be_judged():
    bare = replace(FINE, growth=None, mean_ratio=None, variance_ratio=None)
    assert layer_finding(bare) is None
    assert [finding.kind for finding in ranked_findings([replace(bare, unstable=1.0)])] == ["unstable"]


def test_a_ratio_of_zero_is_out_of_balance():
    finding = layer_finding(replace(FINE, mean_ratio=0.0))
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
    assert [(f.layer, f.kind) for f in ranked_findings(layers)] == [
        ("e", "exploding"),
        ("d", "exploding"),
        ("b", "dead"),
        ("c", "unstable"),
        ("a", "unstable"),
    ]


def test_more_bad_layers_than_sentences_are_counted():
    found = ranked_findings(replace(FINE, name=f"layer{number}", dead=0.5 + number / 20) for number in range(9))
    lines = sentences(found)
    assert [line.split("'")[1] for line in lines[:3]] == ["layer8", "layer7", "layer6"]
    assert lines[3:] == ["and 6 more layers; --json lists them"]
    assert sentences(found[:4])[3:] == ["and 1 more layer; --json lists them"]
    assert len(sentences(found[:3])) == 3
    assert sentences([]) == []
    assert first_sentence(found).endswith("(and 8 more layers)")
    assert first_sentence(found[:1]) == found[0].sentence


def test_no_advice_is_to_turn_on_what_may_be_on_already():
    bad = {"growth": 1e5, "unstable": 1.0}, {"mean_ratio": 0.0}
    for changes in bad:
        (finding,) = ranked_findings([replace(FINE, **changes)])
        assert "start from" not in finding.sentence
        assert "turn " not in finding.sentence


def test_before_training_unstable_and_unbalanced_layers_are_no_fault():
    layers = [replace(FINE, unstable=1.0), replace(FINE, mean_ratio=0.0), replace(FINE, name="dead", dead=0.9)]
    assert [finding.layer for finding in ranked_findings(layers, kinds=AT_START)] == ["dead"]


def test_means_count_each_layer_the_same_and_leave_out_what_is_not_there():
    other = replace(FINE, units=1000, active=0.8, growth=6.0, mean_ratio=None)
    means = layer_means([FINE, other])
    assert (means.active, means.growth, means.largest_growth) == pytest.approx((0.6, 4.0, 6.0))
    assert means.mean_ratio == FINE.mean_ratio
    assert means.variance_ratio == pytest.approx(0.9)


def test_without_layers_there_are_no_means():
    assert set(layer_means([]).to_dict().values()) == {None}


def test_before_the_ramp_there_are_no_findings():
    layers = [replace(FINE, dead=0.9)]
    assert findings_at(0.0, layers) == []
    assert findings_at(1e-6, layers) == ranked_findings(layers) != []


def advice(kind: str, preset: Preset, eps: float) -> str:
    """What the sentence about a layer with that trouble advises."""
    troubles = {"exploding": {"growth": 1e5, "unstable": 0.7}, "dead": {"dead": 0.9}, "inactive": {"inactive": 0.99}}
    troubles |= {"unstable": {"unstable": 0.9}, "unbalanced": {"mean_ratio": 0.01}}
    (found,) = findings_at(eps, [replace(FINE, **troubles[kind])], preset)
    assert found.kind == kind
    return found.sentence.rpartition("; ")[2]


def test_what_is_in_use_is_not_advised():
    preset = load_preset("digits")
    largest = preset.eps.max
    assert advice("exploding", preset, largest) == "try a longer ramp of ε (eps.length)"
    assert advice("unbalanced", preset, largest) == "try a larger regularizer.weight"
    assert advice("dead", preset, largest) == "try a smaller train.learning_rate or a larger regularizer.weight"
    changes = {"init": "kaiming", "model.batch_norm": False, "regularizer.relu_balance": False}
    other = load_preset("digits", changes)
    assert advice("exploding", other, largest) == (
        'try init = "ibp", BatchNorm in every layer, the regularisers or a longer ramp of ε (eps.length)'
    )
    assert advice("unbalanced", other, largest) == "try regularizer.relu_balance = true"


def test_while_eps_rises_no_longer_ramp_is_advised():
    preset = load_preset("digits")
    for kind in ("exploding", "unstable"):
        assert advice(kind, preset, preset.eps.max / 2) == "look again at the end of the ramp, since ε still rises"
    assert advice("inactive", preset, preset.eps.max / 2) == "try a larger regularizer.weight"
    assert advice("inactive", preset, preset.eps.max).endswith("or a longer ramp of ε (eps.length)")


def test_units_that_see_a_border_are_no_dead_channels():
    """As in MNIST, where half of the units of a convolution may be off for every image, and no channel is."""
    assert layer_finding(replace(FINE, dead=0.6, dead_channels=0.0)) is None
    found = layer_finding(replace(FINE, dead=0.8, dead_channels=0.6))
    assert found is not None
    assert "60.0% of the channels of" in found.sentence
    assert "at every place" in found.sentence
    linear = layer_finding(replace(FINE, dead=0.6, dead_channels=0.6))
    assert linear is not None
    assert "60.0% of the units of" in linear.sentence
