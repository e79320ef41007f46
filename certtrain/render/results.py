"""The results of a verification and of an export, as tables or JSON."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from certtrain.formats import attack_words, count_of, duration, percent
from certtrain.render.cells import new_table, show_table
from certtrain.render.console import GREY, out, remark, say, show_assumptions, show_title
from certtrain.render.verification import SEARCHES, step_table, unfinished
from certtrain.spec.epsilon import format_eps

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.interchange.export import Comparison
    from certtrain.verification.verify import Report


def show_json(value: Any, indent: int | None = 2) -> None:
    """A value as JSON on the output stream. Raises ValueError for NaN and infinity."""
    sys.stdout.write(json.dumps(value, indent=indent, allow_nan=False) + "\n")
    sys.stdout.flush()


def _attacked(report: Report) -> tuple[str, float, str]:
    """The row of the accuracy under attack, the upper limit."""
    if report.attack["name"] == "none":
        found = "natural accuracy less counterexamples" if report.falsified else "the natural accuracy"
        return "no attack", report.attacked_accuracy, f"upper limit: {found}"
    from certtrain.verification.methods import TARGETED

    words = attack_words(report.attack)
    if any(step.name == TARGETED for step in report.steps) and report.attack["name"] != TARGETED:
        words += f", then {TARGETED}"
    return "under attack", report.attacked_accuracy, f"upper limit; {words}"


def show_stopped(report: Report) -> None:
    """The limits that a verification gives which was stopped at one of several radii."""
    examples = report.examples + report.unreached
    say(f"stopped at ε = {format_eps(report.eps)}, with results for {report.examples:,} of {examples:,} examples:")
    say(f"natural accuracy {percent(report.natural_accuracy)}; {_bracket(report)}")


def _bracket(report: Report) -> str:
    """A sentence with the limits between which the robust accuracy lies."""
    low, high = percent(report.certified_accuracy), percent(report.attacked_accuracy)
    if not report.open:
        return f"robust accuracy is {low}; no example is open"
    gap = percent(report.attacked_accuracy - report.certified_accuracy)
    examples = "1 example is" if report.open == 1 else f"{report.open:,} examples ({gap}) are"
    return f"robust accuracy lies between {low} and {high}; {examples} open"


def show_report(report: Report, model: Path) -> None:
    """The accuracies and errors of a verification, and the limits that they give for the robust accuracy.

    model: the file or folder of the network, for the command that is suggested.
    """
    show_title(
        f"{report.dataset}, {report.split} set, {count_of(report.examples, 'example')}, ε = {format_eps(report.eps)}"
    )
    table = new_table("", "accuracy", "error", "examples")
    bounds = "the methods below" if report.method == "auto" else f"{report.method} bounds"
    rows = (
        ("natural", report.natural_accuracy, "no perturbation"),
        _attacked(report),
        ("certified", report.certified_accuracy, f"lower limit; {bounds}"),
    )
    table.add_column("", justify="left", style=GREY)
    for name, share, meaning in rows:
        count = round(share * report.examples)
        table.add_row(name, percent(share), percent(1 - share), f"{count:,}", meaning)
    show_table(table)
    show_table(step_table(report))
    say(_bracket(report))
    if report.open and report.method not in ("auto", *SEARCHES):
        command = shlex.join(["certtrain", "verify", str(model), "--method", "auto"])
        remark(f"{command} tries tighter methods on what is open")
    if words := unfinished(report):
        out.print(Text(words))
    out.print(Text(f"verified error {percent(report.verified_error)}; {duration(report.seconds)}", style="bold"))
    show_assumptions(report.assumptions)


def show_comparisons(comparisons: Sequence[Comparison]) -> None:
    """How much the outputs of each export differ from the network's."""
    table = new_table("export", "examples", "difference", "allowed", "largest logit", "same class")
    for c in comparisons:
        numbers = (f"{c.largest_difference:.2e}", f"{c.tolerance:.2e}", f"{c.largest_logit:.3g}")
        table.add_row(c.what, f"{c.examples:,}", *numbers, f"{c.same_classes:,}")
    show_table(table)
