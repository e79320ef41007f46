"""What all pictures and tables share: the two streams, bars of states, plain tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from certtrain.formats import times

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.diagnostics.findings import LayerState

BAR = 20  # characters of a layer's bar
STATES = (("active", "█", "green"), ("unstable", "▒", "yellow"), ("inactive", "░", "bright_black"))

out = Console()
err = Console(stderr=True)


def error(message: str) -> None:
    """One error, on the error stream."""
    err.print(Text.assemble(("error: ", "bold red"), visible(message)), soft_wrap=True)


def note(message: str) -> None:
    """Something worth knowing, on the error stream."""
    err.print(Text.assemble(("note: ", "bold yellow"), visible(message)), soft_wrap=True)


def visible(message: str) -> str:
    r"""The text with control characters spelt out, like \x1b: names out of a file must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in message)


def say(text: str, style: str = "") -> None:
    """One line on the output stream."""
    out.print(Text(text, style=style), soft_wrap=True)


def growth_text(layer: LayerState) -> Text:
    """A layer's growth, in red where bounds explode."""
    return Text(times(layer.growth), style="bold red" if layer.exploding else "")


def state_bar(layer: LayerState, width: int = BAR) -> Text:
    """Active, unstable and inactive shares; a share above zero is never hidden by rounding."""
    shares = (layer.active, layer.unstable, layer.inactive)
    cells = [max(round(share * width), int(share > 0)) for share in shares]
    cells[cells.index(max(cells))] += width - sum(cells)
    return Text.assemble(*[(sign * n, style) for (_, sign, style), n in zip(STATES, cells, strict=True)])


def legend() -> Text:
    """What the signs of a bar mean."""
    return Text.assemble(*[part for name, sign, style in STATES for part in ((sign, style), f" {name} ")])


def new_table(*columns: str) -> Table:
    """A plain table: the first column to the left, the others to the right."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table
