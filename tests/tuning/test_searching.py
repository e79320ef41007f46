"""Searches: each trial once, on held-out examples alone, pruned, stopped, taken over, and by several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from certtrain.errors import MissingExtra, NonFiniteError, PresetError, RunError
from certtrain.runs.trials import TrialRecord, TrialRecords
from certtrain.training.context import RunContext
from certtrain.tuning import searching
from certtrain.tuning.searching import SearchOptions, search_settings
from certtrain.tuning.space import Choices, Range
from helpers import processes
from helpers.command_line import run_here, run_in
from helpers.small_runs import without_pages

optuna = pytest.importorskip("optuna", reason="a search needs the extra 'tune'")
QUICK = {"train.epochs": 2, "train.milestones": [], "eps": {"max": 0.02, "start": 1, "length": 1}}
QUICK |= {"model": {"name": "mlp", "hidden": [8]}, "train.batch_size": 256}
SPACE = {"train.learning_rate": Range(1e-4, 1e-2, log=True), "train.milestones": Choices(([], [1]))}


def options(out: Path, trials: int, **changes: Any) -> SearchOptions:
    return SearchOptions("digits", SPACE, out, trials, **({"overrides": QUICK} | changes))


def search(out: Path, trials: int, context: RunContext | None = None, **changes: Any) -> TrialRecords:
    with without_pages():
        return search_settings(options(out, trials, **changes), context or RunContext())


def test_trials_are_runs_on_held_out_examples_and_the_first_has_the_presets_own_settings(tmp_path: Path) -> None:
    seen: list[TrialRecord] = []
    with without_pages():
        found = search_settings(options(tmp_path / "t", 3), RunContext(), lambda trial, records: seen.append(trial))
    assert [trial.number for trial in found.finished] == [0, 1, 2] == [trial.number for trial in seen]
    assert found.reference == found.trials[0]
    assert found.trials[0].settings == {"train.learning_rate": 2e-3, "train.milestones": []}
    assert found.examples == 143  # a tenth of 1,437
    for trial in found.finished:
        run = tmp_path / "t" / f"trial-{trial.number:04d}"
        results = json.loads((run / "report.json").read_text())["results"]
        assert (results["split"], results["examples"]) == ("validation", 143)
        assert (trial.natural, trial.certified) == (results["natural_accuracy"], results["certified_accuracy"])
        preset = json.loads((run / "preset.json").read_text())
        assert preset["train"]["learning_rate"] == trial.settings["train.learning_rate"]


def test_a_search_goes_on_where_it_was_and_does_nothing_when_it_is_done(tmp_path: Path) -> None:
    first = search(tmp_path / "t", 2)
    more = search(tmp_path / "t", 3)
    assert more.trials[:2] == first.trials
    assert len(more.finished) == 3
    assert search(tmp_path / "t", 3) == more


def test_no_settings_are_trained_twice_and_a_small_space_has_few_trials(tmp_path: Path) -> None:
    space = {"seed": Choices((0, 1)), "train.batch_size": Range(128, 256, step=64)}
    with without_pages():
        found = search_settings(SearchOptions("digits", space, tmp_path / "t", 20, overrides=QUICK), RunContext())
    assert len(found.finished) == 6
    assert len({str(sorted(trial.settings.items())) for trial in found.trials}) == 6
    assert found.reference is not None


def test_a_stopped_trial_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    calls = iter(range(10**6))
    stopped = search(tmp_path / "t", 2, RunContext(should_stop=lambda: "time is up" if next(calls) >= 4 else None))
    assert not stopped.finished
    assert [trial.state for trial in stopped.trials] == ["waiting"]
    found = search(tmp_path / "t", 2)
    assert len(found.finished) == 2
    assert found.reference is not None
    assert sorted(path.name for path in (tmp_path / "t").glob("trial-*")) == ["trial-0000", "trial-0002"]
    assert [(trial.number, trial.folder) for trial in found.finished] == [(1, "trial-0000"), (2, "trial-0002")]


def test_one_goal_prunes_poor_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optuna.trial.Trial.should_prune", lambda trial: trial.number == 1)
    found = search(tmp_path / "t", 3, goals=("certified",), overrides=QUICK | {"train.epochs": 3})
    assert [trial.state for trial in found.trials] == ["finished", "pruned", "finished"]
    assert "median" in found.trials[1].reason


def test_a_trial_below_the_median_of_the_others_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching.studies, "POLITE_STARTS", 1)
    with without_pages():
        space = {"train.learning_rate": Choices((2e-3, 1e-7))}
        overrides = QUICK | {"train.epochs": 5}
        task = SearchOptions("digits", space, tmp_path / "t", 2, goals=("certified",), overrides=overrides)
        found = search_settings(task, RunContext())
    assert [trial.state for trial in found.trials] == ["finished", "pruned"]
    assert "median" in found.trials[1].reason
    epochs = (tmp_path / "t" / found.trials[1].folder / "metrics.jsonl").read_text().count("\n")
    assert 2 <= epochs < 5


def test_settings_that_diverge_or_disagree_count_as_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = searching.start_run

    def train(preset: Any, folder: Path, context: RunContext) -> Any:
        if folder.name == "trial-0001":
            raise NonFiniteError("step 3: NaN")
        return real(preset, folder, context)

    monkeypatch.setattr(searching, "start_run", train)
    found = search(tmp_path / "t", 3)
    assert [(trial.state, trial.reason) for trial in found.trials][1] == ("pruned", "step 3: NaN")
    assert len(found.finished) == 2


def test_a_study_of_other_settings_is_refused(tmp_path: Path) -> None:
    search(tmp_path / "t", 1)
    with pytest.raises(RunError, match="began with another preset: seed 0, now 5"):
        search(tmp_path / "t", 2, overrides=QUICK | {"seed": 5})
    with pytest.raises(RunError, match=r"another goals: \['natural', 'certified'\], now \['natural'\]"):
        search(tmp_path / "t", 2, goals=("natural",))


@pytest.mark.parametrize("field", ["data.validation", "data.verify_on", "data.examples"])
def test_held_out_examples_cannot_be_searched(field: str, tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="cannot be searched"):
        search_settings(SearchOptions("digits", {field: Choices((1, 2))}, tmp_path, 1))


def test_a_database_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be opened"):
        search(tmp_path / "t", 1, storage="sqlite:////none/of/this.db")


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"certtrain\[tune\]"):
        search(tmp_path / "t", 1)


def test_the_last_trial_is_not_taken_twice(tmp_path: Path) -> None:
    search(tmp_path / "t", 2)
    study = optuna.load_study(study_name="certtrain", storage=f"sqlite:///{tmp_path / 't' / 'study.db'}")
    one, other = study.ask(), study.ask()
    assert not searching.studies.is_surplus(study, one.number, 3)
    assert searching.studies.is_surplus(study, other.number, 3)


COMMAND = ["tune", "digits", "--space", "space.toml", "--trials", "4", "--out", "t", "--lost-after", "3s", "--json"]
COMMAND += ["--set", "train.epochs=3", "--set", "train.milestones=[2]", "--set", "eps.length=1"]
COMMAND += ["--set", "model={name='mlp', hidden=[8]}"]


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server of its own, which listens on a socket in its folder; the test is skipped if
    there is no server or no driver.
    """
    pytest.importorskip("psycopg2", reason="PostgreSQL needs the driver psycopg2")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("there is no PostgreSQL server (Debian's package postgresql)")
    user = "postgres" if os.geteuid() == 0 else None  # it does not run as root
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a short path, as sockets need, which that user can reach
    if user:
        shutil.chown(folder, user)
    server = [programs[-1] / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log"]
    make = [programs[-1] / "initdb", "-D", folder / "data", "-A", "trust", "-U", "tuner", "--no-sync"]
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, user=user, cwd="/")
    run(make)
    run([*server, "-o", f"-c listen_addresses='' -k {folder}", "start"])
    try:
        yield f"postgresql+psycopg2://tuner@/postgres?host={folder}"
    finally:
        run([*server, "-m", "immediate", "stop"])
        shutil.rmtree(folder)


@contextmanager
def sqlite() -> Iterator[None]:
    yield None


def wait_for(what: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("database", [sqlite, postgresql])
def test_two_processes_share_a_study_and_one_that_is_killed_loses_nothing(
    database: Callable[[], AbstractContextManager[str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "space.toml").write_text('"train.learning_rate" = { low = 1e-3, high = 1e-2 }\n')
    with database() as url:
        command = COMMAND if url is None else [*COMMAND, "--storage", url]
        first, *two = (
            processes.context().Process(target=run_in, args=(tmp_path, *command), daemon=True) for _ in range(3)
        )
        first.start()
        wait_for((tmp_path / "t" / "trial-0000" / "metrics.jsonl").exists)
        first.kill()
        first.join()
        for process in two:
            process.start()
        for process in two:
            process.join(300)
        assert [process.exitcode for process in (first, *two)] == [-signal.SIGKILL, 0, 0]
        monkeypatch.chdir(tmp_path)
        done = run_here(*command)
    trials = json.loads(done.out)["trials"]
    finished = [trial for trial in trials if trial["state"] == "finished"]
    assert len(finished) == len(trials) == 4
    assert sum(trial["reference"] for trial in finished) == 1  # of the killed process
    assert len({json.dumps(trial["settings"]) for trial in finished}) == 4
    assert len(list((tmp_path / "t").glob("trial-*"))) == 4
