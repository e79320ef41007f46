"""The tables of networks before training."""

from collections.abc import Callable
from dataclasses import replace

from certtrain import render
from certtrain.diagnostics.growth import DepthSweep, SchemeGrowth, spread
from certtrain.diagnostics.model_states import InitialNetwork
from certtrain.runs.epoch import LayerState

FINE = LayerState("conv1_relu", 10, 0.412, 0.483, 0.105, 0.111, 0.0, 0.2, 2.34, 0.81, 0.92)

Shown = Callable[[], str]


def initial(scheme: str, seed: int, growth: float, trained: float | None) -> InitialNetwork:
    layer = replace(FINE, growth=growth, unstable=0.9)
    in_training = None if trained is None else [replace(layer, growth=trained)]
    return InitialNetwork(scheme, seed, [], [layer], in_training)  # type: ignore[arg-type]


def test_schemes_are_compared_by_weights_and_in_training(shown: Shown):
    ibp = SchemeGrowth("ibp", (initial("ibp", 0, 1.0, 50.0), initial("ibp", 1, 3.0, 50.0)))
    kaiming = SchemeGrowth("kaiming", (initial("kaiming", 0, 2e3, 50.0), initial("kaiming", 1, 2e3, 50.0)))
    render.show_compared([ibp, kaiming], "the title")
    text = shown()
    assert "mean and standard deviation of 2 seeds" in text
    assert "BatchNorm has its initial statistics" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["conv1_relu", "2×", "±71%", "2,000×", "±0%"] in lines
    assert ["conv1_relu", "50×", "±0%", "50×", "±0%"] in lines
    assert "! kaiming: bounds explode" in text
    assert "! ibp" not in text


def test_without_batch_norm_and_with_one_seed_nothing_is_said_of_either(shown: Shown):
    render.show_compared([SchemeGrowth("ibp", (initial("ibp", 0, 1.5, None),))], "the title")
    text = shown()
    assert ["conv1_relu", "1.5×"] in [line.split() for line in text.splitlines()]
    assert "BatchNorm" not in text
    assert "seeds" not in text


def test_a_sweep_ends_with_a_rate_in_words(shown: Shown):
    growth = (spread([2.0, 2.0]), spread([18.0, 18.0]))
    sweeps = [DepthSweep("kaiming", (2, 4), growth, 3.0), DepthSweep("ibp", (2, 4), growth[:1] * 2, 1.0)]
    render.show_sweep([*sweeps, DepthSweep("xavier", (2, 4), (spread([0.0]),) * 2, None)], "the title")
    text = shown()
    assert ["4", "18×", "±0%", "2×", "±0%", "0×"] in [line.split() for line in text.splitlines()]
    assert "kaiming: ×3 a layer; each layer multiplies the width, which grows exponentially with depth" in text
    assert "ibp: ×1 a layer; the width changes little" in text
    assert "xavier: no width is left; the width shrinks" in text
