"""A search of settings in the terminal: each trial when it ends, and all that no other one beats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.text import Text

from certtrain.formats import NO_NUMBER, duration, percent
from certtrain.render.cells import new_table
from certtrain.render.console import GREY, err, note, out, remark, say, show_title
from certtrain.runs.trials import TrialRecord, TrialRecords
from certtrain.spec.epsilon import format_eps
from certtrain.training.events import EpochDone, Finished, Note, Started

if TYPE_CHECKING:
    from certtrain.training.events import Event, Listener


def show_trial(trial: TrialRecord) -> None:
    """A line for a trial that has ended."""
    values = f"natural {percent(trial.natural)}, certified {percent(trial.certified)}"
    what = values if trial.state == "finished" else f"{trial.state}: {trial.reason}"
    own = " (the preset's own settings)" if trial.reference else ""
    out.print(Text.assemble((f"trial {trial.number}{own}: ", "bold"), what, (f"  {_settings(trial)}", GREY)))


def show_trials(records: TrialRecords) -> None:
    """The trials that no other one beats, and how they compare with the preset's own settings."""
    show_title(f"{records.preset}: {records.examples:,} held-out examples, ε = {format_eps(records.eps)}")
    table = new_table("trial", "natural", "certified", "trained in", "settings")
    table.columns[-1].justify = "left"
    for trial in records.front:
        seconds = NO_NUMBER if trial.seconds is None else duration(trial.seconds)
        table.add_row(str(trial.number), percent(trial.natural), percent(trial.certified), seconds, _settings(trial))
    out.print(table)
    for sentence in records.sentences():
        say(sentence)
    remark("the best of many trials looks better on these examples than it is: verify it once on the test set")


@contextmanager
def trial_progress() -> Iterator[Listener]:
    """A context with a listener that shows how far the trial is; it passes on notes."""
    noted = set[str]()  # each note once, since every trial has the same
    with err.status("") as status:

        def listen(event: Event) -> None:
            if isinstance(event, Started):
                status.update(Text(f"{event.folder.name}: step {event.step} of {event.steps}"))
            elif isinstance(event, EpochDone):
                status.update(Text(f"{event.record.epoch} epochs done"))
            elif isinstance(event, Finished):
                status.update("")
            elif isinstance(event, Note) and event.text not in noted:
                noted.add(event.text)
                note(event.text)

        yield listen


def _settings(trial: TrialRecord) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in trial.settings.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
