"""Progress bars on the error stream, if that is a terminal, while something is computed or read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from certtrain.render.console import err


def transient_bars(*more: ProgressColumn, width: int | None = 40) -> Bars:
    """Progress bars with name and count, and with `more` columns; they disappear when they are done."""
    columns = (TextColumn("{task.description}"), BarColumn(width), MofNCompleteColumn())
    return Bars(*columns, *more, console=err, transient=True, disable=not err.is_terminal)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar. Yields a function of (done, total) that advances it."""
    with transient_bars(TimeRemainingColumn()) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def loading() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each thing that is read or computed. Yields a function of (what, done, total)."""
    with transient_bars() as bars:
        tasks = dict[str, TaskID]()

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield update
