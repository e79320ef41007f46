"""What a person sees. Rich lives only here; the numbers come from the engine as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from certtrain.render.decision import show_decision as show_decision
from certtrain.render.layers import show_compared as show_compared
from certtrain.render.layers import show_history as show_history
from certtrain.render.layers import show_initial as show_initial
from certtrain.render.layers import show_models as show_models
from certtrain.render.layers import show_states as show_states
from certtrain.render.layers import show_sweep as show_sweep
from certtrain.render.pieces import err
from certtrain.render.pieces import error as error
from certtrain.render.pieces import note as note
from certtrain.render.pieces import say as say
from certtrain.render.results import show_comparisons as show_comparisons
from certtrain.render.results import show_json as show_json
from certtrain.render.results import show_report as show_report
from certtrain.render.training import training_view as training_view
from certtrain.render.verification import show_checked as show_checked
from certtrain.render.verification import verifying as verifying


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the error stream; gives a function of (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def loading() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for reading data; gives a function of (what, done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        tasks = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield update
