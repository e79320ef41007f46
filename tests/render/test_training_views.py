"""The views of a running training: lines of a log, JSON, and the live view of a terminal."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from certtrain.render.console import out
from certtrain.render.training import JsonView
from certtrain.render.training_lines import PlainView
from certtrain.render.training_live import LiveView
from certtrain.render.training_sentences import started_sentence, stopped_sentence
from certtrain.runs.epoch import Epoch, LayerState
from certtrain.spec.preset import load_preset
from certtrain.training.events import (
    Compiling,
    EpochDone,
    Event,
    Loading,
    Note,
    Started,
    StepDone,
    Stopped,
    Stopping,
    Verifying,
)

FINE = LayerState("conv1_relu", 10, 0.412, 0.483, 0.105, 0.111, 0.0, 0.2, 2.34, 0.81, 0.92)
DEAD = replace(FINE, name="linear1_relu", active=0.3, inactive=0.6, dead=0.75, growth=5.6)
WIDE = replace(FINE, name="linear1_relu", unstable=0.99, growth=1.2e4)
UNSTABLE = replace(FINE, name="linear1_relu", unstable=0.9)

MEASURED = {
    "loss": 168.7,
    "robust_loss": 1234567.2,
    "certified_accuracy": 1.0,
    "tightness_loss": 12.345,
    "relu_balance_loss": 0.123,
}

Shown = Callable[[], str]


def started() -> Started:
    return Started(load_preset("digits"), Path("run"), "cpu", 10, 100, 5, 0, 250)


@pytest.mark.parametrize("make", [PlainView, LiveView])
def test_the_first_line_says_how_long_the_run_takes(make: Callable[[], Callable[[Event], None]], shown: Shown):
    make()(replace(started(), forecast="this run takes about 3 days on this CPU"))
    first, second, *_ = shown().splitlines()
    assert first == "this run takes about 3 days on this CPU"
    assert second.startswith("digits: ")


def test_the_numbers_of_steps_have_commas_and_an_estimate_has_one_unit():
    stopped = Stopped("interrupted", 1234, 62560, Path("run"), None, 1.6 * 86400)
    assert "at step 1,234 of 62,560; about 1 day 14 h left; resume" in stopped_sentence(stopped)
    assert "of 62,560; about 38 hours left; resume" in stopped_sentence(replace(stopped, estimated=True))
    assert "resumed at step 1,234 in run" in started_sentence(replace(started(), step=1234))


def epoch(number: int, *layers: LayerState, eps: float = 0.1) -> EpochDone:
    measured = {"loss": 1.0, "natural_accuracy": 0.9, "certified_accuracy": 0.5}
    return EpochDone(Epoch(number, 5 * number, eps, measured, layers))


def test_plain_lines_show_the_layers_means(shown: Shown):
    view = PlainView()
    for event in (started(), epoch(1, FINE, DEAD)):
        view(event)
    line = shown().splitlines()[2]
    assert line.startswith("epoch  1/50  ε 0.1000  loss 1.000")
    assert "unstable 10.50%  dead 43.05%  growth 5.6×" in line


def test_plain_lines_explain_each_trouble_once_and_not_before_the_ramp(shown: Shown):
    view = PlainView()
    troubles = [(DEAD, 0.0), (DEAD, 0.1), (DEAD, 0.1), (FINE, 0.1), (DEAD, 0.1), (UNSTABLE, 0.1)]
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
    view = PlainView()
    for event in (started(), Compiling(), step(1), step(2)):
        view(event)
    lines = shown().splitlines()
    assert lines[2] == "compiling the step"
    assert lines[3].startswith("compiled in 0:00")
    assert len(lines) == 4


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
    with PlainView(silence=0.05) as view:
        view(started())
        view(event)
        deadline = time.monotonic() + 20
        text = ""
        while line not in text and time.monotonic() < deadline:
            time.sleep(0.02)
            text += shown()
    assert line in text


@pytest.mark.parametrize("view", [PlainView, JsonView])
def test_an_interrupt_is_answered_beside_the_lines(
    view: Callable[[], Callable[[Event], None]], capsys: pytest.CaptureFixture[str]
):
    view()(Stopping())
    said = capsys.readouterr()
    assert ("stopping…" in said.err, said.out) == (True, "")


def test_an_interrupt_is_answered_in_the_live_view_before_and_after_the_first_step(shown: Shown):
    view = LiveView()
    view(started())
    view(Stopping())
    shown()
    for event in (None, replace(step(1), averages=MEASURED)):
        if event is not None:
            view(event)
        out.print(view._draw())
        text = " ".join(shown().split())
        assert "stopping… (Ctrl-C again ends it at once, and loses what came after the last checkpoint)" in text


def test_while_lines_come_nothing_is_added(shown: Shown):
    with PlainView(silence=30.0) as view:
        for number in range(1, 4):
            view(epoch(number))
    assert len(shown().splitlines()) == 3


def test_an_explosion_is_left_to_the_trainings_own_note(shown: Shown):
    view = PlainView()
    view(epoch(1, WIDE))
    assert "!" not in shown()


def test_more_bad_layers_than_sentences_are_counted(shown: Shown):
    PlainView()(epoch(1, *(replace(DEAD, name=f"layer{number}") for number in range(9))))
    assert shown().endswith("(and 8 more layers)\n")


def test_json_lines_hold_layers_and_findings(shown: Shown):
    view = JsonView()
    view(epoch(1, FINE, DEAD))
    view(epoch(2, DEAD, eps=0.0))
    ramp, before = map(json.loads, shown().splitlines())
    assert list(ramp)[:4] == ["event", "epoch", "step", "eps"]
    assert list(ramp)[-2:] == ["findings", "layers"]
    assert ramp["layers"] == [FINE.to_dict(), DEAD.to_dict()]
    assert [(f["layer"], f["kind"]) for f in ramp["findings"]] == [("linear1_relu", "dead")]
    assert before["findings"] == []


def live_view(columns: int, monkeypatch: pytest.MonkeyPatch, *layers: LayerState, eps: float = 0.1) -> str:
    """The panel of the live view on a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    view = LiveView()
    view.started = started()
    averages = dict.fromkeys(("loss", "robust_loss", "certified_accuracy", "tightness_loss", "relu_balance_loss"), 0.5)
    view(StepDone(7, 2, eps, 1e-3, averages, layers))
    with out.capture() as captured:
        out.print(view._draw())
    return captured.get()


def test_the_live_view_shows_the_numbers_of_stats(monkeypatch: pytest.MonkeyPatch):
    text = live_view(80, monkeypatch, FINE, DEAD)
    row = next(line for line in text.splitlines() if "conv1_relu" in line)
    assert row.split() == ["│", "conv1_relu", "2.34×", "41.2%", "10.5%", "48.3%", "11.1%", "0.81", "0.92", "│"]
    assert "! 75.0% of the units of 'linear1_relu' are dead" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_live_view_has_bars_where_they_fit(monkeypatch: pytest.MonkeyPatch):
    assert "▒" not in live_view(80, monkeypatch, FINE)
    text = live_view(120, monkeypatch, FINE)
    assert "█ active ▒ unstable ░ inactive" in text
    assert "!" not in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_beside_long_names_the_ratios_make_way(monkeypatch: pytest.MonkeyPatch):
    text = live_view(80, monkeypatch, replace(FINE, name="block3.conv12_relu"))
    assert ["│", "block3.conv12_relu", "2.34×", "41.2%", "10.5%", "48.3%", "11.1%", "│"] in map(
        str.split, text.splitlines()
    )
    assert "r mean" not in text


@pytest.mark.parametrize("name", ["conv1_relu", "linear1_relu", "block3.conv12_relu", "layer4.block2.conv2_relu"])
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_layer_s_name_is_cut(columns: int, name: str, monkeypatch: pytest.MonkeyPatch):
    text = live_view(columns, monkeypatch, replace(FINE, name=name))
    row = next(line.split() for line in text.splitlines() if name in line)
    assert {"2.34×", "10.5%", "11.1%"} <= set(row), "growth, unstable and dead"
    assert "…" not in text
    assert all(len(line) <= columns for line in text.splitlines())


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("own", [{}, {"natural_loss": 2.3, "natural_accuracy": 0.3, "adversarial_accuracy": 0.43}])
def test_no_number_is_cut_or_wrapped(columns: int, own: dict[str, float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "40")
    view = LiveView()
    view.started = replace(started(), steps=62560)
    view.held_out = 0.42
    view(StepDone(62559, 2, 0.1, 1e-3, MEASURED | own, (FINE,)))
    view(Verifying("validation", 10000, 50000))
    with out.capture() as captured:
        out.print(view._draw())
    text = captured.get()
    assert all(len(line) <= columns for line in text.splitlines())
    texts = [
        "loss 168.7000",
        "robust 1,234,567",
        "certified 100.0%",
        "tightness 12.345",
        "balance 0.123",
        "10000/50000",
    ]
    texts += ["clean 2.3000", "natural 30.0%", "adversarial 43.0%"] if own else []
    assert [part for part in texts if part not in text] == []
    assert ("clean" in text.partition("rate: ")[0]) == bool(own)
    assert "…" not in text


def test_before_the_ramp_what_bounds_say_is_a_dash(monkeypatch: pytest.MonkeyPatch, shown: Shown):
    text = live_view(80, monkeypatch, FINE, eps=0.0)
    assert "robust –" in text
    assert "certified –" in text
    assert "certified 50.0%" in live_view(80, monkeypatch, FINE)
    PlainView()(epoch(1, FINE, eps=0.0))
    assert "certified –  " in shown()


def test_words_are_explained_where_they_stand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(out, "_height", 40)
    text = live_view(120, monkeypatch, FINE)
    for word in ("rate:", "robust:", "tightness, balance:", "growth:", "r mean, r var:"):
        assert word in text
    monkeypatch.setattr(out, "_height", 16)
    assert "rate:" not in live_view(120, monkeypatch, FINE)  # there is space for the numbers only


def test_no_time_is_left_where_none_is_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    view = LiveView()
    for event in (started(), Compiling()):
        view(event)
    with out.capture() as captured:
        out.print(view._draw())
    assert "left" not in captured.get()
    assert "-:--" not in captured.get()
    assert "compiling the step" in captured.get()
    assert "0/?" not in captured.get()


def test_the_live_view_is_silent_before_the_ramp(monkeypatch: pytest.MonkeyPatch):
    assert "!" not in live_view(80, monkeypatch, DEAD, eps=0.0)


def test_the_accuracies_have_the_colours_of_the_page(monkeypatch: pytest.MonkeyPatch):
    view = LiveView()
    view.started = started()
    averages = dict.fromkeys(("loss", "robust_loss", "certified_accuracy", "tightness_loss", "relu_balance_loss"), 0.5)
    view(epoch(1))
    view(StepDone(7, 2, 0.1, 1e-3, averages, ()))
    cells = [cell for column in view._numbers(view.step).columns for cell in column.cells]  # type: ignore[arg-type]
    assert "natural [bold bright_blue]90.0%[/]" in cells
    assert "certified [bold green]50.0%[/]" in cells


def test_a_note_is_printed_above_the_live_view(shown: Shown):
    LiveView()(Note("a [bold] word"))
    assert shown() == "note: a [bold] word\n"
