"""The two streams, and single lines on them: text, notes, errors."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from certtrain.palette import PALETTE

GREY = PALETTE["muted"].terminal
WARNING = PALETTE["open"].terminal
GOOD, BAD = f"bold {PALETTE['certified'].terminal}", f"bold {PALETTE['falsified'].terminal}"
NOTE_HEAD = ("note: ", f"bold {WARNING}")

out = Console()
err = Console(stderr=True)


def error(message: str) -> None:
    """One error, on the error stream."""
    err.print(Text.assemble(("error: ", BAD), visible(message)), soft_wrap=True)


def note(message: str) -> None:
    """One note, on the error stream."""
    err.print(Text.assemble(NOTE_HEAD, visible(message)), soft_wrap=True)


def visible(message: str) -> str:
    r"""The text with control characters escaped, like \x1b: a name in a file must not control the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in message)


def say(text: str, style: str = "") -> None:
    """One line on the output stream."""
    out.print(Text(text, style=style), soft_wrap=True)


def remark(text: str) -> None:
    """An explanation in grey below what it explains."""
    out.print(Text(text, style=GREY))


def show_title(text: str) -> None:
    """The title of the table below it."""
    out.print(Text(text, style="italic"))


def fitted(words: Sequence[str], width: int, gap: str = "  ") -> str:
    """The words in lines of at most `width` columns, broken between two words only."""
    lines = [""]
    for word in words:
        longer = lines[-1] + gap + word if lines[-1] else word
        if len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
