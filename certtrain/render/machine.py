"""What works on a machine: the result of each check, as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterable

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from certtrain.doctor.checking import Check, CheckResult
from certtrain.render.console import BAD, GOOD, GREY, WARNING, err, out, say, visible

STATUS_STYLES = {"pass": GOOD, "absent": WARNING, "fails": BAD}
NAME, STATUS = 24, 6  # characters of the columns


def show_checks(checks: Iterable[Check]) -> list[CheckResult]:
    """Run each check and show its result, with what to do; at the end whether certtrain works here."""
    results = list[CheckResult]()
    for check in checks:
        with err.status(Text(check.name)):
            results.append(check.run())
        _show(results[-1])
    broken = [result.name for result in results if result.broken]
    if broken:
        say(f"certtrain does not work here: see {', '.join(broken)}", BAD)
    else:
        say("certtrain works here", GOOD)
    return results


def _show(result: CheckResult) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=NAME, overflow="fold")
    grid.add_column(width=STATUS)
    grid.add_column(overflow="fold")
    text = Text(visible(result.found))
    if result.status != "pass" and result.advice:
        text.append(f"\n→ {visible(result.advice)}", GREY)
    status, room = Text(result.status, style=STATUS_STYLES[result.status]), out.width - NAME - STATUS - 4
    below = max(map(len, text.plain.split()), default=0) > room  # a path, which is not broken
    grid.add_row(result.name, status, "" if below else text)
    out.print(grid)
    if below:
        out.print(Padding(text, (0, 0, 0, 2)))
