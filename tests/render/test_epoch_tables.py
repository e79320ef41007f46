"""The tables of a run over its epochs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from certtrain import render
from certtrain.diagnostics.epochs import History
from certtrain.diagnostics.model_states import ModelStates
from certtrain.runs.epoch import Epoch, LayerState

FINE = LayerState("conv1_relu", 10, 0.412, 0.483, 0.105, 0.111, 0.0, 0.2, 2.34, 0.81, 0.92)
DEAD = replace(FINE, name="linear1_relu", active=0.3, inactive=0.6, dead=0.75, growth=5.6)
UNSTABLE = replace(FINE, name="linear1_relu", unstable=0.9)

Shown = Callable[[], str]


def model(name: str, *layers: LayerState) -> ModelStates:
    return ModelStates(name, Path(name), list(layers))


def row(text: str, *starts: str) -> list[str]:
    """The cells of the line that starts with these words."""
    return next(line.split() for line in text.splitlines() if line.split()[: len(starts)] == list(starts))


def history(*epochs: tuple[LayerState, ...]) -> History:
    records = [
        Epoch(number, 5 * number, 0.01 * number, {"certified_accuracy": 0.5}, layers)
        for number, layers in enumerate(epochs, start=1)
    ]
    return History(tuple(records), cut_short=False)


def test_a_run_shows_each_epoch_its_networks_and_its_worst(shown: Shown):
    network = replace(model("epoch-0002", DEAD), step=10, epoch=2)
    render.show_history(history((FINE, FINE), (FINE, DEAD)), [network], ("as it was", "its networks"))
    text = shown()
    assert row(text, "1") == ["1", "0.0100", "50.0%", "10.5%", "48.3%", "11.1%", "2.34×"]
    assert row(text, "2") == ["2", "0.0200", "50.0%", "10.5%", "54.1%", "43.0%", "5.6×", "dead"]
    assert text.index("its networks") < text.index("\nepoch 2 ") < text.index("! epoch 2: 75.0% of the units")


def test_networks_in_trouble_are_named_though_every_epoch_was_fine(shown: Shown):
    networks = [
        replace(model("epoch-0001", replace(UNSTABLE, unstable=0.99)), step=5, epoch=1),
        replace(model("epoch-0002", UNSTABLE), step=10, epoch=2),
        replace(model("model", FINE), step=15, epoch=3),
    ]
    render.show_history(history((FINE,), (FINE,)), networks, ("as it was", "its networks"))
    text = shown()
    rows = [line.split() for line in text[text.index("its networks") :].splitlines()]
    assert [row[:2] + row[-1:] for row in rows[2:5]] == [
        ["epoch", "1", "unstable"],
        ["epoch", "2", "unstable"],
        ["epoch", "3", "0.92"],
    ]
    assert "not yet trained for this ε" in text
    assert [line for line in text.splitlines() if line.startswith("!")] == [
        "! network epoch-0001 (epoch 1): 99.0% of the ReLUs of 'linear1_relu' are unstable: the bounds of their inputs "
        "have different signs; try a longer ramp of ε (eps.length) or a smaller ε"
    ]
    assert "only the three worst kinds of findings are shown, each where it is worst; --json lists all findings" in text
    assert "stands out" not in text


def test_by_epoch_nothing_is_cut_at_eighty_columns(shown: Shown, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    bad = replace(FINE, unstable=1.0, growth=1.94e11, inactive=1.0, dead=1.0, mean_ratio=0.0001234)
    networks = [
        replace(model("step-000000000", bad), step=0, epoch=0),
        replace(model("m", bad), step=123, epoch=123.46),
    ]
    render.show_history(history(*[(bad,)] * 100), networks, ("as it was", "its networks"))
    text = shown()
    assert "…" not in text
    assert row(text, "epoch", "123.5")[2:] == [
        "100.0%", "100.0%", "100.0%", "1.94e+11×", "0.000123", "0.92", "exploding",
    ]  # fmt: skip
    heads = [line.split() for line in text.splitlines() if "unstable" in line and "trouble" in line]
    assert [head[0] for head in heads] == ["epoch", "network"]


def test_a_good_run_is_called_good_and_an_empty_one_is_not(shown: Shown):
    render.show_history(history((FINE,)), [], ("as it was", ""))
    assert shown().endswith("no layer stands out in any epoch\n")
    render.show_history(history((FINE,)), [model("model", FINE)], ("as it was", "its networks"))
    text = shown()
    assert text.endswith("no layer stands out in any epoch or network\n")
    assert "not yet trained" not in text
    render.show_history(history(), [], ("as it was", ""))
    assert shown().endswith("no epoch is finished yet\n")


@pytest.mark.parametrize(("epochs", "first", "last"), [(40, "1", "40"), (41, "2", "41"), (160, "4", "160")])
def test_a_long_run_is_thinned_out_and_says_so(shown: Shown, epochs: int, first: str, last: str):
    render.show_history(history(*[(FINE,)] * epochs), [], ("as it was", ""))
    text = shown()
    numbers = [line.split()[0] for line in text.splitlines() if "50.0%" in line]
    assert (numbers[0], numbers[-1]) == (first, last)
    assert len(numbers) <= 41
    assert (f"of {epochs} epochs; --csv, --json and --plot have all" in text) == (epochs > 40)


def test_the_radii_of_a_run_have_one_format(shown: Shown):
    records = tuple(
        Epoch(number, 5, eps, {"certified_accuracy": 0.5}, (FINE,))
        for number, eps in enumerate((0.0, 4e-6, 0.0123, 0.1), start=1)
    )
    render.show_history(History(records, False), [], ("", ""))
    text = shown()
    assert [row(text, str(number))[1] for number in (1, 2, 3, 4)] == ["0", "<0.0001", "0.0123", "0.1000"]
