"""Runs side by side: which settings differ, what does not compare, and unfinished runs."""

from pathlib import Path

import pytest

from certtrain.errors import RunError
from certtrain.runs.comparing import progress_of, read_comparison
from helpers.run_folders import RESULTS, epoch, write_run


def test_the_settings_that_differ_and_no_others(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", [epoch(1)], finished=False)
    other = write_run(tmp_path / "other", [], train__learning_rate=1e-3, model={"name": "mlp", "hidden": [8]})
    compared = read_comparison([first, other])
    settings = {setting.field: setting.values for setting in compared.settings()}
    assert settings["train.learning_rate"] == (2e-3, 1e-3)
    assert settings["model.hidden"] == (None, [8])
    assert {field.partition(".")[0] for field in settings} == {"train", "model"}
    assert compared.names == ("first", "other")
    assert [progress_of(run) for run in compared.runs] == ["1 of 4", "4"]
    assert read_comparison([first, first]).settings() == []


def test_results_on_other_examples_or_at_another_radius_are_noted(tmp_path: Path) -> None:
    changed = RESULTS | {"eps": 0.1, "split": "validation"}
    runs = [write_run(tmp_path / "a", []), write_run(tmp_path / "b", [], results=changed)]
    assert [*read_comparison(runs).notes()] == [
        "the results are of different splits (test, validation) and different ε (8/255, 0.1), so they compare only "
        "with care",
    ]
    assert [*read_comparison([runs[0], runs[0]]).notes()] == []


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [])
    with pytest.raises(RunError, match="holds no run"):
        read_comparison([run, tmp_path])
