"""What is known about a user's own image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.text import Text

from certtrain.palette import PALETTE
from certtrain.render.console import BAD, GOOD, GREY, out, remark, say, visible
from certtrain.spec.epsilon import format_eps

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.verdicts import Verdict
    from certtrain.verification.pictures import PictureResult

VERDICT_STYLES = {"certified": GOOD, "falsified": BAD, "open": f"bold {PALETTE['open'].terminal}", "misclassified": BAD}
NOT_CERTIFIED: tuple[Verdict, ...] = ("falsified", "open", "misclassified")


def show_picture(
    path: Path, remarks: Sequence[str], result: PictureResult, class_names: Sequence[str], written: Path | None
) -> None:
    """The class of one image, whether it is certified, up to which ε, and where its counterexample is. `remarks` are
    how it was changed to fit the network, and hints."""
    label, eps = visible(class_names[result.label]), format_eps(result.eps)
    meanings = {
        "certified": f"no change of its pixels by up to ε = {eps} changes the class",
        "falsified": f"a change of its pixels by up to ε = {eps} gives another class",
        "open": f"neither proved nor refuted at ε = {eps}; {_way_on(result)}",
        "misclassified": f"the label is {label}",
    }
    head = Text(visible(f"{path}: class {class_names[result.predicted]}, "))
    out.print(head.append(result.verdict, VERDICT_STYLES[result.verdict]).append(f": {meanings[result.verdict]}"))
    if remarks:
        say(f"  {', '.join(remarks)}", GREY)
    if result.verdict != "misclassified":
        more = "; its time ran out, and a longer --timeout may give more" if result.cut else ""
        say(f"  largest certified ε: {_radius(result.radius)}{more}", GREY)
    if written is not None and result.shown_as is not None:
        same = result.shown_as == result.label
        shown = (
            "rounded to 256 levels it is of the right class again" if same else f"class {class_names[result.shown_as]}"
        )
        say(visible(f"  counterexample: {written} ({shown})"), GREY)


def show_pictures_summary(results: Sequence[PictureResult], *, labelled: bool) -> None:
    """The verdicts of several images in one line, and what their classes are if no label was given."""
    if len(results) > 1:
        counts, radius = Counter(result.verdict for result in results), median(result.radius for result in results)
        others = "".join(f", {counts[verdict]} {verdict}" for verdict in NOT_CERTIFIED if counts[verdict])
        eps = format_eps(results[0].eps)
        say(
            f"{counts['certified']} of {len(results)} images certified at ε = {eps}{others}; "
            f"median of the largest certified ε: {_radius(radius)}",
            "bold",
        )
    if results and not labelled:
        remark("classes are what the network predicts, right or wrong; --label CLASS says the right one")


def _way_on(result: PictureResult) -> str:
    """What may decide an image that is open."""
    if result.unfinished:
        return "its time ran out, and a longer --timeout may decide it"
    return "--method auto tries more" if result.requested != "auto" else "no method of auto decides it"


def _radius(radius: float) -> str:
    """Rounded down, since nothing is certified beyond it."""
    return f"{_down(radius, 4)}, or {_down(255 * radius, 1)}/255" if radius else "none found"


def _down(value: float, digits: int) -> str:
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"
