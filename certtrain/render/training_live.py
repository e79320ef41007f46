"""A training as a live view on a terminal: numbers, layers and progress bars, redrawn in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from certtrain.diagnostics.findings import findings_at
from certtrain.formats import NO_NUMBER, clock, percent
from certtrain.palette import PALETTE
from certtrain.render import training_sentences as sentences
from certtrain.render.console import GREY, NOTE_HEAD, STOPPING, WARNING, out, show_sentence
from certtrain.render.layers import live_layers, shows_ratios
from certtrain.render.results import show_report
from certtrain.render.training_sentences import measure_text
from certtrain.runs.epoch import own_measures
from certtrain.training import events

CELL, PADDING = 17, 2  # columns of a number with its name, and between two of them
FRAME = 4  # columns of the panel's border and padding
ROWS_BESIDE_LAYERS = 16  # of a view with its explanations, the shell's own lines included
STOPS = f"{STOPPING} (Ctrl-C again ends it at once, and loses what came after the last checkpoint)"
CLEAN_WORDS = "clean: the loss without perturbation; "
LIVE_WORDS = (
    "rate: the learning rate; robust: the loss of the worst logits in each box; "
    "tightness, balance: the regularisers of wide bounds and of unbalanced ReLUs, without their weights; "
    "growth: how many times as wide as the input the bounds are"
)
RATIO_WORDS = "; r mean, r var: balance of active and inactive ReLUs, 1 is best"


class _Count(ProgressColumn):
    """What is done, and of how much, if that is known."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{int(task.completed)}/{int(task.total)}")


class _Left(ProgressColumn):
    """The time that is left, as soon as it is known."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        known = task.total is not None and task.time_remaining is not None and not task.finished
        return Text(f"{clock(task.time_remaining or 0.0)} left" if known else "")


class LiveView:
    """Shows the state of a training after its last event."""

    def __init__(self) -> None:
        name = TextColumn("{task.description}", table_column=Column())  # it wraps, so that numbers are never cut
        columns = (name, BarColumn(24 if out.width >= 100 else 10), _Count())
        self.bars = Bars(*columns, TimeElapsedColumn(), _Left(), console=out)
        self.tasks: dict[str, TaskID] = {}
        self.started: events.Started | None = None
        self.step: events.StepDone | None = None
        self.stopping = False
        self.held_out: float | None = None
        # Of the last epoch; used where the steps do not measure them.
        self.natural: float | None = None
        self.certified: float | None = None
        self.live = self._new_live()

    def _new_live(self) -> Live:
        return Live(get_renderable=self._draw, console=out, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self.tasks = {"starting": self.bars.add_task("starting", total=None)}  # until the images are read
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.Loading():
                self._advance(event.what, event.done, event.total)
            case events.Started():
                self._begin(event)
            case events.Compiling():
                self._advance(sentences.COMPILING, 0, None)
            case events.StepDone():
                self._end(sentences.COMPILING)
                self.step = event
                self._advance("steps", event.step, event.step)
            case events.EpochDone():
                self.held_out = event.record.measured.get("validation_certified_accuracy")
                self.natural = event.record.measured["natural_accuracy"]
                self.certified = event.record.measured["certified_accuracy"]
            case events.Note():
                show_sentence(out, Text.assemble(NOTE_HEAD, event.text))
            case events.Verifying():
                self._advance(sentences.verifying_sentence(event), event.done, event.total)
            case events.Stopping():
                self.stopping = True
            case events.Stopped():
                self._close(Text(sentences.stopped_sentence(event)))
            case events.Finished():
                self._close(Text(sentences.finished_sentence(event)))
                show_report(event.report, event.model.parent)

    def _begin(self, event: events.Started) -> None:
        self.started, self.step = event, None
        if not self.live.is_started:  # after another run; a live display that is started again erases what is above it
            self.live = self._new_live()
            self.live.start()
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks = {"steps": self.bars.add_task("steps", total=event.steps, completed=event.step)}
        if event.forecast:
            show_sentence(out, Text(event.forecast))
        out.print(Text(sentences.started_sentence(event)))

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
        show_sentence(out, line)

    def _draw(self) -> RenderableType:
        panel = [] if self.step is None else [self._panel(self.step)]
        return Group(*panel, self.bars, *([Text(STOPS, style=WARNING)] if self.stopping else []))

    def _panel(self, step: events.StepDone) -> Panel:
        assert self.started is not None  # a run starts before its first step
        title = f"epoch {step.epoch}/{self.started.preset.train.epochs}"
        layers = live_layers(step.layers, findings_at(step.eps, step.layers, self.started.preset))
        parts = [self._numbers(step), Text(), layers]
        if out.height >= len(step.layers) + ROWS_BESIDE_LAYERS:
            parts.append(Text(_words(step), style=GREY))
        return Panel(Group(*parts), title=title, title_align="left")

    def _numbers(self, step: events.StepDone) -> Table:
        """The numbers in as many columns as fit."""
        columns = max((out.width - FRAME + PADDING) // (CELL + PADDING), 1)
        grid = Table.grid(padding=(0, PADDING))
        for _ in range(columns):
            grid.add_column(min_width=CELL, no_wrap=True)
        cells = [*self._cells(step)]
        for first in range(0, len(cells), columns):
            grid.add_row(*cells[first : first + columns])
        return grid

    def _cells(self, step: events.StepDone) -> Iterator[str]:
        """The numbers that are known; at ε = 0, bounds say nothing about robustness."""
        mean, bounded = step.averages, step.eps > 0
        yield f"ε [bold]{step.eps:.5f}[/]"
        yield f"rate [bold]{step.learning_rate:.1e}[/]"
        yield f"loss [bold]{_loss(mean['loss'])}[/]"
        if "natural_loss" in mean:
            yield f"clean [bold]{_loss(mean['natural_loss'])}[/]"
        yield f"robust [bold]{_loss(mean['robust_loss']) if bounded else NO_NUMBER}[/]"
        natural = mean.get("natural_accuracy", self.natural)
        certified = mean.get("certified_accuracy", self.certified)
        if natural is not None:
            yield _accuracy("natural", natural)
        if certified is not None:
            yield _accuracy("certified", certified if bounded else None)
        yield f"tightness [bold]{mean['tightness_loss']:.3f}[/]"
        yield f"balance [bold]{mean['relu_balance_loss']:.3f}[/]"
        if self.held_out is not None:
            yield f"held out [bold]{percent(self.held_out, 1)}[/]"
        yield from (measure_text(name, value) for name, value in own_measures(mean).items())


def _words(step: events.StepDone) -> str:
    """The meaning of the words that the view shows."""
    clean, ratios = "natural_loss" in step.averages, shows_ratios(step.layers)
    return CLEAN_WORDS * clean + LIVE_WORDS + RATIO_WORDS * ratios


def _loss(value: float) -> str:
    return f"{value:.4f}" if value < 1000 else f"{value:,.0f}"


def _accuracy(name: str, share: float | None) -> str:
    """The accuracy as a percentage, in the colour of that name."""
    return f"{name} [bold {PALETTE[name].terminal}]{percent(share, 1)}[/]"
