"""The two streams, and single lines on them: text, notes, errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from certtrain.palette import PALETTE

GREY = PALETTE["muted"].terminal
WARNING = PALETTE["open"].terminal
GOOD, BAD = f"bold {PALETTE['certified'].terminal}", f"bold {PALETTE['falsified'].terminal}"
NOTE_HEAD = ("note: ", f"bold {WARNING}")

STOPPING = "stopping…"
COMMAND = ": certtrain "  # what stands before a command, and begins it

out = Console()
err = Console(stderr=True)


def error(message: str) -> None:
    """One error, on the error stream."""
    show_sentence(err, Text.assemble(("error: ", BAD), visible(message)))


def note(message: str) -> None:
    """One note, on the error stream."""
    show_sentence(err, Text.assemble(NOTE_HEAD, visible(message)))


def say_stopping() -> None:
    """Say on the error stream that the command will stop, for a key that is pressed before there is a view."""
    note(STOPPING)


def is_screen(console: Console) -> bool:
    """Whether lines have the width of a terminal or a notebook; in a file they may have any."""
    return console.is_terminal or console.is_jupyter


def show_sentence(console: Console, line: Text) -> None:
    """A line, which a terminal and a notebook break between words, and a file keeps whole.

    Where it is broken, a command at its end stands on a line of its own and stays in one piece, so that it can be
    copied.
    """
    if not is_screen(console) or line.cell_len <= console.width:
        console.print(line, soft_wrap=True)
        return
    head, found, _ = line.plain.rpartition(COMMAND)
    end = len(head) + 1 if found else len(line.plain)
    console.print(line[:end])
    if found:
        console.print(line[end + 1 :], soft_wrap=True)


@contextmanager
def silent() -> Iterator[None]:
    """A context in which nothing is shown, as in a process beside another one that shows everything."""
    out.quiet = err.quiet = True
    try:
        yield
    finally:
        out.quiet = err.quiet = False


def visible(message: str) -> str:
    r"""The text with control characters escaped, like \x1b: a name in a file must not control the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in message)


def say(text: str, style: str = "") -> None:
    """One line on the output stream; a screen breaks it between words, and a file keeps it whole."""
    out.print(Text(text, style=style), soft_wrap=not is_screen(out))


def remark(text: str) -> None:
    """An explanation in grey below what it explains."""
    out.print(Text(text, style=GREY))


def show_assumptions(assumptions: Sequence[str]) -> None:
    """How many assumptions a result has, and where to read them."""
    if assumptions:
        count = "one assumption" if len(assumptions) == 1 else f"{len(assumptions)} assumptions"
        remark(f"under {count} about how the network runs: --json lists them, docs/certificates.md explains them")


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
