"""What a person sees. Rich lives only here; the numbers come from the engine as plain values."""

from __future__ import annotations

import json
import sys
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

from certtrain.epsilon import format_eps
from certtrain.formats import clock, percent, times
from certtrain.layers import Graph
from certtrain.render.decision import show_decision as show_decision
from certtrain.render.layers import live_layers
from certtrain.render.layers import show_compared as show_compared
from certtrain.render.layers import show_history as show_history
from certtrain.render.layers import show_initial as show_initial
from certtrain.render.layers import show_models as show_models
from certtrain.render.layers import show_states as show_states
from certtrain.render.layers import show_sweep as show_sweep
from certtrain.render.pieces import err, new_table, out
from certtrain.render.pieces import error as error
from certtrain.render.pieces import note as note
from certtrain.render.pieces import say as say
from certtrain.render.verification import show_checked as show_checked
from certtrain.render.verification import stage_table, unfinished
from certtrain.render.verification import verifying as verifying
from certtrain.training.events import (
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
    from certtrain.inspection.findings import Finding, LayerState
    from certtrain.interchange.export import Comparison
    from certtrain.verification.verify import Report


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the error stream; gives a function of (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def loading() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for reading data; gives a function of (what, done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        tasks = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield update


# --- training --------------------------------------------------------------------------------------------


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
    from certtrain.inspection.findings import worst

    return worst(layers) if eps else []


def _finished(event: Finished) -> str:
    page = "" if event.page is None else f"; report: {event.page}"
    return f"trained in {clock(event.seconds)}; model: {event.model}{page}"


class PlainView:
    """A line for each epoch, for logs and pipes; a sentence where a layer goes wrong in a new way."""

    def __init__(self) -> None:
        self.start, self.first, self.steps, self.epochs = time.monotonic(), 0, 0, 0
        self.said = set[tuple[str, str]]()

    def __call__(self, event: Event) -> None:
        match event:
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
        out.print(Text(text), soft_wrap=True)

    def _epoch(self, event: EpochDone) -> str:
        record = event.record
        step = int(record["step"] or 0)
        left = (time.monotonic() - self.start) / max(step - self.first, 1) * (self.steps - step)
        held_out = record.get("validation_certified_accuracy")
        validation = "" if held_out is None else f"  held out: certified {percent(held_out)}"
        return (
            f"epoch {event.epoch:>{len(str(self.epochs))}}/{self.epochs}  ε {record['eps']:.4f}  "
            f"loss {record['loss']:.3f}  natural {percent(record['natural_accuracy'])}  "
            f"certified {percent(record['certified_accuracy'])}{validation}  {self._layers(event)}{clock(left)} left"
        )

    def _layers(self, event: EpochDone) -> str:
        from certtrain.inspection.findings import layer_means

        means = layer_means(event.layers)
        shares = f"unstable {percent(means.unstable)}  dead {percent(means.dead)}  growth {times(means.largest_growth)}"
        return f"{shares}  " if event.layers else ""

    def _explain(self, findings: Sequence[Finding]) -> None:
        """The worst one, if it has not been said before; the training itself notes an explosion."""
        from certtrain.inspection.findings import first_in_words

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
            case StepDone():
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

    def _advance(self, name: str, done: int, total: int) -> None:
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
    if as_json or not out.is_terminal:
        yield JsonView() if as_json else PlainView()
        return
    with LiveView() as view:
        yield view


# --- results ---------------------------------------------------------------------------------------------


def show_json(value: Any, indent: int | None = 2) -> None:
    """A value as JSON on the output stream; NaN and infinity are programming errors."""
    sys.stdout.write(json.dumps(value, indent=indent, allow_nan=False) + "\n")
    sys.stdout.flush()


def _attacked(report: Report) -> tuple[str, float, str]:
    """The row of the upper limit."""
    if report.attack["name"] == "none":
        return "no attack", report.pgd_accuracy, "upper limit, as natural"
    words = f"{report.attack['name']}, {report.attack['steps']} steps × {report.attack['restarts']}"
    return "under attack", report.pgd_accuracy, f"upper limit; {words}"


def _bracket(report: Report) -> str:
    """Between what the robust accuracy lies."""
    low, high = percent(report.certified_accuracy), percent(report.pgd_accuracy)
    if not report.open:
        return f"robust accuracy is {low}; no example is open"
    gap = percent(report.pgd_accuracy - report.certified_accuracy)
    examples = "1 example is" if report.open == 1 else f"{report.open:,} examples ({gap}) are"
    return f"robust accuracy lies between {low} and {high}; {examples} open"


def show_report(report: Report) -> None:
    """Accuracies and errors of a verification, and the bracket that they leave."""
    title = f"{report.dataset}, {report.split} set, {report.examples:,} examples, ε = {format_eps(report.eps)}"
    out.print(Text(title, style="italic"))
    table = new_table("", "accuracy", "error", "examples")
    bounds = "the methods below" if report.method == "auto" else f"{report.method} bounds"
    rows = (
        ("natural", report.natural_accuracy, "no perturbation"),
        _attacked(report),
        ("certified", report.certified_accuracy, f"lower limit; {bounds}"),
    )
    table.add_column("", justify="left", style="bright_black")
    for name, share, remark in rows:
        count = round(share * report.examples)
        table.add_row(name, percent(share), percent(1 - share), f"{count:,}", remark)
    out.print(table)
    out.print(stage_table(report))
    say(_bracket(report))
    if words := unfinished(report):
        out.print(Text(words))
    out.print(Text(f"verified error {percent(1 - report.certified_accuracy)}; {report.seconds:.1f} s", style="bold"))
    for assumption in report.assumptions:
        say(f"assumes {assumption}", "bright_black")


def show_comparisons(comparisons: Sequence[Comparison]) -> None:
    """How far each export lies from the original."""
    table = new_table("export", "examples", "difference", "allowed", "largest logit", "same class")
    for c in comparisons:
        numbers = (f"{c.largest_difference:.2e}", f"{c.tolerance:.2e}", f"{c.largest_logit:.3g}")
        table.add_row(c.what, f"{c.examples:,}", *numbers, f"{c.same_classes:,}")
    out.print(table)
