"""Runs side by side as tables: results, the last epoch, and the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from certtrain.formats import NO_NUMBER, duration, number, percent
from certtrain.render.cells import WIDEST, new_table, show_table
from certtrain.render.console import GREY, out, remark, say, show_title
from certtrain.runs.comparing import RunComparison, SeedSpread, Setting, progress_of
from certtrain.runs.history import Run
from certtrain.spec.epsilon import format_eps

LONGEST_VALUE = 40  # characters of a setting in a table
HELD_OUT = ("validation_natural_accuracy", "validation_certified_accuracy")
MEASURED = {
    "natural_accuracy": "natural",
    "certified_accuracy": "certified",
    "validation_natural_accuracy": "held-out\nnatural",
    "validation_certified_accuracy": "held-out\ncertified",
    "loss": "loss",
}
"""What a run's last epoch measured, and the head of its column; those of held-out examples stand only if there are."""


def show_comparison(compared: RunComparison) -> None:
    """The results of each run, what its last epoch measured, and the settings in which the runs differ."""
    show_title("results")
    show_table(_results(compared))
    for note in compared.notes():
        remark(note)
    if spread := compared.spread():
        out.print()
        show_title("over the seeds")
        show_table(_spread(spread))
    if any(run.epochs for run in compared.runs):
        out.print()
        show_title("the last epoch, in training")
        show_table(_last_epochs(compared))
    if len(compared.runs) > 1:
        out.print()
        _show_settings(compared.names, compared.settings())


def setting_text(value: object) -> str:
    """The value of a setting, shortened."""
    text = NO_NUMBER if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _results(compared: RunComparison) -> Table:
    table = new_table("run", "epochs", "ε", "split", "natural", "attacked", "certified", "trained in")
    for name, run in zip(compared.names, compared.runs, strict=True):
        table.add_row(name, progress_of(run), format_eps(run.preset.eps.max), *_result_cells(run))
    return table


def _spread(spread: Sequence[SeedSpread]) -> Table:
    table = new_table("accuracy", "mean", "standard deviation", "lowest", "highest")
    for each in spread:
        table.add_row(each.figure, *map(percent, (each.mean, each.deviation, each.lowest, each.highest)))
    return table


def _result_cells(run: Run) -> list[str]:
    if run.report is None:
        return [NO_NUMBER] * 5
    found = run.report.results
    shares = (found.natural_accuracy, found.attacked_accuracy, found.certified_accuracy)
    return [found.split, *map(percent, shares), duration(run.report.training.seconds)]


def _last_epochs(compared: RunComparison) -> Table:
    lasts = [run.epochs[-1] if run.epochs else None for run in compared.runs]
    measures = [
        name for name in MEASURED if name not in HELD_OUT or any(last and name in last.measured for last in lasts)
    ]
    table = new_table("run", "epoch", "ε", *(MEASURED[name] for name in measures))
    for name, last in zip(compared.names, lasts, strict=True):
        if last is None:
            table.add_row(name, "0", *[NO_NUMBER] * (1 + len(measures)))
            continue
        *accuracies, loss = (last.measured.get(measure) for measure in measures)
        table.add_row(name, str(last.epoch), number(last.eps), *map(percent, accuracies), number(loss, 4))
    return table


def _show_settings(names: Sequence[str], settings: Sequence[Setting]) -> None:
    """A table with a column for each run, or else for each field; if neither fits, the runs one below the other."""
    if not settings:
        say("the runs have the same settings", GREY)
        return
    show_title("settings that differ")
    by_field = [(setting.field, *map(setting_text, setting.values)) for setting in settings]
    by_run = [
        (name, *map(setting_text, values)) for name, *values in zip(names, *(s.values for s in settings), strict=True)
    ]
    for header, rows in ((("field", *names), by_field), (("run", *(s.field for s in settings)), by_run)):
        table = new_table(*header)
        for row in rows:
            table.add_row(*row)
        if out.measure(table, options=out.options.update(width=WIDEST)).maximum <= out.width:
            show_table(table)
            return
    _list_settings(names, settings)


def _list_settings(names: Sequence[str], settings: Sequence[Setting]) -> None:
    for index, name in enumerate(names):
        say(name, "bold")
        for setting in settings:
            out.print(Text(f"  {setting.field} = {setting_text(setting.values[index])}"), soft_wrap=True)
