"""A running training as a person sees it: a live picture on a terminal, lines in a log, or JSON."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from certtrain.formats import clock, percent, times
from certtrain.render.layers import live_layers
from certtrain.render.pieces import out
from certtrain.render.results import show_json, show_report
from certtrain.spec.epsilon import format_eps
from certtrain.spec.layers import Graph
from certtrain.training.events import (
    Compiling,
    EpochDone,
    Event,
    Finished,
    Listener,
    Loading,
    Note,
    Started,
    StepDone,
    Stopped,
    Verifying,
)

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.diagnostics.findings import Finding, LayerState

COMPILING = "compiling the step"
SILENCE = 60.0  # seconds: in a log a line comes at least as often


def _started(event: Started) -> str:
    preset = event.preset
    network = preset.model.title if isinstance(preset.model, Graph) else preset.model.name
    begin = f"resumed at step {event.step}" if event.step else "new run"
    return (
        f"{preset.name}: {preset.data.name} ({event.examples:,} examples), {network} with "
        f"{event.parameters:,} parameters, ε = {format_eps(preset.eps.max)}, seed {preset.seed}, "
        f"{event.device}; {begin} in {event.folder}"
    )


def _stopped(event: Stopped) -> str:
    options = "" if event.data_dir is None else f" --data-dir {event.data_dir}"
    options += " --tensorboard" if (event.folder / "tensorboard").is_dir() else ""
    return (
        f"stopped ({event.reason}) at step {event.step} of {event.steps}; "
        f"go on with: certtrain train --resume {event.folder}{options}"
    )


def _findings(eps: float | None, layers: Sequence[LayerState]) -> list[Finding]:
    """What is wrong with each bad layer, the worst first; before the ramp there is no box that could be too wide."""
    from certtrain.diagnostics.findings import worst

    return worst(layers) if eps else []


def _finished(event: Finished) -> str:
    page = "" if event.page is None else f"; report: {event.page}"
    return f"trained in {clock(event.seconds)}; model: {event.model}{page}"


class Reminder:
    """Calls `remind` whenever nothing has been said for so many seconds, in a thread of its own, until it is closed."""

    def __init__(self, remind: Callable[[], None], seconds: float) -> None:
        self.remind, self.seconds = remind, seconds
        self.said, self.closed = time.monotonic(), threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closed.set()
        self.thread.join()

    def heard(self) -> None:
        """Something has just been said."""
        self.said = time.monotonic()

    def _run(self) -> None:
        while not self.closed.wait(max(self.said + self.seconds - time.monotonic(), self.seconds / 100)):
            if time.monotonic() - self.said >= self.seconds:
                self.remind()


class PlainView:
    """A line for each epoch, for logs and pipes; a sentence where a layer goes wrong in a new way.

    Within it as a context, what goes on is said after every minute of silence.
    """

    def __init__(self, silence: float = SILENCE) -> None:
        self.start, self.first, self.steps, self.epochs = time.monotonic(), 0, 0, 0
        self.said = set[tuple[str, str]]()
        self.now: Event | None = None
        self.since = time.monotonic()
        self.reminder = Reminder(self._remind, silence)

    def __enter__(self) -> Self:
        self.reminder.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.reminder.__exit__(*exception)

    def __call__(self, event: Event) -> None:
        self._follow(event)
        match event:
            case Compiling():
                self._say(COMPILING)
            case Started():
                self.start, self.first, self.steps = time.monotonic(), event.step, event.steps
                self.epochs = event.preset.train.epochs
                self._say(_started(event))
            case EpochDone():
                self._say(self._epoch(event))
                self._explain(_findings(event.record["eps"], event.layers))
            case Note():
                self._say(f"note: {event.text}")
            case Stopped():
                self._say(_stopped(event))
            case Loading(done=done, total=total) if done == total:
                self._say(event.what)
            case Finished():
                self._say(_finished(event))
                show_report(event.report)

    def _say(self, text: str) -> None:
        self.reminder.heard()
        out.print(Text(text), soft_wrap=True)

    def _follow(self, event: Event) -> None:
        """Remember what goes on, and since when."""
        if isinstance(self.now, Compiling) and isinstance(event, StepDone):
            self._say(f"compiled in {clock(time.monotonic() - self.since)}")
        if isinstance(self.now, Compiling) and isinstance(event, Note):  # that it cannot be compiled
            self.now = None
        if isinstance(event, (Loading, Compiling, StepDone, Verifying)):
            self.since = self.since if type(event) is type(self.now) else time.monotonic()
            self.now = event

    def _remind(self) -> None:
        """Say what goes on."""
        match self.now:
            case Loading(what=what, done=done, total=total):
                self._say(f"{what}: {done:,} of {total:,}")
            case Compiling():
                self._say(f"{COMPILING}, for {clock(time.monotonic() - self.since)} so far")
            case StepDone() as step:
                self._say(self._step(step))
            case Verifying(split=split, done=done, total=total):
                self._say(f"verifying on the {split} set: {done:,} of {total:,}")
            case _:
                self._say("starting")

    def _step(self, event: StepDone) -> str:
        mean = event.averages
        return (
            f"epoch {event.epoch:>{len(str(self.epochs))}}/{self.epochs}  step {event.step:,} of {self.steps:,}  "
            f"ε {event.eps:.4f}  loss {mean['loss']:.3f}  certified {percent(mean['certified_accuracy'])}  "
            f"{clock(self._left(event.step))} left"
        )

    def _left(self, step: int) -> float:
        """Seconds, by what the steps took so far."""
        return (time.monotonic() - self.start) / max(step - self.first, 1) * (self.steps - step)

    def _epoch(self, event: EpochDone) -> str:
        record = event.record
        step = int(record["step"] or 0)
        held_out = record.get("validation_certified_accuracy")
        validation = "" if held_out is None else f"  held out: certified {percent(held_out)}"
        return (
            f"epoch {event.epoch:>{len(str(self.epochs))}}/{self.epochs}  ε {record['eps']:.4f}  "
            f"loss {record['loss']:.3f}  natural {percent(record['natural_accuracy'])}  "
            f"certified {percent(record['certified_accuracy'])}{validation}  "
            f"{self._layers(event)}{clock(self._left(step))} left"
        )

    def _layers(self, event: EpochDone) -> str:
        from certtrain.diagnostics.findings import layer_means

        means = layer_means(event.layers)
        shares = f"unstable {percent(means.unstable)}  dead {percent(means.dead)}  growth {times(means.largest_growth)}"
        return f"{shares}  " if event.layers else ""

    def _explain(self, findings: Sequence[Finding]) -> None:
        """The worst one, if it has not been said before; the training itself notes an explosion."""
        from certtrain.diagnostics.findings import first_in_words

        news = [f for f in findings[:1] if f.kind != "exploding" and (f.layer, f.kind) not in self.said]
        for finding in news:
            self._say(f"! {first_in_words(findings)}")
            self.said.add((finding.layer, finding.kind))


class LiveView:
    """A picture of the running training, drawn over itself on a terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
        self.bars = Progress(*columns, *times, console=out)
        self.tasks: dict[str, TaskID] = {}
        self.started: Started | None = None
        self.step: StepDone | None = None
        self.held_out: float | None = None
        self.natural: float | None = None  # of the last epoch, where steps do not measure it
        self.live = Live(get_renderable=self._draw, console=out, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Loading():
                self._advance(event.what, event.done, event.total)
            case Started():
                self._begin(event)
            case Compiling():
                self._advance(COMPILING, 0, None)
            case StepDone():
                self._end(COMPILING)
                self.step = event
                self._advance("steps", event.step, event.step)
            case EpochDone():
                self.held_out = event.record.get("validation_certified_accuracy")
                self.natural = event.record["natural_accuracy"]
            case Note():
                out.print(Text.assemble(("note: ", "bold yellow"), event.text))
            case Verifying():
                self._advance(f"verifying on the {event.split} set", event.done, event.total)
            case Stopped():
                self._close(Text(_stopped(event)))
            case Finished():
                self._close(Text(_finished(event)))
                show_report(event.report)

    def _begin(self, event: Started) -> None:
        self.started = event
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks = {"steps": self.bars.add_task("steps", total=event.steps, completed=event.step)}
        out.print(Text(_started(event)))

    def _end(self, name: str) -> None:
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))

    def _advance(self, name: str, done: int, total: int | None) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=total)
        self.bars.update(self.tasks[name], completed=done)

    def _close(self, line: Text) -> None:
        self.live.stop()
        if self.step is not None:
            out.print(self._panel(self.step))
        out.print(line, soft_wrap=True)

    def _draw(self) -> RenderableType:
        return Group(self._panel(self.step), self.bars) if self.step is not None else self.bars

    def _panel(self, step: StepDone) -> Panel:
        assert self.started is not None  # steps come after the start
        title = f"epoch {step.epoch}/{self.started.preset.train.epochs}"
        layers = live_layers(step.layers, _findings(step.eps, step.layers))
        return Panel(Group(self._numbers(step), Text(), layers), title=title, title_align="left")

    def _numbers(self, step: StepDone) -> Table:
        grid = Table.grid(padding=(0, 2))
        mean = step.averages
        grid.add_row(
            f"ε [bold]{step.eps:.5f}[/]",
            f"rate [bold]{step.learning_rate:.1e}[/]",
            f"loss [bold]{mean['loss']:.4f}[/]",
            f"clean [bold]{mean['natural_loss']:.4f}[/]" if "natural_loss" in mean else "",
            f"robust [bold]{mean['robust_loss']:.4f}[/]",
        )
        natural = mean.get("natural_accuracy", self.natural)
        held_out = "" if self.held_out is None else f"held out [bold]{100 * self.held_out:.1f}%[/]"
        grid.add_row(
            "" if natural is None else f"natural [bold green]{100 * natural:.1f}%[/]",
            f"certified [bold cyan]{100 * mean['certified_accuracy']:.1f}%[/]",
            f"tightness [bold]{mean['tightness_loss']:.3f}[/]",
            f"balance [bold]{mean['relu_balance_loss']:.3f}[/]",
            held_out,
        )
        return grid


class JsonView:
    """One JSON object a line for each event worth keeping."""

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                facts = {"folder": str(event.folder), "device": event.device, "step": event.step, "steps": event.steps}
                self._say("started", facts | {"preset": event.preset.model_dump(mode="json")})
            case EpochDone():
                self._say("epoch", dict(event.record) | self._layers(event))
            case Note():
                self._say("note", {"text": event.text})
            case Stopped():
                facts = {"reason": event.reason, "step": event.step, "steps": event.steps}
                self._say("stopped", facts | {"folder": str(event.folder)})
            case Finished():
                files = {"model": str(event.model), "page": event.page and str(event.page)}
                self._say("finished", files | {"seconds": event.seconds, "results": event.report.to_dict()})

    def _layers(self, event: EpochDone) -> dict[str, Any]:
        findings = [finding.to_dict() for finding in _findings(event.record["eps"], event.layers)]
        return {"findings": findings, "layers": [layer.to_dict() for layer in event.layers]}

    def _say(self, name: str, values: dict[str, Any]) -> None:
        show_json({"event": name, **values}, indent=None)


@contextmanager
def training_view(as_json: bool, *, silent: bool = False) -> Iterator[Listener]:
    """What suits: JSON if asked for, a live picture on a terminal, else plain lines; nothing if it is to be silent."""
    if silent:
        yield lambda event: None
        return
    if as_json:
        yield JsonView()
        return
    with LiveView() if out.is_terminal else PlainView() as view:
        yield view
