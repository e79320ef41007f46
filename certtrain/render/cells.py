"""Parts of the tables of layers: a layer's numbers as cells, a bar of its ReLU states, plain tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from certtrain.diagnostics.findings import Finding, LayerMeans, first_sentence, is_exploding
from certtrain.formats import number, percent, times
from certtrain.palette import PALETTE, STATES
from certtrain.render.console import BAD, GREY, WARNING, out, say
from certtrain.runs.epoch import LayerState

BAR = 20  # characters of a layer's bar
STATE_SIGNS = tuple(zip(STATES, "█▒░", (PALETTE[state].terminal for state in STATES), strict=True))
GROWTH_REMARK = "growth: mean width of the bounds at a ReLU's input, divided by that at the network's input"


def new_table(*columns: str) -> Table:
    """A plain table: the first column is aligned to the left, the others, which have numbers, to the right.

    Where space is short, names are cut first, and numbers stay whole.
    """
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(columns[0], overflow="ellipsis")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


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
