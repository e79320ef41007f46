"""The trials of a search of settings as one HTML page, with a picture of the Pareto front."""

from pathlib import Path
from typing import Any

from certtrain.formats import count_of, duration, percent
from certtrain.palette import PALETTE
from certtrain.reports.pages import Picture, Table, render_page
from certtrain.reports.svg import HIGH, WIDE, Svg, drawing, in_own_style
from certtrain.runs.trials import TrialRecord, TrialRecords
from certtrain.storage import write_atomic

TITLE = "Natural and certified accuracy on held-out examples"


def write_tuning_page(records: TrialRecords, path: Path) -> None:
    """Write the page of these trials to `path`, completely or not at all. Raises StorageError."""
    write_atomic(path, tuning_page(records).encode())


def tuning_page(records: TrialRecords) -> str:
    """The page of these trials as HTML."""
    best = records.front
    others = [trial for trial in records.trials if trial not in best]
    return render_page(
        "tuning.html",
        title=f"{records.preset}: {count_of(len(records.trials), 'trial')}",
        records=records,
        best=_table(records, best),
        others=_table(records, others),
        picture=Picture(draw_trials("trials", records), TITLE) if records.finished else None,
    )


@in_own_style
def draw_trials(name: str, records: TrialRecords) -> Svg:
    """A point for each finished trial, natural accuracy to the right and certified upwards; the front as a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(WIDE / 72, HIGH / 72), layout="constrained")
    axes = figure.subplots()
    axes.grid(True)
    muted, certified, ink = (PALETTE[colour].light for colour in ("muted", "certified", "ink"))
    _draw(axes, records.finished, "o", color=muted, label="trials", alpha=0.7)
    _draw(axes, records.front, "o-" if len(records.front) > 1 else "o", color=certified, label="no trial is better")
    if records.reference is not None:
        _draw(axes, [records.reference], "D", color=ink, label="the preset's own settings", markersize=6)
    axes.set(xlabel="natural accuracy", ylabel="certified accuracy")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6))
        axis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside upper left", ncols=3)
    return drawing(figure, name, "natural and certified accuracy of the trials")


def _draw(axes: Any, trials: list[TrialRecord], kind: str, **style: Any) -> None:
    points = [(trial.value("natural"), trial.value("certified")) for trial in trials]
    axes.plot([x for x, _ in points], [y for _, y in points], kind, **style)


def _table(records: TrialRecords, trials: list[TrialRecord]) -> Table:
    fields = list(dict.fromkeys(name for trial in records.trials for name in trial.settings))
    header = ["trial", "state", "natural", "certified", "trained in", "run", *fields]
    return Table(header, [[*_cells(trial), *(_text(trial.settings.get(name)) for name in fields)] for trial in trials])


def _cells(trial: TrialRecord) -> list[str]:
    state = f"{trial.state}, the preset's own" if trial.reference else trial.state
    seconds = "–" if trial.seconds is None else duration(trial.seconds)
    return [str(trial.number), state, percent(trial.natural), percent(trial.certified), seconds, trial.folder]


def _text(value: Any) -> str | None:
    return value if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
