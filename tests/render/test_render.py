"""What a person sees of layers: while a network trains, side by side, over epochs, and before training."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from certtrain.render.pieces import out

from certtrain import render
from certtrain.diagnostics.epochs import EpochRecord, History
from certtrain.diagnostics.findings import LayerState
from certtrain.diagnostics.growth import DepthSweep, SchemeGrowth, spread
from certtrain.diagnostics.model_states import InitialNetwork, ModelStates
from certtrain.render import training
from certtrain.spec.preset import load_preset
from certtrain.training.events import Compiling, EpochDone, Event, Loading, Started, StepDone, Verifying

FINE = LayerState("conv1_relu", 10, 0.412, 0.483, 0.105, 0.111, 0.0, 0.2, 2.34, 0.81, 0.92)
SHUT = replace(FINE, name="linear1_relu", active=0.3, inactive=0.6, dead=0.75, growth=5.6)
WIDE = replace(FINE, name="linear1_relu", unstable=0.99, growth=1.2e4)
UNSTABLE = replace(FINE, name="linear1_relu", unstable=0.9)

Shown = Callable[[], str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What has been printed, on a terminal of 200 columns."""
    monkeypatch.setattr(out, "width", 200)
    return lambda: capsys.readouterr().out


def started() -> Started:
    return Started(load_preset("digits"), Path("run"), "cpu", 10, 100, 5, 0, 250)


def epoch(number: int, *layers: LayerState, eps: float = 0.1) -> EpochDone:
    record = {"epoch": number, "step": 5 * number, "eps": eps, "loss": 1.0}
    return EpochDone(number, record | {"natural_accuracy": 0.9, "certified_accuracy": 0.5}, layers)


# --- while a network trains ------------------------------------------------------------------------------


def test_plain_lines_show_the_layers_means(shown: Shown):
    view = training.PlainView()
    for event in (started(), epoch(1, FINE, SHUT)):
        view(event)
    line = shown().splitlines()[1]
    assert line.startswith("epoch  1/50  ε 0.1000  loss 1.000")
    assert "unstable 10.50%  dead 43.05%  growth 5.6×" in line


def test_plain_lines_explain_each_trouble_once_and_not_before_the_ramp(shown: Shown):
    view = training.PlainView()
    troubles = [(SHUT, 0.0), (SHUT, 0.1), (SHUT, 0.1), (FINE, 0.1), (SHUT, 0.1), (UNSTABLE, 0.1)]
    for number, (layer, eps) in enumerate(troubles, start=1):
        view(epoch(number, FINE, layer, eps=eps))
    lines = shown().splitlines()
    assert [number for number, line in enumerate(lines) if line.startswith("!")] == [2, 7]
    assert lines[2].startswith("! 75.0% of the units of 'linear1_relu' are dead")
    assert lines[7].startswith("! 90.0% of the ReLUs of 'linear1_relu' are unstable")


def step(number: int) -> StepDone:
    averages = {"loss": 1.5, "certified_accuracy": 0.25}
    return StepDone(number, 1, 0.05, 1e-3, averages, ())


def test_compiling_is_said_when_it_begins_and_when_it_is_done(shown: Shown):
    view = training.PlainView()
    for event in (started(), Compiling(), step(1), step(2)):
        view(event)
    lines = shown().splitlines()
    assert lines[1] == "compiling the step"
    assert lines[2].startswith("compiled in 0:00")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Loading("decoding images", 12000, 50000), "decoding images: 12,000 of 50,000"),
        (Compiling(), "compiling the step, for 0:00 so far"),
        (step(100), "epoch  1/50  step 100 of 250  ε 0.0500  loss 1.500  certified 25.00%  "),
        (Verifying("test", 3000, 10000), "verifying on the test set: 3,000 of 10,000"),
    ],
)
def test_after_a_silence_what_goes_on_is_said(event: Event, line: str, shown: Shown):
    with training.PlainView(silence=0.05) as view:
        view(started())
        view(event)
        deadline = time.monotonic() + 20
        text = ""
        while line not in text and time.monotonic() < deadline:
            time.sleep(0.02)
            text += shown()
    assert line in text


def test_while_lines_come_nothing_is_added(shown: Shown):
    with training.PlainView(silence=30.0) as view:
        for number in range(1, 4):
            view(epoch(number))
    assert len(shown().splitlines()) == 3


def test_an_explosion_is_left_to_the_trainings_own_note(shown: Shown):
    view = training.PlainView()
    view(epoch(1, WIDE))
    assert "!" not in shown()


def test_json_lines_hold_layers_and_findings(shown: Shown):
    view = training.JsonView()
    view(epoch(1, FINE, SHUT))
    view(epoch(2, SHUT, eps=0.0))
    ramp, before = map(json.loads, shown().splitlines())
    assert ramp["layers"] == [FINE.to_dict(), SHUT.to_dict()]
    assert [(f["layer"], f["kind"]) for f in ramp["findings"]] == [("linear1_relu", "dead")]
    assert before["findings"] == []


def picture(columns: int, monkeypatch: pytest.MonkeyPatch, *layers: LayerState, eps: float = 0.1) -> str:
    """The live picture's panel on a terminal of so many columns."""
    monkeypatch.setattr(out, "width", columns)
    view = training.LiveView()
    view.started = started()
    averages = dict.fromkeys(("loss", "robust_loss", "certified_accuracy", "tightness_loss", "relu_balance_loss"), 0.5)
    events: list[Event] = [StepDone(7, 2, eps, 1e-3, averages, layers)]
    for event in events:
        view(event)
    with out.capture() as captured:
        out.print(view._draw())
    return captured.get()


def test_the_live_picture_shows_the_numbers_of_stats(monkeypatch: pytest.MonkeyPatch):
    text = picture(80, monkeypatch, FINE, SHUT)
    row = next(line for line in text.splitlines() if "conv1_relu" in line)
    assert row.split() == ["│", "conv1_relu", "2.34×", "41.2%", "10.5%", "48.3%", "11.1%", "0.81", "0.92", "│"]
    assert "! 75.0% of the units of 'linear1_relu' are dead" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_live_picture_has_bars_where_there_is_room(monkeypatch: pytest.MonkeyPatch):
    assert "▒" not in picture(80, monkeypatch, FINE)
    text = picture(120, monkeypatch, FINE)
    assert "█ active ▒ unstable ░ inactive" in text
    assert "!" not in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_beside_long_names_the_ratios_make_way(monkeypatch: pytest.MonkeyPatch):
    text = picture(80, monkeypatch, replace(FINE, name="block3.conv12_relu"))
    assert ["│", "block3.conv12_relu", "2.34×", "41.2%", "10.5%", "48.3%", "11.1%", "│"] in map(
        str.split, text.splitlines()
    )
    assert "r mean" not in text


def test_the_live_picture_is_silent_before_the_ramp(monkeypatch: pytest.MonkeyPatch):
    assert "!" not in picture(80, monkeypatch, SHUT, eps=0.0)


# --- trained networks ------------------------------------------------------------------------------------


def model(name: str, *layers: LayerState) -> ModelStates:
    return ModelStates(name, Path(name), list(layers))


def row(text: str, *starts: str) -> list[str]:
    """The cells of the line that starts with these words."""
    return next(line.split() for line in text.splitlines() if line.split()[: len(starts)] == list(starts))


def test_one_model_has_all_numbers_means_and_sentences(shown: Shown):
    render.show_states(model("m", FINE, SHUT), "the title")
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
    render.show_models([model("a", FINE, SHUT), model("b", replace(FINE, growth=99.0))], "the title")
    text = shown()
    lines = [line.split() for line in text.splitlines()]
    assert ["conv1_relu", "a", "2.34×", "10.5%", "48.3%", "11.1%", "0.81", "0.92"] in lines
    assert ["b", "99×", "10.5%", "48.3%", "11.1%", "0.81", "0.92"] in lines
    assert ["b", *"––––––"] in lines
    assert ["mean", "a", "3.97×", "10.5%", "54.1%", "43.0%", "0.81", "0.92"] in lines
    assert "! a: 75.0% of the units" in text
    assert "b: no layer stands out" in text


def history(*epochs: tuple[LayerState, ...]) -> History:
    records = [
        EpochRecord(epoch=number, step=5 * number, eps=0.01 * number, certified_accuracy=0.5, layers=layers)
        for number, layers in enumerate(epochs, start=1)
    ]
    return History(tuple(records), cut_short=False)


def test_a_run_shows_each_epoch_its_networks_and_its_worst(shown: Shown):
    stage = replace(model("epoch-0002", SHUT), step=10, epoch=2)
    render.show_history(history((FINE, FINE), (FINE, SHUT)), [stage], ("as it was", "its networks"))
    text = shown()
    assert row(text, "1") == ["1", "0.0100", "50.0%", "10.5%", "48.3%", "11.1%", "2.34×"]
    assert row(text, "2") == ["2", "0.0200", "50.0%", "10.5%", "54.1%", "43.0%", "5.6×", "dead"]
    assert text.index("its networks") < text.index("\nepoch 2 ") < text.index("! epoch 2: 75.0% of the units")


def test_networks_in_trouble_are_named_though_every_epoch_was_fine(shown: Shown):
    stages = [
        replace(model("epoch-0001", replace(UNSTABLE, unstable=0.99)), step=5, epoch=1),
        replace(model("epoch-0002", UNSTABLE), step=10, epoch=2),
        replace(model("model", FINE), step=15, epoch=3),
    ]
    render.show_history(history((FINE,), (FINE,)), stages, ("as it was", "its networks"))
    text = shown()
    rows = [line.split() for line in text[text.index("its networks") :].splitlines()]
    assert [row[:2] + row[-1:] for row in rows[2:5]] == [
        ["epoch", "1", "unstable"],
        ["epoch", "2", "unstable"],
        ["epoch", "3", "0.92"],
    ]
    assert "not yet trained for this ε" in text
    assert [line for line in text.splitlines() if line.startswith("!")] == [
        "! network epoch-0001 (epoch 1): 99.0% of the ReLUs of 'linear1_relu' are unstable: their bounds leave open "
        "whether they are on or off; let ε rise for longer (eps.length), or choose a smaller ε"
    ]
    assert "told are the worst kinds, three at most, each where it is worst; --json lists all trouble" in text
    assert "stand out" not in text


def test_by_epoch_nothing_is_cut_at_eighty_columns(shown: Shown, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(out, "width", 80)
    bad = replace(FINE, unstable=1.0, growth=1.94e11, inactive=1.0, dead=1.0, mean_ratio=0.0001234)
    stages = [replace(model("step-000000000", bad), step=0, epoch=0), replace(model("m", bad), step=123, epoch=123.46)]
    render.show_history(history(*[(bad,)] * 100), stages, ("as it was", "its networks"))
    text = shown()
    assert "…" not in text
    assert row(text, "epoch", "123.5")[2:] == [
        "100.0%", "100.0%", "100.0%", "1.94e+11×", "0.000123", "0.92", "exploding",
    ]  # fmt: skip
    heads = [line.split() for line in text.splitlines() if "unstable" in line and "trouble" in line]
    assert [head[0] for head in heads] == ["epoch", "network"]


def test_more_bad_layers_than_sentences_are_counted(shown: Shown):
    bad = [replace(SHUT, name=f"layer{number}") for number in range(9)]
    render.show_states(model("m", *bad), "the title")
    assert shown().endswith("! and 6 more layers; --json lists them\n")
    render.show_models([model("a", *bad), model("b", FINE)], "the title")
    assert shown().splitlines()[-2].endswith("(and 8 more layers)")
    view = training.PlainView()
    view(epoch(1, *bad))
    assert shown().endswith("(and 8 more layers)\n")
    assert len(model("m", *bad).to_dict()["findings"]) == 9


def test_a_good_run_is_called_good_and_an_empty_one_is_not(shown: Shown):
    render.show_history(history((FINE,)), [], ("as it was", ""))
    assert shown().endswith("in no epoch did a layer stand out\n")
    render.show_history(history((FINE,)), [model("model", FINE)], ("as it was", "its networks"))
    text = shown()
    assert text.endswith("in no epoch and in no network did a layer stand out\n")
    assert "not yet trained" not in text
    render.show_history(history(), [], ("as it was", ""))
    assert shown().endswith("no epoch is over yet\n")


@pytest.mark.parametrize(("epochs", "first", "last"), [(40, "1", "40"), (41, "2", "41"), (160, "4", "160")])
def test_a_long_run_is_thinned_out_and_says_so(shown: Shown, epochs: int, first: str, last: str):
    render.show_history(history(*[(FINE,)] * epochs), [], ("as it was", ""))
    text = shown()
    numbers = [line.split()[0] for line in text.splitlines() if "50.0%" in line]
    assert (numbers[0], numbers[-1]) == (first, last)
    assert len(numbers) <= 41
    assert (f"of {epochs} epochs; all of them are in --csv" in text) == (epochs > 40)


def test_the_radii_of_a_run_have_one_format(shown: Shown):
    records = tuple(
        EpochRecord(epoch=number, step=5, eps=eps, certified_accuracy=0.5, layers=(FINE,))
        for number, eps in enumerate((0.0, 4e-6, 0.0123, 0.1), start=1)
    )
    render.show_history(History(records, False), [], ("", ""))
    text = shown()
    assert [row(text, str(number))[1] for number in (1, 2, 3, 4)] == ["0", "<0.0001", "0.0123", "0.1000"]


# --- networks before training ----------------------------------------------------------------------------


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
    assert "BatchNorm is at its start" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["conv1_relu", "2×", "±71%", "2e+03×", "±0%"] in lines
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
