"""The result of one property."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from certtrain.formats import number
from certtrain.palette import PALETTE
from certtrain.render.console import BAD, GOOD, out, remark, say

if TYPE_CHECKING:
    from certtrain.properties.decide import Decision

MEANINGS = {
    "unsat": ("the property holds: no input of the box has such outputs", GOOD),
    "sat": ("the property is broken by the input below", BAD),
    "unknown": ("neither proved nor broken", f"bold {PALETTE['open'].terminal}"),
}
SHOWN_VALUES = 12  # of a counterexample; --json has all


def show_decision(found: Decision) -> None:
    """The result in the competition's word and in a sentence, and the counterexample."""
    meaning, style = MEANINGS[found.result]
    out.print(Text.assemble((found.result, style), f"  {meaning}"))
    by = "" if found.by is None else f"by {found.by}; "
    say(f"{by}lower bound {number(found.bound)} (above 0 it proves the property); {found.seconds:.2f} s")
    if found.counterexample is not None and found.outputs is not None:
        for name, values in (("X", found.counterexample.tolist()), ("Y", found.outputs.tolist())):
            rest = f" … and {len(values) - SHOWN_VALUES} more (--json)" if len(values) > SHOWN_VALUES else ""
            say(f"{name}_0 … = {', '.join(f'{value:.6g}' for value in values[:SHOWN_VALUES])}{rest}")
    for assumption in found.assumptions:
        remark(f"assumes {assumption}")
