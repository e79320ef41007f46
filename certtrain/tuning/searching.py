"""The search itself: each trial is a run that is trained and verified on held-out examples, never on the test set."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certtrain.data import load_images
from certtrain.errors import NonFiniteError, PresetError, RunError
from certtrain.locking import one_at_a_time
from certtrain.runs.history import REPORT, read_run
from certtrain.runs.trials import GOALS, Goal, TrialRecord, TrialRecords
from certtrain.spec.preset import Preset, load_preset
from certtrain.storage import make_folder, write_atomic
from certtrain.training.api import resume_run, start_run
from certtrain.training.context import DEFAULT_CONTEXT, RunContext
from certtrain.training.events import EpochDone, Event, Listener
from certtrain.tuning import study as studies
from certtrain.tuning.space import Space, check_space, described_space, limited_trials

if TYPE_CHECKING:
    import optuna

MEASURES: dict[Goal, str] = {"natural": "validation_natural_accuracy", "certified": "validation_certified_accuracy"}
HELD_OUT_SHARE = 10  # one in so many training examples is held out, if the preset holds none out
PRUNED = "pruned"  # the reason with which a run stops
LOST_AFTER = 120.0  # seconds


@dataclass(frozen=True)
class SearchOptions:
    """What a search is: the preset and its changes, the space, the number of trials in all, and where it is kept.

    storage: the URL of a database; by default a file in `out`, the folder of the trials. validation: the number of
    training examples to hold out; by default the preset's, or a tenth of them. lost_after: seconds without a
    heartbeat after which the trial of another process is lost.
    """

    preset: str
    space: Space
    out: Path
    trials: int = 50
    storage: str | None = None
    goals: tuple[Goal, ...] = GOALS
    overrides: dict[str, Any] = field(default_factory=dict)
    validation: int | None = None
    lost_after: float = LOST_AFTER


class _Stopped(Exception):
    """The user or the clock stopped the search within a trial."""


class _Surplus(Exception):
    """Another process has taken the last trial."""


class _Repeated(Exception):
    """Another trial has the same settings."""


def search_settings(
    options: SearchOptions,
    context: RunContext = DEFAULT_CONTEXT,
    on_trial: Callable[[TrialRecord, TrialRecords], None] = lambda trial, records: None,
) -> TrialRecords:
    """Work on a study until all its trials are finished or `context.should_stop` gives a reason; returns all trials.

    `on_trial` is called with each trial that this process finishes. Raises PresetError, DataError, MissingExtra, and
    RunError if the study is of other settings or cannot be opened.
    """
    return SearchWork(options, context.resolved(), on_trial).run()


class SearchWork:
    """One process's work on a study."""

    def __init__(
        self, options: SearchOptions, context: RunContext, on_trial: Callable[[TrialRecord, TrialRecords], None]
    ) -> None:
        self.options, self.context, self.on_trial = options, context, on_trial
        self.trials = limited_trials(options.space, options.trials)
        studies.optuna_module()
        self.overrides = options.overrides | _held_out(options, context)
        check_space(options.space, options.preset, self.overrides)
        self.base = load_preset(options.preset, self.overrides)
        self.compared_from = self.base.eps.start + self.base.eps.length  # the first epoch at the largest ε
        make_folder(options.out)
        with self._alone():
            self.study = self._open()

    def _open(self) -> "optuna.Study":
        """The study; if it is new, its first trial has the preset's own settings."""
        options = self.options
        storage = options.storage or f"sqlite:///{options.out.absolute() / 'study.db'}"
        study, is_new = studies.open_study(
            storage, options.goals, self._settings(), lost_after=options.lost_after, unpruned=self.compared_from
        )
        if is_new:
            studies.enqueue_reference(study, options.space, _own(self.base, options.space))
        return study

    def _alone(self) -> AbstractContextManager[None]:
        """A context for one process at a time of those with the same folder: SQLite has no locks of rows."""
        return one_at_a_time(self.options.out / ".study.lock")

    def run(self) -> TrialRecords:
        """Train trials until the study has all of them."""
        while self.context.should_stop() is None:
            with self._alone():
                free, unfinished = studies.open_trials(self.study, self.trials)
            if unfinished <= 0:
                break
            if free <= 0:
                studies.pause()
                continue
            self.study.optimize(
                self._trial, n_trials=1, catch=(_Stopped, _Surplus, _Repeated), callbacks=[self._report]
            )
        return self.records()

    def records(self) -> TrialRecords:
        """The trials so far."""
        trials = studies.trial_records(self.study, self.options.space)
        held_out, eps = self.base.data.validation, self.base.eps.max
        return TrialRecords(self.base.name, self.options.goals, held_out, eps, trials)

    def _settings(self) -> dict[str, Any]:
        """What the trials of a study have in common."""
        space, goals = described_space(self.options.space), list(self.options.goals)
        return {"preset": self.base.model_dump(mode="json"), "space": space, "goals": goals}

    def _trial(self, trial: "optuna.Trial") -> list[float]:
        """Train and verify a trial; returns its accuracies in the order of the goals."""
        if studies.is_surplus(self.study, trial.number, self.trials):
            raise _Surplus
        settings = self._suggested(trial)
        folder = studies.trial_folder(self.options.out, trial)
        trial.set_user_attr(studies.FOLDER, folder.name)
        try:
            self._train(trial, settings, folder)
        except (PresetError, NonFiniteError) as error:  # settings that do not go together, or that diverge
            raise self._pruned(trial, str(error)) from error
        results = read_run(folder).report
        assert results is not None
        found = {"natural": results.results.natural_accuracy, "certified": results.results.certified_accuracy}
        trial.set_user_attr(studies.FIGURES, found | {"seconds": results.training.seconds})
        return [found[goal] for goal in self.options.goals]

    def _suggested(self, trial: "optuna.Trial") -> dict[str, Any]:
        """The settings of a trial, by dotted path. Raises _Repeated if another one has them already."""
        with self._alone():
            settings = studies.suggested(trial, self.options.space)
            if not studies.is_repeated(self.study, trial):
                return settings
            studies.enqueue_untried(self.study, self.options.space)
        raise _Repeated

    def _train(self, trial: "optuna.Trial", settings: dict[str, Any], folder: Path) -> None:
        """Train a trial into `folder`, from its start or from where it was stopped; nothing if it is finished."""
        if (folder / REPORT).is_file():
            return
        watch = _Watch(trial, self.options.goals, self.context, self.compared_from)
        context = replace(self.context, emit=watch.emit, should_stop=watch.should_stop)
        if (folder / "preset.json").is_file():
            report = resume_run(folder, context)
        else:
            report = start_run(load_preset(self.options.preset, self.overrides | settings), folder, context)
        if report is None and watch.prunes:
            raise self._pruned(trial, "less than the median of the trials before it")
        if report is None:
            studies.retry(self.study, self.study.get_trials(deepcopy=False)[trial.number])
            raise _Stopped

    def _pruned(self, trial: "optuna.Trial", reason: str) -> Exception:
        trial.set_user_attr(studies.REASON, reason)
        pruned: Exception = studies.optuna_module().TrialPruned(reason)
        return pruned

    def _report(self, study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
        """Call `on_trial` if the trial is finished or pruned."""
        records = self.records()
        found = [record for record in records.trials if record.number == trial.number]
        if found and found[0].state in ("finished", "pruned"):
            self.on_trial(found[0], records)


class _Watch:
    """Follows the run of a trial: reports its accuracy after each epoch, and stops the run if that is poor.

    first: the first epoch that is reported. A trial is judged by the best of its epochs, and those in the ramp of ε,
    where a constant network may look good, do not count.
    """

    def __init__(self, trial: "optuna.Trial", goals: tuple[Goal, ...], context: RunContext, first: int) -> None:
        self.trial, self.context, self.prunes, self.first = trial, context, False, first
        self.measure = MEASURES[goals[0]] if len(goals) == 1 else None

    def emit(self, event: Event) -> None:
        """Pass the event on, and report the epoch's accuracy."""
        listener: Listener = self.context.emit
        listener(event)
        if isinstance(event, EpochDone) and self.measure is not None and event.record.epoch >= self.first:
            value = event.record.measured.get(self.measure)
            self.trial.report(value or 0.0, event.record.epoch)
            self.prunes = self.trial.should_prune()

    def should_stop(self) -> str | None:
        """Why the run is to stop now."""
        return PRUNED if self.prunes else self.context.should_stop()


def _held_out(options: SearchOptions, context: RunContext) -> dict[str, Any]:
    """The fields by which trials are verified on held-out examples."""
    preset = load_preset(options.preset, options.overrides)
    count = options.validation or preset.data.validation
    if not count:
        count = len(load_images(preset.data.name, "train", data_dir=context.data_dir)) // HELD_OUT_SHARE
    fixed = {"data.validation": count, "data.verify_on": "validation"}
    if taken := {*fixed, "data", "data.examples"} & options.space.keys():
        raise PresetError(f"{min(taken)} cannot be searched: all trials are compared on the same held-out examples")
    return fixed


def _own(preset: Preset, space: Space) -> dict[str, Any]:
    """The preset's own value of each field of the space; None for a field that it does not have."""
    own = dict[str, Any]()
    for path in space:
        value: Any = preset.model_dump(mode="json")
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        own[path] = value
    return own


def check_folder(out: Path) -> None:
    """Raise RunError if `out` is a file, or StorageError if nothing can be written there."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; give a folder for the trials")
    write_atomic(out / ".writable", b"")
    (out / ".writable").unlink()
