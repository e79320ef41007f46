"""Accuracies against ε as one HTML page, with their curves."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from certtrain.formats import attack_words, duration, percent
from certtrain.palette import PALETTE
from certtrain.reports.pages import Picture, Table, render_page
from certtrain.reports.svg import HIGH, WIDE, Svg, drawing, in_own_style
from certtrain.spec.epsilon import format_eps
from certtrain.storage import write_atomic

if TYPE_CHECKING:  # so that pages can be made without torch
    from certtrain.verification.radii import RadiusSweep

LINES = {  # label, colour
    "natural_accuracy": ("natural", "natural"),
    "attacked_accuracy": ("under attack", "falsified"),
    "certified_accuracy": ("certified", "certified"),
}


def write_radii(sweep: "RadiusSweep", model: str, path: Path) -> None:
    """Write the page of these results of `model` to `path`, completely or not at all. Raises StorageError."""
    write_atomic(path, radii_page(sweep, model).encode())


def radii_page(sweep: "RadiusSweep", model: str) -> str:
    """The page as HTML."""
    first = sweep.reports[0]
    return render_page(
        "radii.html",
        title=f"{model}: accuracy against ε",
        sweep=sweep,
        first=first,
        attack=attack_words(first.attack),
        missing=[format_eps(eps) for eps in sweep.missing],
        table=_table(sweep),
        picture=Picture(draw_radii("sweep", sweep), "Accuracy against ε"),
    )


@in_own_style
def draw_radii(name: str, sweep: "RadiusSweep") -> Svg:
    """Natural, attacked and certified accuracy over ε; robust accuracy lies in the shaded range."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(WIDE / 72, HIGH / 72), layout="constrained")
    axes, reports = figure.subplots(), sweep.reports
    radii = [report.eps for report in reports]
    values = {line: [getattr(report, line) for report in reports] for line in LINES}
    shade = PALETTE["shade"].light
    axes.fill_between(radii, values["certified_accuracy"], values["attacked_accuracy"], color=shade, lw=0, zorder=0)
    for line, (label, colour) in LINES.items():
        axes.plot(radii, values[line], "o-", color=PALETTE[colour].light, label=label, linewidth=1.8)
    axes.set(xlabel="ε", ylabel="accuracy", ylim=(-0.02, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside upper left", ncols=3)
    return drawing(figure, name, "natural, attacked and certified accuracy against ε")


def _table(sweep: "RadiusSweep") -> Table:
    header = ("ε", "natural", "under attack", "certified", "verified error", "open examples", "implied", "took")
    return Table(header, [_row(radius.report, radius.implied) for radius in sweep.radii], "r" * len(header))


def _row(report: Any, implied: int) -> list[str | int]:
    shares = (
        report.natural_accuracy,
        report.attacked_accuracy,
        report.certified_accuracy,
        1 - report.certified_accuracy,
    )
    return [format_eps(report.eps), *map(percent, shares), report.open, implied, duration(report.seconds)]
