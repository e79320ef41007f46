"""The results of `claims.py`, as Markdown and as one HTML page with pictures, and whether they support the claims.

python benchmarks/claims_report.py --data-dir DATA --folder claims --page claims.html
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claims import read
from claims_found import COLLAPSED, STATES, Cell, Found
from claims_judge import RULE, Claim, claims, judge_growth
from claims_pictures import error_picture, growth_picture, state_picture
from claims_plan import MNIST, SEEDS, Plan, Run, read_plan, setting

from certtrain.data import load_images
from certtrain.diagnostics.growth import DepthSweep, sweep_depth
from certtrain.errors import CerttrainError
from certtrain.formats import number
from certtrain.reports.pages import Picture, Table, render_page
from certtrain.spec.preset import Scheme
from certtrain.storage import write_atomic

SCHEMES: tuple[Scheme, ...] = ("ibp", "kaiming", "xavier", "orthogonal")
DEPTHS = (2, 4, 8, 16, 32)
FIGURES = {"natural": "natural_accuracy", "verified": "certified_accuracy"}
REMARK = "Mean ± standard deviation over the seeds."
STATES_REMARK = (
    "States at the end of the training, over 1,000 training images: means over the layers and the seeds. "
    "Dead units are inactive for every image, and so a part of the inactive. "
    "A star: fewer seeds than the rest, or failed runs. "
    f"A dagger ({COLLAPSED}): some of the runs have collapsed."
)


# --- tables ----------------------------------------------------------------------------------------------


def shown(cell: Cell, values: Sequence[float], seeds: int) -> str:
    """Mean and standard deviation, and how many of `seeds` are missing, failed or collapsed, if any."""
    words = cell.remark(seeds)
    mark = f" ({words})" if words else ""
    if not values:
        return f"–{mark}"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}{mark}"


def error_table(found: Found, eps: float) -> list[list[str]]:
    """The header, then the natural and verified errors of each method, by warm-up."""
    header = ["method", *(f"{figure} error %, {warm_up}" for warm_up in found.plan.warm_ups for figure in FIGURES)]
    seeds = found.most_seeds(eps)
    rows = [[method] for method in found.methods(eps)]
    for row in rows:
        for warm_up in found.plan.warm_ups:
            cell = found.cell(row[0], warm_up, eps)
            row += [shown(cell, cell.errors(accuracy), seeds) for accuracy in FIGURES.values()]
    return [header, *rows]


def state_table(found: Found, eps: float) -> list[list[str]]:
    """The header, then the ReLU states of each method, by warm-up; marked if runs are missing or have collapsed."""
    header = ["method", *(f"{state} %, {warm_up}" for warm_up in found.plan.warm_ups for state in STATES)]
    seeds = found.most_seeds(eps)
    rows = [[method] for method in found.methods(eps)]
    for row in rows:
        for warm_up in found.plan.warm_ups:
            cell = found.cell(row[0], warm_up, eps)
            star = "*" * bool(cell.missing(seeds)) + COLLAPSED * bool(cell.collapsed)
            shares = [cell.shares(state) for state in STATES]
            row += [f"{statistics.fmean(values):.1f}{star}" if values else "–" for values in shares]
    return [header, *rows]


def claim_table(claim: Claim) -> list[list[str]]:
    """The header, then the differences of each part, by setting."""
    rows = [[part.method, *map(str, part.comparisons.values()), part.verdict] for part in claim.parts]
    return [["method", *claim.parts[0].comparisons, "verdict"], *rows]


def growth_table(sweeps: Sequence[DepthSweep]) -> list[list[str]]:
    """The header, then each initialisation with its mean growth at each depth, and the rate per layer."""
    rows = [
        [sweep.scheme, *(f"{spread.mean:.3g}" for spread in sweep.growth), f"×{number(sweep.rate)}"] for sweep in sweeps
    ]
    return [["scheme", *(f"{depth} layers" for depth in DEPTHS), "a layer"], *rows]


def growth(plan: Plan, data_dir: Path | None) -> list[DepthSweep]:
    """The growth at the last ReLU by depth, before any training."""
    preset = plan.preset_of(Run("fast", "short", plan.radii[0], SEEDS[0]))
    images = load_images(preset.data.name, "train", data_dir=data_dir)
    return sweep_depth(preset, images, SCHEMES, SEEDS, DEPTHS)


# --- Markdown --------------------------------------------------------------------------------------------


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the header."""
    header, *rows = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([header, "|---" * len(table[0]) + "|", *rows])


def markdown(found: Found, sweeps: Sequence[DepthSweep]) -> str:
    """Everything but the pictures, as Markdown."""
    judged = claims(found)
    sentences = [judge_growth(sweeps), *(claim.sentence for claim in judged)]
    parts = [
        *([] if found.plan == MNIST else found.plan.remarks),
        f"{found.summary}.",
        *filter(None, [found.collapse]),
        "\n".join(f"{n}. {sentence}" for n, sentence in enumerate(sentences, start=1)),
        RULE,
    ]
    for claim in judged:
        parts += [f"{claim.topic}: “{claim.statement}”.", markdown_table(claim_table(claim))]
    parts += ["Growth of the bounds before training, against depth:", markdown_table(growth_table(sweeps))]
    for eps in filter(found.methods, found.plan.radii):
        parts += [f"{setting(eps)}. {REMARK}", markdown_table(error_table(found, eps))]
        parts += [STATES_REMARK, markdown_table(state_table(found, eps))]
    return "\n\n".join(parts)


# --- the page --------------------------------------------------------------------------------------------


def page(found: Found, sweeps: Sequence[DepthSweep]) -> str:
    """Everything, as HTML."""
    judged = claims(found)
    picture = Picture(growth_picture(sweeps), "Mean width of the bounds over the input's", "Mean of three seeds.")
    return render_page(
        "claims.html",
        Path(__file__).parent,
        title="The paper's claims at small scale",
        remarks=found.plan.remarks,
        summary=f"{found.summary}. {found.collapse}".strip(),
        rule=RULE,
        claims=[sentence_parts(judge_growth(sweeps)), *map(claim_parts, judged)],
        growth_table=as_table(growth_table(sweeps)),
        growth_picture=picture,
        error_remark=REMARK,
        states_remark=STATES_REMARK,
        radii=[radius_parts(found, eps) for eps in filter(found.methods, found.plan.radii)],
    )


def as_table(rows: Sequence[Sequence[str]]) -> Table:
    """A table from rows, of which the first is the header."""
    return Table(rows[0], rows[1:])


def sentence_parts(sentence: str) -> dict[str, Any]:
    """The part of a sentence before its colon, for a heading, and the rest."""
    topic, _, words = sentence.partition(": ")
    return {"topic": topic, "words": words, "table": None}


def claim_parts(claim: Claim) -> dict[str, Any]:
    """The sentence of a claim, and its table."""
    return sentence_parts(claim.sentence) | {"table": as_table(claim_table(claim))}


def radius_parts(found: Found, eps: float) -> dict[str, Any]:
    """The tables and pictures of one radius."""
    return {
        "setting": setting(eps),
        "errors": as_table(error_table(found, eps)),
        "error_picture": Picture(
            error_picture(found, eps),
            f"Verified error over the epochs, {setting(eps)}",
            "On held-out examples at the full radius in every epoch: mean over the seeds, and a band from the smallest "
            "to the largest. The dotted lines are the ends of the warm-ups. "
            f"With a method ({COLLAPSED}): the number of its runs that have collapsed.",
        ),
        "states": as_table(state_table(found, eps)),
        "state_pictures": [
            Picture(
                state_picture(found, eps, warm_up),
                f"States of the ReLUs over the epochs, {warm_up} warm-up, {setting(eps)}",
                "At each epoch's ε: means over layers and seeds. The dotted line is the end of the warm-up.",
            )
            for warm_up in found.plan.warm_ups
        ],
    }


def results(folder: Path) -> Found:
    """The results in the folder; exits if there are none."""
    if not folder.is_dir():
        raise SystemExit(f"there is no folder {folder}; claims.py run --folder {folder} makes it")
    plan = read_plan(folder)
    found = Found(read(folder, plan), plan)
    if not found.records:
        raise SystemExit(f"{folder} holds no results; claims.py run --folder {folder} makes them")
    return found


def main() -> None:
    """Parse the arguments, print the tables, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("claims"))
    parser.add_argument("--page", type=Path, default=Path("claims.html"))
    arguments = parser.parse_args()
    found = results(arguments.folder)
    try:
        sweeps = growth(found.plan, arguments.data_dir)
    except CerttrainError as error:
        raise SystemExit(f"error: {error}") from None
    print(markdown(found, sweeps))
    write_atomic(arguments.page, page(found, sweeps).encode())


if __name__ == "__main__":
    main()
