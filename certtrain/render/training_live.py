"""A training as a live view on a terminal: numbers, layers and progress bars, redrawn in place."""

from __future__ import annotations

from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from certtrain.diagnostics.findings import findings_at
from certtrain.palette import PALETTE
from certtrain.render import training_sentences as sentences
from certtrain.render.console import NOTE_HEAD, out
from certtrain.render.layers import live_layers
from certtrain.render.results import show_report
from certtrain.render.training_sentences import measure_text
from certtrain.runs.epoch import own_measures
from certtrain.training import events


class LiveView:
    """Shows the state of a training after its last event."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
        self.bars = Bars(*columns, *times, console=out)
        self.tasks: dict[str, TaskID] = {}
        self.started: events.Started | None = None
        self.step: events.StepDone | None = None
        self.held_out: float | None = None
        # Of the last epoch; used where the steps do not measure them.
        self.natural: float | None = None
        self.certified: float | None = None
        self.live = Live(get_renderable=self._draw, console=out, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
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
                out.print(Text.assemble(NOTE_HEAD, event.text))
            case events.Verifying():
                self._advance(sentences.verifying_sentence(event), event.done, event.total)
            case events.Stopped():
                self._close(Text(sentences.stopped_sentence(event)))
            case events.Finished():
                self._close(Text(sentences.finished_sentence(event)))
                show_report(event.report)

    def _begin(self, event: events.Started) -> None:
        self.started = event
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks = {"steps": self.bars.add_task("steps", total=event.steps, completed=event.step)}
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
        out.print(line, soft_wrap=True)

    def _draw(self) -> RenderableType:
        return Group(self._panel(self.step), self.bars) if self.step is not None else self.bars

    def _panel(self, step: events.StepDone) -> Panel:
        assert self.started is not None  # a run starts before its first step
        title = f"epoch {step.epoch}/{self.started.preset.train.epochs}"
        layers = live_layers(step.layers, findings_at(step.eps, step.layers))
        return Panel(Group(self._numbers(step), Text(), layers), title=title, title_align="left")

    def _numbers(self, step: events.StepDone) -> Table:
        grid = Table.grid(padding=(0, 2))
        mean = step.averages
        grid.add_row(
            f"ε [bold]{step.eps:.5f}[/]",
            f"rate [bold]{step.learning_rate:.1e}[/]",
            f"loss [bold]{mean['loss']:.4f}[/]",
            f"clean [bold]{mean['natural_loss']:.4f}[/]" if "natural_loss" in mean else "",
            f"robust [bold]{mean['robust_loss']:.4f}[/]",
        )
        grid.add_row(
            _accuracy("natural", mean.get("natural_accuracy", self.natural)),
            _accuracy("certified", mean.get("certified_accuracy", self.certified)),
            f"tightness [bold]{mean['tightness_loss']:.3f}[/]",
            f"balance [bold]{mean['relu_balance_loss']:.3f}[/]",
            "" if self.held_out is None else f"held out [bold]{100 * self.held_out:.1f}%[/]",
        )
        own = [measure_text(name, value) for name, value in own_measures(mean).items()]
        for first in range(0, len(own), len(grid.columns)):
            grid.add_row(*own[first : first + len(grid.columns)])
        return grid


def _accuracy(name: str, share: float | None) -> str:
    """The accuracy as a percentage, in the colour of that name."""
    return "" if share is None else f"{name} [bold {PALETTE[name].terminal}]{100 * share:.1f}%[/]"
