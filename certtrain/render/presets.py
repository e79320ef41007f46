"""Presets: all that ship, as a table, and one as a TOML file with explanations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from textwrap import shorten
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from certtrain.render.cells import new_table, show_table
from certtrain.render.console import GREY, out, remark
from certtrain.spec.epsilon import format_eps
from certtrain.spec.explained import TomlLine

if TYPE_CHECKING:
    from certtrain.spec.preset import Preset

LEAST_DESCRIPTION = 30  # characters; with less space there is none
LONGEST_LINE = 100
LINE_STYLES = {"section": "bold", "field": "bold", "comment": GREY}


def show_presets(presets: Sequence[Preset]) -> None:
    """A row for each preset, by data set; where the terminal is wide enough, with the beginning of its description."""
    table = _table(presets)
    room = out.width - out.measure(table).maximum - 2
    show_table(_table(presets, room) if room >= LEAST_DESCRIPTION else table)
    remark("certtrain presets NAME shows what one is for, where its settings come from, and every field")


def _table(presets: Sequence[Preset], description: int = 0) -> Table:
    """The table, with descriptions of at most that many characters, or none."""
    table = new_table("preset", "ε", "objective", "network", "epochs")
    for column in table.columns[1:4]:
        column.justify, column.no_wrap = "left", True
    if description:
        table.add_column("", style=GREY, no_wrap=True)
    for data, group in groupby(sorted(presets, key=_data), _data):
        table.add_row(Text(data, style="italic"))
        for p in group:
            cells = (p.name, format_eps(p.eps.max), p.objective.name, p.model.name, str(p.train.epochs))
            table.add_row(*cells, *([_begin(p.description, description)] if description else []))
    return table


def _begin(text: str, width: int) -> str:
    """The first words of the text, as many as fit."""
    return shorten(text, width, placeholder=" …", break_on_hyphens=False)


def _data(preset: Preset) -> str:
    return preset.data.name


def show_toml(lines: Iterable[TomlLine]) -> None:
    """The lines of a TOML file."""
    for line in lines:
        out.print(Text(line.text, style=LINE_STYLES.get(line.kind, "")), soft_wrap=True)


def toml_width() -> int:
    """The number of characters for the comments of a TOML file."""
    return min(out.width, LONGEST_LINE)
