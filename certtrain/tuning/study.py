"""A study in a database, on which any number of processes and machines work: who trains which trial, and its results.

The number of trials is that of the whole study. A process that finds all of them taken waits for those that still
run elsewhere: if one is lost, since its process was killed, another process takes its settings, and goes on from its
last checkpoint if it finds the trial's folder.
"""

import json
import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from certtrain.errors import MissingExtra, RunError
from certtrain.runs.agreement import flat_fields
from certtrain.runs.trials import Goal, State, TrialRecord
from certtrain.tuning.space import Choices, Space, all_settings, distinct_settings

if TYPE_CHECKING:
    import optuna

STUDY, SETTINGS = "certtrain", "settings"
FOLDER, FIGURES, REASON, REFERENCE = "folder", "figures", "reason", "reference"  # attributes of a trial
WAIT = 0.5  # seconds between two looks at the trials of other processes
POLITE_STARTS = 5  # trials that are never pruned, since later ones are compared with them


def optuna_module() -> Any:
    """Optuna, which prints nothing by itself. Raises MissingExtra if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra('a search of settings needs optuna: pip install "certtrain[tune]"') from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class OpenStudy(NamedTuple):
    """A study, and whether this process has made it."""

    study: "optuna.Study"
    is_new: bool


def open_study(
    storage: str, goals: tuple[Goal, ...], settings: dict[str, Any], *, lost_after: float, unpruned: int
) -> OpenStudy:
    """The study in the database of that URL, made if there is none; it is of these settings.

    lost_after: seconds without a heartbeat after which a running trial is lost. unpruned: epochs of a trial before
    the first in which it may be pruned, if there is one goal. Raises MissingExtra, and RunError if the database cannot
    be opened or its study is of other settings.
    """
    optuna = optuna_module()
    pruner = optuna.pruners.MedianPruner(n_startup_trials=POLITE_STARTS, n_warmup_steps=unpruned)
    how = {"sampler": optuna.samplers.TPESampler(), "pruner": pruner if len(goals) == 1 else optuna.pruners.NopPruner()}
    try:
        database = _database(optuna, storage, lost_after)
        try:
            directions = ["maximize"] * len(goals)
            opened = OpenStudy(
                optuna.create_study(storage=database, study_name=STUDY, directions=directions, **how), True
            )
        except optuna.exceptions.DuplicatedStudyError:
            opened = OpenStudy(optuna.load_study(storage=database, study_name=STUDY, **how), False)
    except Exception as error:  # of the database's driver, whichever that is
        raise RunError(f"the study in {storage} cannot be opened: {type(error).__name__}: {error}") from error
    _check_settings(opened.study, storage, settings)
    return opened


def _database(optuna: Any, storage: str, lost_after: float) -> Any:
    """The database, in which each running trial records a heartbeat several times before it counts as lost."""
    beat, grace = max(1, int(lost_after / 4)), max(2, int(lost_after))
    with _without_experimental_warnings(optuna):
        return optuna.storages.RDBStorage(
            storage, heartbeat_interval=beat, grace_period=grace, heartbeat_stale_trial_callback=retry
        )


def retry(study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
    """Let the settings of a trial that was lost or stopped be tried again, from where it was."""
    study.enqueue_trial(trial.params, user_attrs=dict(trial.user_attrs))


def enqueue_reference(study: "optuna.Study", space: Space, own: dict[str, Any]) -> None:
    """Let the next trial have the preset's own settings, if all of them are in the space."""
    if all(dimension.holds(own[field]) for field, dimension in space.items()):
        study.enqueue_trial({field: _kept(space[field], value) for field, value in own.items()}, {REFERENCE: True})


def suggested(trial: "optuna.Trial", space: Space) -> dict[str, Any]:
    """The settings of a trial, by dotted path."""
    return {field: _suggested(trial, field, dimension) for field, dimension in space.items()}


def open_trials(study: "optuna.Study", trials: int) -> tuple[int, int]:
    """How many of `trials` nobody has taken yet, and how many are not finished."""
    with _without_experimental_warnings(optuna_module()):
        optuna_module().storages.fail_stale_trials(study)
    states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
    done = states.count("COMPLETE") + states.count("PRUNED")
    return trials - done - states.count("RUNNING"), trials - done


def is_surplus(study: "optuna.Study", number: int, trials: int) -> bool:
    """Whether two processes have taken the last trial at once, and this is the one too many."""
    counted = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in TAKEN]
    return len([trial for trial in counted if trial.number < number]) >= trials


TAKEN = ("COMPLETE", "PRUNED", "RUNNING")
MOST_COUNTED = 10_000  # settings of a space from which an untried one is drawn; larger spaces hardly repeat any


def is_repeated(study: "optuna.Study", trial: "optuna.Trial") -> bool:
    """Whether another trial has the same settings, and is finished, pruned or running."""
    others = (other for other in study.get_trials(deepcopy=False) if other.number != trial.number)
    return any(other.state.name in TAKEN and other.params == trial.params for other in others)


def enqueue_untried(study: "optuna.Study", space: Space) -> None:
    """Let the next trial have settings that no other one has, drawn at random, if the space is small enough to list."""
    if (distinct_settings(space) or MOST_COUNTED + 1) > MOST_COUNTED:
        return
    taken = [trial.params for trial in study.get_trials(deepcopy=False) if trial.state.name in TAKEN]
    if untried := [settings for settings in all_settings(space) if settings not in taken]:
        study.enqueue_trial(random.choice(untried))


def trial_records(study: "optuna.Study", space: Space) -> tuple[TrialRecord, ...]:
    """All trials of the study, apart from those that others have taken over."""
    found = [_record(trial, space) for trial in study.get_trials(deepcopy=False)]
    return tuple(record for record in found if record.state != "failed")


STATE_NAMES: dict[str, State] = {
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "RUNNING": "running",
    "WAITING": "waiting",
    "FAIL": "failed",
}


def _record(trial: "optuna.trial.FrozenTrial", space: Space) -> TrialRecord:
    results = trial.user_attrs.get(FIGURES, {})
    return TrialRecord(
        trial.number,
        STATE_NAMES[trial.state.name],
        {field: _given(space[field], value) for field, value in trial.params.items() if field in space},
        results.get("natural"),
        results.get("certified"),
        results.get("seconds"),
        bool(trial.user_attrs.get(REFERENCE)),
        trial.user_attrs.get(REASON, ""),
        trial.user_attrs.get(FOLDER, ""),
    )


def _suggested(trial: "optuna.Trial", field: str, dimension: Any) -> Any:
    if isinstance(dimension, Choices):
        return dimension.names[trial.suggest_categorical(field, list(dimension.names))]
    if dimension.whole:
        return trial.suggest_int(field, dimension.low, dimension.high, log=dimension.log, step=dimension.step or 1)
    return trial.suggest_float(field, dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def _kept(dimension: Any, value: Any) -> Any:
    """A value as the database keeps it."""
    return json.dumps(value) if isinstance(dimension, Choices) else value


def _given(dimension: Any, value: Any) -> Any:
    """A value that the database keeps, as the preset takes it."""
    return dimension.names[value] if isinstance(dimension, Choices) else value


def _check_settings(study: "optuna.Study", storage: str, settings: dict[str, Any]) -> None:
    """Keep the settings in a new study; raise RunError if an older one has others."""
    settings = json.loads(json.dumps(settings))
    before = study.user_attrs.get(SETTINGS)
    if before is None:
        study.set_user_attr(SETTINGS, settings)
    elif different := [name for name in settings if settings[name] != before.get(name)]:
        changes = "; ".join(_changes(before.get(name), settings[name]) for name in different)
        raise RunError(
            f"the study in {storage} began with another {' and '.join(different)}: {changes}. Give the same, or "
            "another --out"
        )


def _changes(before: Any, now: Any) -> str:
    """The fields that differ, with the values of the study and those that were given."""
    if not isinstance(before, dict):
        return f"{before}, now {now}"
    old, new = dict(flat_fields(before)), dict(flat_fields(now))
    fields = [field for field in {**old, **new} if old.get(field) != new.get(field)]
    return ", ".join(f"{field} {old.get(field, 'not set')}, now {new.get(field, 'not set')}" for field in fields)


@contextmanager
def _without_experimental_warnings(optuna: Any) -> Iterator[None]:
    """A context without Optuna's warnings that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def pause() -> None:
    """Wait before the next look at the trials of other processes."""
    time.sleep(WAIT)


def trial_folder(out: Path, trial: "optuna.Trial") -> Path:
    """The folder of a trial: its own, or that of the trial whose settings it tries again."""
    name: str = trial.user_attrs.get(FOLDER) or f"trial-{trial.number:04d}"
    return out / name
