"""The result of one property."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.text import Text

from certtrain.formats import number
from certtrain.palette import PALETTE
from certtrain.render.console import BAD, GOOD, out, remark, say

if TYPE_CHECKING:
    from certtrain.properties.decide import Decision

MEANINGS = {
    "unsat": ("no input in the box violates the property", GOOD),
    "sat": ("the input below violates the property", BAD),
    "unknown": ("neither a proof nor a counterexample was found", f"bold {PALETTE['open'].terminal}"),
}
SHOWN_VALUES = 12  # of a counterexample; --json has all
LEAST_PROOF = sys.float_info.min  # the bound of a proof that shows no more than its sign


def show_decision(decision: Decision) -> None:
    """The result as the competition names it and as a sentence, and the counterexample if there is one."""
    meaning, style = MEANINGS[decision.result]
    out.print(Text.assemble((decision.result, style), f"  {meaning}"))
    by = "" if decision.by is None else f"by {decision.by}; "
    say(f"{by}{_bound(decision)}{decision.seconds:.2f} s")
    if decision.counterexample is not None and decision.outputs is not None:
        for name, values in (("X", decision.counterexample.tolist()), ("Y", decision.outputs.tolist())):
            rest = f" … and {len(values) - SHOWN_VALUES} more (--json)" if len(values) > SHOWN_VALUES else ""
            say(f"{name}_0 … = {', '.join(f'{value:.6g}' for value in values[:SHOWN_VALUES])}{rest}")
    for assumption in decision.assumptions:
        remark(f"assumes {assumption}")


def _bound(decision: Decision) -> str:
    """What is proved of the smallest margin; nothing beside a counterexample, which says more."""
    if decision.result == "sat":
        return ""
    text = "above 0" if 0 < decision.bound <= LEAST_PROOF else f"{number(decision.bound)} (above 0 it proves unsat)"
    return f"lower bound {text}; "
