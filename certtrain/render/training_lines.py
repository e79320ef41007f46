"""A training as lines of text, for logs and pipes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from rich.text import Text

from certtrain.diagnostics.epochs import epoch_findings
from certtrain.diagnostics.findings import Finding, first_sentence, layer_means
from certtrain.formats import clock, percent, times
from certtrain.render import training_sentences as sentences
from certtrain.render.console import out, say_stopping, show_sentence
from certtrain.render.results import show_report
from certtrain.runs.epoch import Epoch, LayerState, own_measures
from certtrain.spec.preset import Preset
from certtrain.training import events

SILENCE = 60.0  # seconds: the longest time without a line

LINE_WORDS = (
    "accuracies: on training images, in the steps of the epoch, each at its ε; unstable, dead: shares of the ReLUs, "
    "means of the layers; growth: how many times as wide as the input the bounds are, in the worst layer"
)


class Reminder:
    """Calls `remind` in a thread of its own whenever no line was written for `seconds` seconds, until it is closed."""

    def __init__(self, remind: Callable[[], None], seconds: float) -> None:
        self.remind, self.seconds = remind, seconds
        self.last, self.closed = time.monotonic(), threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closed.set()
        self.thread.join()

    def restart(self) -> None:
        """Count the seconds from now on, since a line is being written."""
        self.last = time.monotonic()

    def _run(self) -> None:
        while not self.closed.wait(max(self.last + self.seconds - time.monotonic(), self.seconds / 100)):
            if time.monotonic() - self.last >= self.seconds:
                self.remind()


class PlainView:
    """Writes a line for each epoch, and a sentence for each new finding about a layer.

    It is a context: after every minute in it without a line, it writes one that says what is being done.
    """

    def __init__(self, silence: float = SILENCE) -> None:
        self.start, self.first, self.steps, self.epochs = time.monotonic(), 0, 0, 0
        self.preset: Preset | None = None
        self.explained = set[tuple[str, str]]()
        self.now: events.Event | None = None
        self.since = time.monotonic()
        self.reminder = Reminder(self._remind, silence)

    def __enter__(self) -> Self:
        self.reminder.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.reminder.__exit__(*exception)

    def __call__(self, event: events.Event) -> None:
        self._note_activity(event)
        match event:
            case events.Compiling():
                self._say(sentences.COMPILING)
            case events.Started():
                self.start, self.first, self.steps = time.monotonic(), event.step, event.steps
                self.preset, self.epochs = event.preset, event.preset.train.epochs
                if event.forecast:
                    self._say(event.forecast)
                self._say(sentences.started_sentence(event))
                self._say(LINE_WORDS)
            case events.EpochDone():
                self._say(self._epoch(event.record), whole=True)
                self._explain(epoch_findings(event.record, self.preset))
            case events.Note():
                self._say(f"note: {event.text}")
            case events.Stopping():
                say_stopping()
            case events.Stopped():
                self._say(sentences.stopped_sentence(event))
            case events.Loading(done=done, total=total) if done == total:
                self._say(event.what)
            case events.Finished():
                self._say(sentences.finished_sentence(event))
                show_report(event.report, event.model.parent)

    def _say(self, text: str, *, whole: bool = False) -> None:
        """Write a line; where it is as long as a notebook is wide or longer, `whole` keeps its numbers side by side."""
        self.reminder.restart()
        if whole:
            out.print(Text(text), soft_wrap=True)
        else:
            show_sentence(out, Text(text))

    def _note_activity(self, event: events.Event) -> None:
        """Remember what is being done, and since when."""
        if isinstance(self.now, events.Compiling) and isinstance(event, events.StepDone):
            self._say(f"compiled in {clock(time.monotonic() - self.since)}")
        # A note while the step is compiled says that this failed.
        if isinstance(self.now, events.Compiling) and isinstance(event, events.Note):
            self.now = None
        if isinstance(event, (events.Loading, events.Compiling, events.StepDone, events.Verifying)):
            self.since = self.since if type(event) is type(self.now) else time.monotonic()
            self.now = event

    def _remind(self) -> None:
        """Write a line that says what is being done."""
        match self.now:
            case events.Loading(what=what, done=done, total=total):
                self._say(f"{what}: {done:,} of {total:,}")
            case events.Compiling():
                self._say(f"{sentences.COMPILING}, for {clock(time.monotonic() - self.since)} so far")
            case events.StepDone() as step:
                self._say(self._step(step), whole=True)
            case events.Verifying(done=done, total=total) as event:
                self._say(f"{sentences.verifying_sentence(event)}: {done:,} of {total:,}")
            case _:
                self._say("starting")

    def _step(self, event: events.StepDone) -> str:
        mean = event.averages
        certified = mean.get("certified_accuracy")
        bounded = "" if certified is None else f"  certified {_certified(certified, event.eps)}"
        return (
            f"{self._number(event.epoch)}  step {event.step:,} of {self.steps:,}  "
            f"ε {event.eps:.4f}  loss {mean['loss']:.3f}{bounded}{_own(mean)}  "
            f"{clock(self._left(event.step))} left"
        )

    def _number(self, epoch: int) -> str:
        return f"epoch {epoch:>{len(str(self.epochs))}}/{self.epochs}"

    def _left(self, step: int) -> float:
        """The seconds left, estimated from the steps so far."""
        return (time.monotonic() - self.start) / max(step - self.first, 1) * (self.steps - step)

    def _epoch(self, record: Epoch) -> str:
        held_out = record.measured.get("validation_certified_accuracy")
        validation = "" if held_out is None else f"  held out: certified {percent(held_out)}"
        return (
            f"{self._number(record.epoch)}  ε {record.eps:.4f}  "
            f"loss {record.measured['loss']:.3f}  natural {percent(record.measured['natural_accuracy'])}  "
            f"certified {_certified(record.certified_accuracy, record.eps)}{validation}{_own(record.measured)}  "
            f"{_layers(record.layers)}{clock(self._left(record.step))} left"
        )

    def _explain(self, findings: Sequence[Finding]) -> None:
        """Write the worst finding, if it is new; exploding bounds have a note from the training itself."""
        new = [f for f in findings[:1] if f.kind != "exploding" and (f.layer, f.kind) not in self.explained]
        for finding in new:
            self._say(f"! {first_sentence(findings)}")
            self.explained.add((finding.layer, finding.kind))


def _certified(share: float, eps: float) -> str:
    """The certified accuracy; before the ramp, a dash, since a box without width says nothing about robustness."""
    return percent(share if eps > 0 else None)


def _own(measured: Mapping[str, float | None]) -> str:
    """The accuracies that the objective adds."""
    own = own_measures(measured).items()
    return "".join(f"  {sentences.measure_text(name, value)}" for name, value in own if name.endswith("_accuracy"))


def _layers(layers: Sequence[LayerState]) -> str:
    means = layer_means(layers)
    shares = f"unstable {percent(means.unstable)}  dead {percent(means.dead)}  growth {times(means.largest_growth)}"
    return f"{shares}  " if layers else ""
