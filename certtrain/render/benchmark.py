"""A run over a benchmark: a line for each instance, a table of the categories, and contradictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from certtrain.competition.results import WORDS
from certtrain.competition.summary import Tally
from certtrain.palette import PALETTE
from certtrain.render.cells import new_table, show_sentences, show_table
from certtrain.render.console import BAD, GOOD, GREY, out, visible

if TYPE_CHECKING:
    from certtrain.competition.instances import Instance, Key
    from certtrain.competition.results import InstanceResult
    from certtrain.competition.running import Done

STYLES = {"unsat": GOOD, "sat": GOOD, "error": BAD}
OPEN = PALETTE["open"].terminal


def show_done(done: Done, number: int, total: int) -> None:
    """A line for an instance: which one it is, its result, its seconds, its files, and what went wrong."""
    key, result = done.instance.key, done.result
    count = f"{number:>{len(str(total))}}/{total}"
    about = f"{result.seconds:8.2f} s  {key.network}  {key.property}"
    line = Text.assemble((f"{count}  ", GREY), (f"{result.word:<7}", STYLES.get(result.word, OPEN)), visible(about))
    if message := done.details.get("message"):
        line.append(f"\n    {visible(message)}", style=GREY)
    out.print(line, soft_wrap=True)


def show_tallies(tallies: Sequence[Tally]) -> None:
    """A table with a row for each category, and one for all if there are several.

    `differ`: how many of the verdicts that were expected are contradicted.
    """
    compared = any(each.expected for each in tallies)
    table = new_table("category", "tried", *WORDS, "seconds", *(["differ"] if compared else []))
    whole = [Tally("all").with_others(tallies)] if len(tallies) > 1 else []
    for tally in (*tallies, *whole):
        counts = (tally.tried, *(tally.words[word] for word in WORDS))
        differ = [f"{tally.differing:,} of {tally.expected:,}"] if compared else []
        table.add_row(tally.category, *(f"{count:,}" for count in counts), f"{tally.seconds:,.1f}", *differ)
    show_table(table)


def show_contradictions(instances: Sequence[Instance], results: Mapping[Key, InstanceResult]) -> None:
    """A sentence for each result that contradicts the expected verdict."""
    show_sentences(
        visible(
            f"{each.key.category}: {each.key.network}, {each.key.property}: {results[each.key].word}, but "
            f"{each.expected} was expected"
        )
        for each in instances
    )
