"""A search of settings in the terminal: each trial when it ends, and at the end the Pareto-optimal ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from rich.text import Text

from certtrain.formats import NO_NUMBER, duration, percent
from certtrain.render.cells import new_table, show_table
from certtrain.render.console import GREY, err, note, out, remark, say, show_title
from certtrain.runs.trials import TrialRecord, TrialRecords
from certtrain.spec.epsilon import format_eps
from certtrain.training.events import EpochDone, Note, Started

if TYPE_CHECKING:
    from certtrain.training.events import Event


def show_trial(trial: TrialRecord) -> None:
    """A line for a trial that has ended."""
    values = f"natural {percent(trial.natural)}, certified {percent(trial.certified)}"
    what = values if trial.state == "finished" else f"{trial.state}: {trial.reason}"
    own = " (the preset's own settings)" if trial.reference else ""
    if trial.folder not in ("", f"trial-{trial.number:04d}"):
        own += f" (continued in {trial.folder})"
    out.print(Text.assemble((f"trial {trial.number}{own}: ", "bold"), what, (f"  {_settings(trial)}", GREY)))


def show_trials(records: TrialRecords) -> None:
    """The Pareto-optimal trials, and how they compare with the preset's own settings."""
    show_title(f"{records.preset}: {records.examples:,} held-out examples, ε = {format_eps(records.eps)}")
    if not records.finished:
        say(records.sentences()[0])
        return
    table = new_table("trial", "natural", "certified", "trained in", "run", "settings")
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for trial in records.front:
        seconds = NO_NUMBER if trial.seconds is None else duration(trial.seconds)
        table.add_row(
            str(trial.number), percent(trial.natural), percent(trial.certified), seconds, trial.folder, _settings(trial)
        )
    show_table(table)
    for sentence in records.sentences():
        say(sentence)
    remark("the best of many trials looks better on these examples than it is: verify it once on the test set")


class TrialView:
    """Shows how far the trial is that is being trained, and each trial that has ended; with `quiet` only the first."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.status, self.title = quiet, err.status(""), ""
        self.noted = set[str]()  # each note is shown once, since every trial has the same

    def __enter__(self) -> Self:
        self.status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.status.stop()

    def listen(self, event: Event) -> None:
        """Show an event of the training of a trial."""
        if isinstance(event, Started):
            self.title = f"{event.folder.name}: {{}} of {event.preset.train.epochs} epochs"
            self.status.update(Text(self.title.format(event.step // event.steps_per_epoch)))
            self._note_once(event.forecast)
        elif isinstance(event, EpochDone):
            self.status.update(Text(self.title.format(event.record.epoch)))
        elif isinstance(event, Note):
            self._note_once(event.text)

    def _note_once(self, text: str) -> None:
        if text and text not in self.noted:
            self.noted.add(text)
            self._between(lambda: note(text))

    def ended(self, trial: TrialRecord) -> None:
        """Show a trial that has ended."""
        self.status.update("")
        if not self.quiet:
            self._between(lambda: show_trial(trial))

    def _between(self, show: Callable[[], None]) -> None:
        """Show a line while the line of the progress is taken away: it is on the other stream."""
        self.status.stop()
        show()
        self.status.start()


def _settings(trial: TrialRecord) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in trial.settings.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
