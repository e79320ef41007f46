"""Accuracies against ε as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from certtrain.formats import count_of, duration, percent
from certtrain.render.cells import new_table, show_table
from certtrain.render.console import remark, say, show_assumptions, show_title
from certtrain.spec.epsilon import format_eps

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.verification.radii import RadiusSweep


def show_radii(sweep: RadiusSweep) -> None:
    """The accuracies at each radius, and the mean of the images' certified radii."""
    first, *_ = sweep.reports
    show_title(
        f"{first.dataset}, {first.split} set, {count_of(first.examples, 'example')}, {first.method}, {first.arithmetic}"
    )
    show_table(_table(sweep))
    remark("implied: verdicts that follow from those at another radius")
    if unfinished := sum(report.unfinished for report in sweep.reports):
        say(f"time ran out: not every step ran to its end for {unfinished:,} of the open examples")
    say(
        f"mean certified radius, among these radii: {sweep.mean_certified_radius:.4f}; {duration(sweep.seconds)}",
        "bold",
    )
    show_assumptions(first.assumptions)


def _table(sweep: RadiusSweep) -> Table:
    table = new_table("ε", "natural", "attacked", "certified", "open", "implied")
    for radius in sweep.radii:
        report = radius.report
        shares = (report.natural_accuracy, report.attacked_accuracy, report.certified_accuracy)
        counts = (f"{report.open:,}", f"{radius.implied:,}")
        table.add_row(format_eps(report.eps), *map(percent, shares), *counts)
    return table
