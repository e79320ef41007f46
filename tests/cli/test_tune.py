"""certtrain tune: its output, its page, and wrong options."""

import json
from pathlib import Path

import pytest

from helpers.command_line import TINY, Run

pytest.importorskip("optuna", reason="a search needs the extra 'tune'")
WORDS = ["tune", "digits", "--space", "space.toml", "--out", "t", "--set", "train.epochs=2", *TINY]


@pytest.fixture
def space(tmp_path: Path) -> None:
    """A space of learning rates."""
    (tmp_path / "space.toml").write_text('"train.learning_rate" = { low = 1e-3, high = 1e-2, log = true }\n')


@pytest.mark.usefixtures("space")
def test_trials_are_shown_and_written(run: Run, tmp_path: Path) -> None:
    done = run(*WORDS, "--trials", 2, "--validation", 100)
    assert done.code == 0, done.err
    assert "trial 0 (the preset's own settings): natural " in done.out
    assert "digits: 100 held-out examples, ε = 0.02" in done.out
    assert "best certified accuracy: " in done.out
    assert "Pareto-optimal trials" in (tmp_path / "t" / "study.html").read_text(encoding="utf-8")
    again = run(*WORDS, "--trials", 2, "--validation", 100, "--json")
    assert [trial["number"] for trial in json.loads(again.out)["trials"]] == [0, 1]


@pytest.mark.usefixtures("space")
def test_a_search_that_is_stopped_says_how_to_go_on(run: Run) -> None:
    stopped = run(*WORDS, "--trials", 2, "--time-budget", "0.001s")
    assert stopped.code == 0, stopped.err
    assert "0 of 2 trials are done; to go on, start the same command again" in stopped.out


@pytest.mark.usefixtures("space")
def test_wrong_goals_and_files_in_the_way_are_refused(run: Run, tmp_path: Path) -> None:
    assert run(*WORDS, "--maximize", "speed").code == 2
    (tmp_path / "t").write_text("")
    refused = run(*WORDS)
    assert (refused.code, "is a file" in refused.err) == (1, True)
