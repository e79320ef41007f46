"""certtrain compare: tables, JSON and the page."""

import json
from pathlib import Path

import pytest

from certtrain.render import console
from helpers.command_line import Run
from helpers.run_folders import epoch, write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A finished run, and one after its first epoch."""
    first = write_run(tmp_path / "first", [epoch(1), epoch(2)])
    return [first, write_run(tmp_path / "second", [epoch(1)], finished=False, seed=3, train__batch_size=32)]


def test_results_last_epochs_and_settings(run: Run, runs: list[Path]) -> None:
    shown = run("compare", *runs)
    assert shown.code == 0, shown.err
    rows = [line.split() for line in shown.out.splitlines()]
    assert ["first", "4", "8/255", "test", "51.00%", "40.00%", "35.00%", "1", "h", "2", "min"] in rows
    assert ["second", "1", "of", "4", "8/255", *"–––––"] in rows
    assert ["second", "1", "0.01", "50.00%", "25.00%", "2.5"] in rows  # without columns for held-out examples
    assert ["seed", "0", "3"] in rows
    assert ["train.batch_size", "64", "32"] in rows


def test_a_narrow_terminal_shows_the_settings_of_each_run(
    run: Run, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "_width", 24)
    lines = run("compare", *runs).out.splitlines()
    assert "  train.batch_size = 64" in lines[lines.index("first") :]
    assert "  train.batch_size = 32" in lines[lines.index("second") :]


def test_many_runs_with_few_settings_that_differ_are_rows(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "_width", 80)
    names = [f"run-number-{number}" for number in range(9)]
    folders = [write_run(tmp_path / name, [], seed=number) for number, name in enumerate(names)]
    rows = [line.split() for line in run("compare", *folders).out.splitlines()]
    assert rows[rows.index(["run", "seed"]) + 1 :] == [[name, str(number)] for number, name in enumerate(names)]


def test_the_same_as_json(run: Run, runs: list[Path]) -> None:
    found = json.loads(run("compare", *runs, "--json").out)
    first, second = found["runs"]
    assert (first["finished"], first["results"]["certified_accuracy"]) == (True, 0.35)
    assert (second["finished"], second["results"], second["last_epoch"]["epoch"]) == (False, None, 1)
    assert {"field": "seed", "values": [0, 3]} in found["settings"]


def test_the_page_is_written_and_not_replaced(run: Run, runs: list[Path], tmp_path: Path) -> None:
    assert run("compare", *runs, "--html", "page.html").code == 0
    assert "Settings that differ" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert run("compare", *runs, "--html", "page.html").code == 1


def test_what_is_no_run_is_an_error(run: Run, tmp_path: Path) -> None:
    refused = run("compare", tmp_path)
    assert (refused.code, "holds no run" in refused.err) == (1, True)
