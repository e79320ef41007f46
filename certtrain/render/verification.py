"""The progress of a verification, its steps, and the result of checking a certificate file."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from certtrain.formats import NO_NUMBER, clock, count_of, duration, short_time
from certtrain.render.cells import new_table, show_table
from certtrain.render.console import (
    GREY,
    STOPPING,
    WARNING,
    err,
    fitted,
    say,
    say_stopping,
    show_assumptions,
    visible,
)
from certtrain.render.progress import NARROWEST_BAR, WIDEST_BAR
from certtrain.spec.epsilon import format_eps

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.certfile import Checked
    from certtrain.verification.cascade import SearchState, Work
    from certtrain.verification.results import ExampleResult
    from certtrain.verification.verify import Report

COUNTED = ("certified", "falsified", "open", "misclassified")
REFRESHES = 4  # a second
LOG_PAUSE = 60.0  # seconds between two lines in a log
SOON = 1.0  # seconds after which it is shown what a step is working on
LEAST_DONE = 5  # examples that must be done before a time left is estimated from them
SEARCHES = ("complete", "milp")  # whose examples take so different times that no time left can be estimated


class VerifyingView:
    """The progress of a round, the number of examples with each verdict so far, and what is being worked on.

    It is rendered again several times a second, so that the clocks go on while a step computes. images: the names of
    single images, which are then shown in place of examples' numbers.
    """

    def __init__(self, known: Iterable[ExampleResult] = (), images: Sequence[str] = ()) -> None:
        self.images = images
        self.stopping = False
        self.restart(known)

    names: tuple[str, ...]

    def restart(self, known: Iterable[ExampleResult], title: str = "") -> None:
        """Begin a verification of which these results are known; `title` is shown before its rounds' names."""
        self.title = title
        self.verdicts: dict[int, str] = {result.index: result.verdict for result in known}
        self.names, self.done, self.total, self.since = (), 0, 0, time.monotonic()
        self.counts = Counter(self.verdicts.values())
        self.work: Work | None = None
        self.work_since = 0.0

    def begin(self, names: Sequence[str], examples: int) -> None:
        """Begin a round with the steps of these names on this many examples."""
        self.work = None
        self.names, self.done, self.total, self.since = tuple(names), 0, examples, time.monotonic()

    def work_on(self, work: Work) -> None:
        """Show what a step is working on."""
        if work.begins:
            self.work_since = time.monotonic()
        self.work = work

    def add(self, results: Sequence[ExampleResult]) -> None:
        """Count the results of this round for some examples."""
        self.verdicts |= {result.index: result.verdict for result in results}
        self.counts = Counter(self.verdicts.values())
        self.work, self.done = None, self.done + len(results)

    def stop(self) -> None:
        """Say at once that the verification will stop."""
        self.stopping = True
        if not err.is_terminal:
            say_stopping()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines, each no wider than the terminal."""
        if self.names:
            yield self._round(options.max_width)
        words = [f"{verdict} {self.counts[verdict]:,}" for verdict in COUNTED]
        yield Text(fitted(words, options.max_width), style=GREY)
        if work := self._work():
            yield Text(fitted(work, options.max_width), style=GREY)
        if self.stopping:
            yield Text(f"{STOPPING} (Ctrl-C again ends it at once, without the results so far)", style=WARNING)

    def _round(self, width: int) -> Table | Text:
        """The round's name, how many examples are done, its time, and a bar if there is room for it."""
        spent = time.monotonic() - self.since
        counted = "images" if self.images else "examples"
        words = [
            ", ".join((*filter(None, [self.title]), *self.names)),
            f"{self.done:,}/{self.total:,} {counted}",
            clock(spent),
        ]
        if self.done >= LEAST_DONE and spent > SOON and not set(self.names) & set(SEARCHES):
            words.append(f"{clock(spent / self.done * (self.total - self.done))} left")
        space = width - len("  ".join(words)) - 2
        if space < NARROWEST_BAR:
            return Text(fitted(words, width))
        line = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(total=max(self.total, 1), completed=self.done, width=min(space, WIDEST_BAR))
        line.add_row(words[0], bar, "  ".join(words[1:]))
        return line

    def _work(self) -> list[str]:
        """What a step has been working on for a while: the example, its time, and the domains or the radius tried."""
        work, spent = self.work, time.monotonic() - self.work_since
        if work is None or spent < SOON:
            return []
        single = len(work.numbers) == 1
        what = self._named(work.numbers)
        limited = f" of {work.seconds:.0f} s" if single and work.seconds < math.inf else ""
        tried = [] if work.radius is None else [f"ε = {work.radius:.4f}"]
        return [f"{work.step}: {what}", f"{spent:.0f} s{limited}", *tried, *_domains(work.domains)]

    def _named(self, numbers: Sequence[int]) -> str:
        """What these numbers are: examples, or images."""
        if len(numbers) > 1:
            return f"{len(numbers):,} {'images' if self.images else 'examples'}"
        (number,) = numbers
        if not self.images:
            return f"example {number}"
        return f"image {number + 1} of {len(self.images)}, {visible(self.images[number])}"


def _domains(domains: SearchState | None) -> list[str]:
    if domains is None:
        return []
    bound = [f"bound {domains.bound:.4f}"] if math.isfinite(domains.bound) else []
    return [f"domains: {domains.closed:,} closed", f"{domains.open:,} open", *bound]


@contextmanager
def verifying(known: Iterable[ExampleResult] = (), images: Sequence[str] = ()) -> Iterator[VerifyingView]:
    """The progress of a verification on the error stream: redrawn on a terminal, elsewhere a line every minute.

    `images` as in `VerifyingView`.
    """
    if not err.is_terminal:
        yield LoggedView(known, images)
        return
    view = VerifyingView(known, images)
    with Live(view, console=err, transient=True, refresh_per_second=REFRESHES):
        yield view


class LoggedView(VerifyingView):
    """Writes a line for a log about once a minute, while batches are done or a step goes on."""

    def __init__(self, known: Iterable[ExampleResult] = (), images: Sequence[str] = ()) -> None:
        super().__init__(known, images)
        self.last = time.monotonic()

    def work_on(self, work: Work) -> None:
        """As of `VerifyingView`."""
        super().work_on(work)
        self._log()

    def add(self, results: Sequence[ExampleResult]) -> None:
        """As of `VerifyingView`."""
        super().add(results)
        self._log()

    def _log(self) -> None:
        if time.monotonic() - self.last >= LOG_PAUSE:
            self.last = time.monotonic()
            names = ", ".join(filter(None, (self.title, *self.names)))
            err.print(Text(f"{names}: {_counts(self)}"), soft_wrap=True)


def _counts(view: VerifyingView) -> str:
    """How many examples of a round are done, how many have each verdict, and the round's time."""
    counts = (f"{verdict} {view.counts[verdict]:,}" for verdict in COUNTED)
    return "  ".join([f"{view.done:,}/{view.total:,}", *counts, clock(time.monotonic() - view.since)])


class VerifyingLines:
    """The progress of a verification as lines, where none can be redrawn, such as in a notebook or a file.

    There is a line when a round begins, another when it ends, and one in between after every `pause` seconds.
    """

    def __init__(self, known: Iterable[ExampleResult] = (), pause: float = 10.0) -> None:
        self.view, self.pause, self.last = VerifyingView(known), pause, 0.0

    def begin(self, names: Sequence[str], examples: int) -> None:
        """Begin a round with the steps of these names on this many examples."""
        self.view.begin(names, examples)
        self._say(f"{', '.join(names)}: {count_of(examples, 'example')}")

    def work_on(self, work: Work) -> None:
        """Nothing: what a step is working on changes too often for lines."""

    def add(self, results: Sequence[ExampleResult]) -> None:
        """Count the results of this round for some examples."""
        self.view.add(results)
        if self.view.done == self.view.total or time.monotonic() - self.last >= self.pause:
            self._say(f"  {_counts(self.view)}")

    def _say(self, line: str) -> None:
        self.last = time.monotonic()
        say(line)


@contextmanager
def verifying_session(known: Iterable[ExampleResult] = ()) -> Iterator[VerifyingView | VerifyingLines]:
    """The progress of a verification that a Python user began, redrawn on a terminal and as lines elsewhere."""
    if err.is_terminal and not err.is_jupyter:
        with verifying(known) as view:
            yield view
    else:
        yield VerifyingLines(known)


def step_table(report: Report) -> Table:
    """A row for each step: the number of examples it was tried on, how many it decided, and the time of each."""
    table = new_table("step", "examples", "decided", "each took")
    for step in report.steps:
        seconds = short_time(step.seconds_per_example) if step.examples else NO_NUMBER
        table.add_row(step.name, f"{step.examples:,}", f"{step.decided:,}", seconds)
    return table


def unfinished(report: Report) -> str:
    """A sentence about examples that are open because time ran out, or were not reached; empty if there are none."""
    why = "stopped" if report.interrupted else "time ran out"
    parts = [f"not every step ran to its end for {report.unfinished:,} of the open examples"]
    parts = parts * (report.unfinished > 0)
    parts += [f"{report.unreached:,} more examples were not reached"] * (report.unreached > 0)
    advice = "more time may decide them (--timeout, --time-budget); with --out FILE only they are tried again"
    parts += [advice] * (not report.interrupted)
    return f"{why}: {'; '.join(parts)}" if report.unfinished + report.unreached else ""


def show_checked(checked: Checked) -> None:
    """The contents of a certificate file that was checked and holds."""
    table = new_table("verdict", "examples")
    for verdict in COUNTED:
        table.add_row(verdict, f"{checked.counts[verdict]:,}")
    show_table(table)
    about = f"ε = {format_eps(checked.eps)}, the network as {checked.network}, {checked.arithmetic}, "
    about += f"method {checked.method}"
    if checked.partial:
        say(
            f"partial check: the first {checked.checked:,} of {checked.examples:,} records hold ({about}); the others "
            f"were not checked; {duration(checked.seconds)}",
            "bold",
        )
    else:
        held = "the one record holds" if checked.checked == 1 else f"all {checked.checked:,} records hold"
        say(f"{held} ({about}); {duration(checked.seconds)}", "bold")
    show_assumptions(checked.assumptions)
