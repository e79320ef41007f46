"""Parts of the tables of layers: a layer's numbers as cells, a bar of its ReLU states, plain tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment, SegmentLines
from rich.table import Column, Table
from rich.text import Text

from certtrain.diagnostics.findings import Finding, LayerMeans, first_sentence, is_exploding
from certtrain.formats import number, percent, times
from certtrain.palette import PALETTE, STATES
from certtrain.render.console import BAD, GREY, WARNING, fitted, out, say
from certtrain.runs.epoch import LayerState

BAR = 20  # characters of a layer's bar
GAP = 2  # columns between two columns of a table, or one less where space is short
INDENT = 2  # columns before what stands below a name
WIDEST = 10_000  # characters of a terminal in which every table fits
STATE_SIGNS = tuple(zip(STATES, "█▒░", (PALETTE[state].terminal for state in STATES), strict=True))
GROWTH_REMARK = "growth: mean width of the bounds at a ReLU's input, divided by that at the network's input"


def new_table(*columns: str) -> Table:
    """A plain table: the first column is aligned to the left, the others, which have numbers, to the right.

    `show_table` shows it; a column that may be broken between words must be set to `no_wrap=False`.
    """
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def show_table(table: Table) -> None:
    """A table, of which no name and no number is cut, however narrow the terminal is.

    Where it does not fit, its columns are moved together. Where it still does not, each name in the first column gets a
    line of its own, above its numbers. Where these do not fit either, each of them follows the name of its column.
    """
    if _fits(table, out.width):
        out.print(table)
    elif _fits(rest := _without_names(table), out.width - INDENT):
        _show_below_names(table, rest)
    else:
        _show_in_words(table)


def _fits(table: Table, width: int) -> bool:
    """Whether the table is whole at that width; its columns are moved together if it is then."""
    least = sum(map(_width, table.columns))
    for gap in (GAP, GAP - 1):
        if least + gap * (len(table.columns) - 1) <= width:
            table.padding = (0, gap, 0, 0)
            return True
    return False


def _width(column: Column) -> int:
    """The least width at which a column is whole."""
    options = out.options.update(width=WIDEST)
    measured = [Measurement.get(out, options, part) for part in (column.header, *column.cells)]
    return max(each.maximum if column.no_wrap else each.minimum for each in measured)


def _without_names(table: Table) -> Table:
    """The table without its first column."""
    rest = Table(header_style="bold", box=None, pad_edge=False)
    rest.columns = [replace(column, _index=index) for index, column in enumerate(table.columns[1:])]
    rest.rows = table.rows
    return rest


def _show_below_names(table: Table, rest: Table) -> None:
    """The names of the first column, each on a line above its row of the `rest`; a name without a row stands alone."""
    for column in rest.columns:
        column.no_wrap = True
    lines = out.render_lines(rest, out.options.update(width=out.width - INDENT), pad=False)
    head, body = lines[: -len(table.rows)], lines[-len(table.rows) :]
    out.print(Text(str(table.columns[0].header), "bold"), soft_wrap=True)
    _show_lines(head)
    for name, line in zip(table.columns[0].cells, body, strict=True):
        if str(name):
            out.print(name, soft_wrap=True)
        _show_lines([line] if any(segment.text.strip() for segment in line) else [])


def _show_lines(lines: Iterable[list[Segment]]) -> None:
    for line in lines:
        out.print(SegmentLines([[Segment(" " * INDENT), *line]], new_lines=True), end="")


def _show_in_words(table: Table) -> None:
    """Each row as its name, and below it the name of each column with its value."""
    title, *heads = (" ".join(str(column.header).split()) for column in table.columns)
    for name, *values in zip(*(column.cells for column in table.columns), strict=True):
        if str(name):
            out.print(Text.assemble((f"{title}: " if title else "", "bold"), str(name)), soft_wrap=True)
        words = [f"{head} {value}".strip() for head, value in zip(heads, values, strict=True) if str(value)]
        for line in fitted(words, out.width - INDENT).splitlines():
            out.print(Padding(Text(line), (0, 0, 0, INDENT)))


def growth_cell(layer: LayerState) -> Text:
    """A layer's growth, in red where bounds explode."""
    return Text(times(layer.growth), style=BAD if is_exploding(layer) else "")


def state_cells(layer: LayerState | LayerMeans) -> tuple[str, str, str, str]:
    """The shares active, unstable, inactive and dead."""
    shares = (layer.active, layer.unstable, layer.inactive, layer.dead)
    active, unstable, inactive, dead = (percent(share, 1) for share in shares)
    return active, unstable, inactive, dead


def ratio_cells(layer: LayerState | LayerMeans) -> tuple[str, str]:
    """The balance ratios of mean and variance."""
    return number(layer.mean_ratio), number(layer.variance_ratio)


def state_bar(layer: LayerState, width: int = BAR) -> Text:
    """A bar of the active, unstable and inactive shares. A share above zero is at least one character wide."""
    shares = (layer.active, layer.unstable, layer.inactive)
    cells = [max(round(share * width), int(share > 0)) for share in shares]
    cells[cells.index(max(cells))] += width - sum(cells)
    return Text.assemble(*[(sign * n, style) for (_, sign, style), n in zip(STATE_SIGNS, cells, strict=True)])


def legend() -> Text:
    """The meaning of the characters of a bar."""
    return Text.assemble(*[part for name, sign, style in STATE_SIGNS for part in ((sign, style), f" {name} ")])


def finding_cell(findings: Sequence[Finding]) -> Text:
    """The kind of the worst finding; empty without findings."""
    return Text(findings[0].kind if findings else "", style=WARNING)


def show_sentences(sentences: Iterable[str], fine: str = "") -> None:
    """The sentences about what is wrong, each on a line; the sentence `fine` if there are none."""
    lines = list(sentences)
    for line in lines:
        out.print(Text.assemble(("! ", f"bold {WARNING}"), (line, WARNING)))
    if fine and not lines:
        say(fine, GREY)


def show_first_sentence(name: str, findings: Sequence[Finding], fine: str = "") -> None:
    """For one of several networks: the sentence about its worst layer, and how many more layers have findings."""
    show_sentences([f"{name}: {first_sentence(findings)}"] if findings else [], fine)
