"""Every table on narrow terminals: no name and no number is lost, and no word is broken."""

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from certtrain import render
from certtrain.certfile.checking import Checked
from certtrain.competition.summary import Tally
from certtrain.diagnostics.epochs import History
from certtrain.diagnostics.growth import DepthSweep, SchemeGrowth, spread
from certtrain.diagnostics.model_states import InitialNetwork, ModelStates
from certtrain.doctor.checking import Check
from certtrain.interchange.export import Comparison
from certtrain.network.initialization import InitRecord
from certtrain.render.console import out, show_sentence
from certtrain.runs.comparing import read_comparison
from certtrain.runs.epoch import Epoch, LayerState
from certtrain.runs.trials import TrialRecord, TrialRecords
from certtrain.spec.preset import load_preset, preset_names
from certtrain.verification.radii import RadiusResults, RadiusSweep
from certtrain.verification.results import StepSummary
from certtrain.verification.verify import Report
from helpers.run_folders import epoch, write_run

ASSUMPTIONS = tuple(f"assumption number {number}" for number in range(7))
REPORT = Report(
    dataset="fashion-mnist",
    split="validation",
    eps=8 / 255,
    examples=10_000,
    certified=3456,
    open=1111,
    falsified=2222,
    misclassified=3211,
    method="auto",
    attack={"name": "apgd-ce", "steps": 100, "restarts": 5, "seed": 0},
    assumptions=ASSUMPTIONS,
    seconds=7384.6,
    steps=(
        StepSummary("inference", 10_000, 3211, 0.211),
        StepSummary("alpha-crown", 1234, 123, 4321.0),
        StepSummary("complete", 1111, 0, 33_330.0),
    ),
    unfinished=1111,
)
CHECKED = Checked(
    "c.jsonl",
    10_000,
    10_000,
    {"certified": 3456, "falsified": 2222, "open": 1111, "misclassified": 3211},
    8 / 255,
    "auto",
    "float32",
    "saved",
    ASSUMPTIONS,
    {},
    75.0,
)


SWEEP = RadiusSweep((RadiusResults(REPORT, 9876), RadiusResults(REPORT, 0)), (), 14769.2)
LONG = "cifar10-160ep-seed0-20261126-123456-second"  # the name of a run
LAYER = LayerState(
    name="block3.conv12_relu",
    units=32_768,
    active=0.217,
    unstable=0.084,
    inactive=0.699,
    dead=0.277,
    centre=-0.000166,
    width=0.4567,
    growth=1940.4,
    mean_ratio=0.987,
    variance_ratio=1.234,
)


def states(name: str = LONG) -> ModelStates:
    layers = (LAYER, replace(LAYER, name="linear1_relu", units=512, growth=12_345.6))
    return ModelStates(name, None, layers)  # type: ignore[arg-type]


def history() -> History:
    measured = {"certified_accuracy": 0.1234, "adversarial_accuracy": 0.4567}
    return History(tuple(Epoch(n, 391 * n, 0.0234 * n, measured, (LAYER,)) for n in range(1, 4)), cut_short=False)


def initial(scheme: str, seed: int) -> InitialNetwork:
    layers = [LAYER, replace(LAYER, name="linear1_relu", growth=12_345.6 * (1 + seed))]
    records = [InitRecord("block3.conv12", "ibp", 4608, 0.01234, True)]
    return InitialNetwork(scheme, seed, records, layers, layers)  # type: ignore[arg-type]


def compared_growths() -> list[SchemeGrowth]:
    schemes = ("ibp", "kaiming", "xavier", "orthogonal")
    return [SchemeGrowth(name, (initial(name, 0), initial(name, 1))) for name in schemes]  # type: ignore[arg-type]


def sweeps() -> list[DepthSweep]:
    growth = (spread([1234.5, 2345.6]), spread([18_123.0, 19_123.0]))
    schemes = ("ibp", "kaiming", "xavier", "orthogonal")
    return [DepthSweep(name, (2, 16), growth, 3.0) for name in schemes]  # type: ignore[arg-type]


def tallies() -> list[Tally]:
    words = Counter({"unsat": 1234, "sat": 567, "unknown": 89, "timeout": 1011, "error": 12})
    return [Tally(name, words, 3, 1234, 5, 123_456.7) for name in ("cifar100_tinyimagenet_resnet_2024", "acasxu_2023")]


def trials() -> TrialRecords:
    settings = {"train.learning_rate": 0.000678, "train.batch_size": 128, "regularizer.weight": 0.25}
    records = [TrialRecord(number, "finished", settings, 0.7133, 0.2345 + number, 12_345.0) for number in (17, 18)]
    return TrialRecords("digits", ("natural", "certified"), 1234, 0.1, tuple(records))


def comparison(folder: Path) -> None:
    last = epoch(2, validation_natural_accuracy=0.4321, validation_certified_accuracy=0.1357)
    names = (LONG, "cifar10-160ep-seed1-20261126-123456-second", "short")
    runs = [write_run(folder / name, [epoch(1), last], seed=seed) for seed, name in enumerate(names)]
    render.show_comparison(read_comparison(runs))


def exports() -> None:
    render.show_comparisons([Comparison(what, 10_000, 1.2e-05, 123.4, 3.4e-4, 9_999) for what in ("ONNX", "folded")])


def checks() -> None:
    found = "two cores, 24 GiB, torch 2.15.0, and another sentence that is so long that it needs more than one line"
    place = "0.1.0, in /home/someone/projects/robust/.venv/lib/python3.11"
    render.show_checks([Check(name, lambda: found, "") for name in ("complete verification", "torch")])
    render.show_checks([Check("certtrain", lambda: place, "")])


SHOWN: dict[str, Callable[[Path], object]] = {
    "report": lambda folder: render.show_report(REPORT, Path("runs/digits")),
    "checked": lambda folder: render.show_checked(CHECKED),
    "states": lambda folder: render.show_states(states(), "the title"),
    "models": lambda folder: render.show_models([states(), states("short")], "the title"),
    "history": lambda folder: render.show_history(history(), [replace(states(), step=391, epoch=1)], ("one", "two")),
    "initial": lambda folder: render.show_initial(initial("ibp", 0), "the title", []),
    "compared": lambda folder: render.show_compared(compared_growths(), "the title"),
    "sweep": lambda folder: render.show_sweep(sweeps(), "the title"),
    "comparison": comparison,
    "presets": lambda folder: render.show_presets([load_preset(name) for name in preset_names()]),
    "tallies": lambda folder: render.show_tallies(tallies()),
    "trials": lambda folder: render.show_trials(trials()),
    "radii": lambda folder: render.show_radii(SWEEP),
    "exports": lambda folder: exports(),
    "checks": lambda folder: checks(),
}
WIDE = 400
TITLES = {"field", "trouble"}  # of columns that are empty or turned into rows
ONLY_WHERE_WIDE = {"presets": "the descriptions of presets", "states": "the bars of the layers"}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", SHOWN)
def test_no_name_and_no_number_is_lost_and_no_word_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, width: int
) -> None:
    text = lines_at(monkeypatch, SHOWN[name], tmp_path / "narrow", width)
    whole = lines_at(monkeypatch, SHOWN[name], tmp_path / "wide", WIDE)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text or name == "presets", "something is cut"
    words, known = count_words(text), count_words(whole)
    assert not words.keys() - known.keys(), "a word is broken"
    if name not in ONLY_WHERE_WIDE:
        assert (known - words).keys() <= TITLES, "a word is lost"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_of_presets_and_layers_all_but_descriptions_and_bars_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int
) -> None:
    presets = lines_at(monkeypatch, SHOWN["presets"], tmp_path, width).split()
    for preset in map(load_preset, preset_names()):
        assert {preset.name, preset.objective.name, preset.model.name, str(preset.train.epochs)} <= set(presets)
    assert ("meant for a GPU" in " ".join(presets)) == (width == 120)
    layers = lines_at(monkeypatch, SHOWN["states"], tmp_path, width).split()
    numbers = "32,768 512 21.7% 8.4% 69.9% 27.7% -0.000166 0.457 1,940× 12,300× 0.987 1.23 block3.conv12_relu"
    assert set(numbers.split()) <= set(layers)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_sentence_is_broken_between_words_and_its_command_is_not(width: int) -> None:
    shown = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    command = "certtrain train --resume runs/cifar10-160ep-seed0-20261126-123456"
    sentence = f"stopped (interrupted) at step 269 of 1150; about 29 s left; resume with: {command}"
    with shown.capture() as capture:
        show_sentence(shown, Text(sentence))
    *lines, last = capture.get().splitlines()
    assert (last, " ".join([*map(str.rstrip, lines), last])) == (command, sentence)
    assert max(map(len, lines)) <= width


def count_words(text: str) -> Counter[str]:
    """How often each word is there; a title before a value may have a colon."""
    return Counter(word.rstrip(":") for word in text.split() if not set(word) <= set("█▒░…"))


def lines_at(monkeypatch: pytest.MonkeyPatch, show: Callable[[Path], object], folder: Path, width: int) -> str:
    """What is shown on a terminal of that width."""
    monkeypatch.setattr(out, "_width", width)
    monkeypatch.setattr(out, "_force_terminal", True)
    with out.capture() as capture:
        show(folder)
    return capture.get()
