"""The progress of a verification, its steps, and the result of checking a certificate file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import Progress as Bars
from rich.progress import TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from certtrain.formats import NO_NUMBER, number
from certtrain.render.cells import new_table
from certtrain.render.console import GREY, out, say
from certtrain.render.progress import transient_bars
from certtrain.spec.epsilon import format_eps

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.certfile import Checked
    from certtrain.verification.results import ExampleResult
    from certtrain.verification.verify import Report

COUNTED = ("certified", "falsified", "open", "misclassified")


class VerifyingView:
    """A progress bar for the examples of a round, and the number of examples with each verdict so far."""

    def __init__(self, bars: Bars, known: Iterable[ExampleResult]) -> None:
        self.bars = bars
        self.verdicts: dict[int, str] = {result.index: result.verdict for result in known}
        self.task: TaskID | None = None

    def begin(self, names: Sequence[str], examples: int) -> None:
        """Begin a round with the steps of these names on this many examples."""
        self.close()
        self.task = self.bars.add_task(", ".join(names), total=examples, counts=self._counts())

    def add(self, results: Sequence[ExampleResult]) -> None:
        """Count the results of this round for some examples."""
        self.verdicts |= {result.index: result.verdict for result in results}
        if self.task is not None:
            self.bars.update(self.task, advance=len(results), counts=self._counts())

    def close(self) -> None:
        """End the round."""
        if self.task is not None:
            self.bars.remove_task(self.task)
        self.task = None

    def _counts(self) -> str:
        verdicts = list(self.verdicts.values())
        return "  ".join(f"{verdict} {verdicts.count(verdict):,}" for verdict in COUNTED)


@contextmanager
def verifying(known: Iterable[ExampleResult] = ()) -> Iterator[VerifyingView]:
    """A progress bar with counts on the error stream, if that is a terminal."""
    counts = TextColumn("{task.fields[counts]}", style=GREY)
    with transient_bars(TimeRemainingColumn(), counts, width=24) as bars:
        yield VerifyingView(bars, known)


def stage_table(report: Report) -> Table:
    """A row for each step: the number of examples it was tried on, how many it decided, and seconds for each."""
    table = new_table("step", "examples", "decided", "s/example")
    for stage in report.stages:
        seconds = number(stage.seconds_per_example) if stage.examples else NO_NUMBER
        table.add_row(stage.name, f"{stage.examples:,}", f"{stage.decided:,}", seconds)
    return table


def unfinished(report: Report) -> str:
    """A sentence about examples that are open because time ran out; empty if there are none."""
    if not report.unfinished:
        return ""
    return f"time ran out: {report.unfinished:,} of the open examples were not tried by every step"


def show_checked(checked: Checked) -> None:
    """The contents of a certificate file that was checked and holds."""
    table = new_table("verdict", "examples")
    for verdict in COUNTED:
        table.add_row(verdict, f"{checked.counts[verdict]:,}")
    out.print(table)
    about = f"ε = {format_eps(checked.eps)}, the network as {checked.network}, {checked.arithmetic}, "
    about += f"method {checked.method}"
    if checked.partial:
        say(
            f"partial check: the first {checked.checked:,} of {checked.examples:,} records hold ({about}); the others "
            f"were not checked; {checked.seconds:.1f} s",
            "bold",
        )
    else:
        say(f"all {checked.checked:,} records hold ({about}); {checked.seconds:.1f} s", "bold")
    for assumption in checked.assumptions:
        say(f"assumes {assumption}", GREY)
