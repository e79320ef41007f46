"""Training and verification from Python: names of presets, the device, and progress where it is wanted."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import certtrain
from certtrain.attack import PGD
from certtrain.errors import PresetError
from certtrain.formats import percent
from certtrain.render import sessions
from certtrain.render.console import is_screen, out
from certtrain.render.training_lines import PlainView
from certtrain.runs.epoch import Epoch
from certtrain.training.events import EpochDone, Event, Note, Started
from helpers import tiny_classifier
from helpers.small_runs import frequent, small

Shown = Callable[[], str]


def test_a_preset_is_taken_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    taken = []
    monkeypatch.setattr(
        sessions.api, "start_run", lambda preset, out, context: taken.append((preset, out, context.device))
    )
    certtrain.train("digits", tmp_path / "run")
    certtrain.train(certtrain.load_preset("digits"), tmp_path / "run")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    certtrain.train("digits", tmp_path / "run")
    devices = [device for _, _, device in taken]
    assert [preset for preset, _, _ in taken] == [certtrain.load_preset("digits")] * 3
    assert devices[-1] == "cuda"
    with pytest.raises(PresetError, match="did you mean 'digits'"):
        certtrain.train("digit", tmp_path / "run")


def test_progress_is_shown_in_a_notebook_and_where_it_is_asked_for(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
):
    events: list[Event] = []
    preset = small(train__epochs=1)
    assert certtrain.train(preset, tmp_path / "silent", frequent(emit=events.append)) is not None
    assert shown() == ""
    assert isinstance(events[0], Started)
    certtrain.train(preset, tmp_path / "asked", frequent(), progress=True)
    assert "epoch 1/1" in shown()
    monkeypatch.setattr(sessions, "console", SimpleNamespace(is_jupyter=True))
    certtrain.train(preset, tmp_path / "notebook", frequent(emit=events.append))
    assert "verified error" in shown()
    certtrain.train(preset, tmp_path / "off", frequent(), progress=False)
    assert shown() == ""
    assert sum(isinstance(event, Started) for event in events) == 2


@pytest.mark.parametrize("whole", [False, True])
def test_a_notebook_breaks_lines_between_words_and_a_file_keeps_them(
    monkeypatch: pytest.MonkeyPatch, shown: Shown, whole: bool
):
    assert is_screen(Console(file=io.StringIO(), force_jupyter=True))
    assert not is_screen(Console(file=io.StringIO()))
    monkeypatch.setattr(out, "_width", 60)
    monkeypatch.setattr("certtrain.render.console.is_screen", lambda console: not whole)
    PlainView()(Note("a sentence that has so many words in it that it is longer than a line of this notebook"))
    lines = shown().splitlines()
    assert (len(lines) == 1) == whole
    PlainView()(EpochDone(Epoch(1, 5, 0.1, {"loss": 1.0, "natural_accuracy": 0.9, "certified_accuracy": 0.5}, ())))
    assert len(shown().splitlines()) == 1, "numbers stay side by side"
    assert whole or max(map(len, lines)) <= 60


def test_a_resumed_run_shows_its_progress_too(tmp_path: Path, shown: Shown):
    calls = iter(range(10**6))
    certtrain.train(
        small(train__epochs=1), tmp_path / "run", frequent(should_stop=lambda: "now" if next(calls) == 3 else None)
    )
    certtrain.resume(tmp_path / "run", frequent(), progress=True)
    assert "resumed at step 3" in shown()


def test_a_verification_attacks_by_default_as_the_command_does_and_says_only_what_was_done():
    model, images = tiny_classifier.mostly_right(30)
    report = certtrain.verify(model, images, 0.05)
    assert report.attack == PGD().to_dict()
    assert "under attack" in repr(report)
    without = certtrain.verify(model, images, 0.05, attack=None)
    assert without.attack == {"name": "none"}
    assert "under attack" not in repr(without)
    assert f"natural {percent(without.natural_accuracy)}, certified" in repr(without)
    assert certtrain.verify_radii(model, images, [0.05], method="ibp").reports[0].attack == PGD().to_dict()


@pytest.mark.parametrize(("name", "place"), [("timeout", "timeout"), ("time_budget", "budget")])
def test_a_limit_of_the_command_is_an_error_that_says_where_it_belongs(name: str, place: str):
    model, images = tiny_classifier.mostly_right(2)
    with pytest.raises(TypeError, match=rf"verify\(\) has no .*'{name}'.*limits=certtrain\.Limits\({place}=…\)"):
        certtrain.verify(model, images, 0.05, **{name: 1.0})  # type: ignore[arg-type]


def test_a_verification_shows_its_progress_where_it_is_wanted(shown: Shown, monkeypatch: pytest.MonkeyPatch):
    model, images = tiny_classifier.mostly_right(30)
    rounds: list[tuple[str, ...]] = []
    done: list[int] = []

    def verify(**options: Any) -> str:
        certtrain.verify(
            model,
            images,
            0.05,
            method="crown",
            on_round=lambda names, examples: rounds.append(names),
            on_examples=lambda results: done.extend(result.index for result in results),
            **options,
        )
        return shown()

    assert verify() == ""
    asked = verify(progress=True).splitlines()
    assert asked[0] == "inference, attack: 30 examples"
    assert asked[1].startswith("  30/30  certified 0  falsified ")
    assert any(line.startswith("crown: ") for line in asked)
    assert len(rounds) == 2 * sum(line.endswith("examples") for line in asked)
    assert len(done) > 60, "the caller's own callbacks are called as well"
    monkeypatch.setattr(sessions, "console", SimpleNamespace(is_jupyter=True))
    assert verify() != ""
    assert verify(progress=False) == ""
