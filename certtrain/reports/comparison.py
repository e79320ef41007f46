"""Several runs as one HTML page: results, settings that differ, and the curves of all runs in the same pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certtrain.formats import duration
from certtrain.formats import percent as as_percent
from certtrain.palette import SERIES
from certtrain.reports.pages import Picture, Table, render_page
from certtrain.reports.run_pictures import hues
from certtrain.reports.svg import Curve, EpochAxis, draw_curves
from certtrain.runs.comparing import RunComparison, progress_of
from certtrain.runs.history import Run
from certtrain.spec.epsilon import format_eps
from certtrain.storage import write_atomic

CURVES = {  # by their names in the metrics: title, whether it is a share, whether the axis is logarithmic
    "natural_accuracy": ("Natural accuracy", True, False),
    "certified_accuracy": ("Certified accuracy", True, False),
    "validation_natural_accuracy": ("Natural accuracy on held-out examples", True, False),
    "validation_certified_accuracy": ("Certified accuracy on held-out examples", True, False),
    "loss": ("Loss", False, False),
    "robust_loss": ("Robust loss", False, False),
    "eps": ("ε at the end of the epoch", False, False),
    "learning_rate": ("Learning rate at the end of the epoch", False, False),
    "gradient_norm": ("Gradient norm", False, True),
}
COLOURS = SERIES[:6]  # those that are readable on dark pages too


@dataclass(frozen=True)
class LineStyle:
    """How the curves of a run are drawn."""

    colour: str
    dashed: bool = False


def write_comparison(compared: RunComparison, path: Path, title: str = "") -> None:
    """Write the page of these runs to `path`, completely or not at all. Raises StorageError."""
    write_atomic(path, comparison_page(compared, title).encode())


def comparison_page(compared: RunComparison, title: str = "") -> str:
    """The page of these runs as HTML; its title is their number if none is given."""
    count = len(compared.runs)
    return render_page(
        "comparison.html",
        title=title or (f"{count} runs" if count > 1 else compared.names[0]),
        results=_results(compared),
        notes=[*compared.notes()],
        spread=_spread(compared),
        settings=_settings(compared),
        several=count > 1,
        legend=[*zip(compared.names, line_styles(count), strict=True)],
        pictures=[*_curves(compared.runs)] if any(run.epochs for run in compared.runs) else [],
    )


def line_styles(count: int) -> list[LineStyle]:
    """A style for each of `count` runs, all different."""
    if count > 2 * len(COLOURS):
        return [LineStyle(colour, bool(index % 2)) for index, colour in enumerate(hues(count))]
    return [LineStyle(COLOURS[index % len(COLOURS)], index >= len(COLOURS)) for index in range(count)]


def _results(compared: RunComparison) -> Table:
    header = ("run", "epochs", "ε", "data", "split", "examples", "natural", "under attack", "certified", "trained in")
    rows = [
        (name, progress_of(run), format_eps(run.preset.eps.max), run.preset.data.name, *_cells(run))
        for name, run in zip(compared.names, compared.runs, strict=True)
    ]
    return Table(header, rows)


def _spread(compared: RunComparison) -> Table:
    header = ("accuracy", "mean", "standard deviation", "lowest", "highest")
    rows = [
        (each.figure, *map(as_percent, (each.mean, each.deviation, each.lowest, each.highest)))
        for each in compared.spread()
    ]
    return Table(header, rows)


def _cells(run: Run) -> tuple[str | int | None, ...]:
    if run.report is None:
        return (None,) * 6
    found = run.report.results
    shares = map(as_percent, (found.natural_accuracy, found.attacked_accuracy, found.certified_accuracy))
    return (found.split, found.examples, *shares, duration(run.report.training.seconds))


def _settings(compared: RunComparison) -> Table:
    rows = [[setting.field, *map(_text, setting.values)] for setting in compared.settings()]
    return Table(["field", *compared.names], rows, "l" * (1 + len(compared.names)))


def _text(value: Any) -> str | None:
    return value if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _curves(runs: Sequence[Run]) -> Iterator[Picture]:
    numbers = range(1, max(epoch.epoch for run in runs for epoch in run.epochs) + 1)
    measured = {name for run in runs for name in run.measured}
    for name, (title, share, log) in CURVES.items():
        if name in measured:
            curves = [
                Curve(f"run {index}", _values(run, name, numbers), style.colour, style.dashed)
                for index, (run, style) in enumerate(zip(runs, line_styles(len(runs)), strict=True), start=1)
            ]
            axis = EpochAxis([*numbers])
            yield Picture(draw_curves(name, axis, curves, label=title, percent=share, log=log, legend=False), title)


def _values(run: Run, name: str, numbers: Sequence[int]) -> list[float | None]:
    """The run's number of that name in each of these epochs; None in one that it does not have."""
    known = {epoch.epoch: epoch.numbers.get(name) for epoch in run.epochs}
    return [known.get(number) for number in numbers]
