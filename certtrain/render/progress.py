"""Progress bars on the error stream, if that is a terminal, while something is computed or read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from certtrain.render.console import err

WIDEST_BAR, NARROWEST_BAR, BESIDE_BAR = 40, 6, 45  # columns of a bar, and of what stands beside it


def transient_bars() -> Bars:
    """Progress bars with name, count and the time so far; they disappear when they are done.

    The clock goes on while nothing else does. No time left is shown, since parts may take very different times.
    """
    width = min(WIDEST_BAR, max(NARROWEST_BAR, err.width - BESIDE_BAR))
    columns = (TextColumn("{task.description}"), BarColumn(width), MofNCompleteColumn(), TimeElapsedColumn())
    return Bars(*columns, console=err, transient=True, disable=not err.is_terminal)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar. Yields a function of (done, total) that advances it."""
    with transient_bars() as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def checking() -> Iterator[Callable[[str, int, int], None]]:
    """The records of a certificate file that are checked. Yields a function of (step, done, total)."""
    with transient_bars() as bars:
        task = bars.add_task("checking", total=None)

        def update(step: str, done: int, total: int) -> None:
            bars.update(task, description=f"checking {step}".strip(), completed=done, total=total)

        yield update


@contextmanager
def loading(what: str | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for `what`, and for each thing that is read or computed. Yields a function of (what, done, total).

    Of `what` only the time is known.
    """
    with transient_bars() as bars:
        tasks = dict[str, TaskID]()
        if what is not None:
            bars.add_task(what, total=None)

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield update
