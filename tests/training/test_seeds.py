"""Several seeds: each is the run that it would be alone, and finished ones are not trained again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from certtrain.runs.seeds import SeedRuns
from certtrain.training.api import start_run
from certtrain.training.events import Event, Started
from certtrain.training.seeds import train_seeds
from helpers.small_runs import STEPS, assert_same_run, frequent, short_runs, small, stop_before


@pytest.fixture(autouse=True)
def _short() -> Iterator[None]:
    with short_runs():
        yield


def test_each_seed_is_the_run_that_it_would_be_alone(tmp_path: Path) -> None:
    compared = train_seeds(SeedRuns(tmp_path / "many", small(), (0, 3)), frequent())
    assert compared is not None
    start_run(small(seed=3), tmp_path / "alone", frequent())
    assert_same_run(tmp_path / "many" / "seed-3", tmp_path / "alone")
    written = json.loads((tmp_path / "many" / "report.json").read_text())
    assert (written["seeds"], [run["seed"] for run in written["runs"]]) == ([0, 3], [0, 3])
    accuracies = [run["results"]["certified_accuracy"] for run in written["runs"]]
    (spread,) = [each for each in written["spread"] if each["figure"] == "certified"]
    assert spread["mean"] == pytest.approx(sum(accuracies) / 2)
    assert "Over the seeds" in (tmp_path / "many" / "report.html").read_text()


def test_finished_seeds_are_not_trained_again_and_the_stopped_one_goes_on(tmp_path: Path) -> None:
    runs = SeedRuns(tmp_path / "many", small(), (0, 1))
    assert train_seeds(runs, frequent(should_stop=stop_before(STEPS + 10))) is None
    assert runs.finished == [0]
    assert not (tmp_path / "many" / "report.json").exists()
    first = (runs.folder(0) / "report.json").stat().st_mtime_ns
    begun: list[tuple[str, int]] = []

    def emit(event: Event) -> None:
        if isinstance(event, Started):
            begun.append((event.folder.name, event.step))

    assert train_seeds(runs, frequent(emit=emit)) is not None
    assert [name for name, _ in begun] == ["seed-1"]
    assert 0 < begun[0][1] < STEPS
    assert (runs.folder(0) / "report.json").stat().st_mtime_ns == first
    start_run(small(seed=1), tmp_path / "alone", frequent())
    assert_same_run(runs.folder(1), tmp_path / "alone")
