"""The tables of trained networks' layers: one model, and several side by side."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from certtrain import render
from certtrain.diagnostics.model_states import ModelStates
from certtrain.runs.epoch import LayerState

FINE = LayerState("conv1_relu", 10, 0.412, 0.483, 0.105, 0.111, 0.0, 0.2, 2.34, 0.81, 0.92)
DEAD = replace(FINE, name="linear1_relu", active=0.3, inactive=0.6, dead=0.75, growth=5.6)

Shown = Callable[[], str]


def model(name: str, *layers: LayerState) -> ModelStates:
    return ModelStates(name, Path(name), list(layers))


def row(text: str, *starts: str) -> list[str]:
    """The cells of the line that starts with these words."""
    return next(line.split() for line in text.splitlines() if line.split()[: len(starts)] == list(starts))


def test_one_model_has_all_numbers_means_and_sentences(shown: Shown):
    render.show_states(model("m", FINE, DEAD), "the title")
    text = shown()
    assert text.startswith("the title\n")
    assert row(text, "conv1_relu")[1:6] == ["10", "41.2%", "10.5%", "48.3%", "11.1%"]
    assert row(text, "mean")[1:5] == ["35.6%", "10.5%", "54.1%", "43.0%"]
    assert "! 75.0% of the units of 'linear1_relu' are dead" in text
    assert "no layer stands out" not in text


def test_a_good_model_is_called_good(shown: Shown):
    render.show_states(model("m", FINE), "the title")
    assert shown().endswith("no layer stands out\n")


def test_models_stand_side_by_side_and_a_layer_that_one_lacks_is_a_dash(shown: Shown):
    render.show_models([model("a", FINE, DEAD), model("b", replace(FINE, growth=99.0))], "the title")
    text = shown()
    lines = [line.split() for line in text.splitlines()]
    assert ["conv1_relu", "a", "2.34×", "10.5%", "48.3%", "11.1%", "0.81", "0.92"] in lines
    assert ["b", "99×", "10.5%", "48.3%", "11.1%", "0.81", "0.92"] in lines
    assert ["b", *"––––––"] in lines
    assert ["mean", "a", "3.97×", "10.5%", "54.1%", "43.0%", "0.81", "0.92"] in lines
    assert "! a: 75.0% of the units" in text
    assert "b: no layer stands out" in text


def test_more_bad_layers_than_sentences_are_counted(shown: Shown):
    bad = [replace(DEAD, name=f"layer{number}") for number in range(9)]
    render.show_states(model("m", *bad), "the title")
    assert shown().endswith("! and 6 more layers; --json lists them\n")
    render.show_models([model("a", *bad), model("b", FINE)], "the title")
    assert shown().splitlines()[-2].endswith("(and 8 more layers)")
    assert len(model("m", *bad).to_dict()["findings"]) == 9
