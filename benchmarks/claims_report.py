"""What `claims.py` has found, as Markdown and as one HTML page with its pictures, and whether the claims show.

python benchmarks/claims_report.py --data-dir DATA --folder claims --page claims.html
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from claims import read
from claims_found import COLLAPSED, STATES, Cell, Found
from claims_judge import RULE, Claim, claims, judge_growth
from claims_pictures import error_picture, growth_picture, state_picture
from claims_plan import MNIST, SEEDS, Plan, Run, read_plan, setting

from certtrain.data import load_images
from certtrain.diagnostics.growth import DepthSweep, sweep_depth
from certtrain.errors import CerttrainError
from certtrain.formats import number
from certtrain.reports import html
from certtrain.reports.html import Html
from certtrain.spec.preset import Scheme
from certtrain.storage import write_atomic

SCHEMES: tuple[Scheme, ...] = ("ibp", "kaiming", "xavier", "orthogonal")
DEPTHS = (2, 4, 8, 16, 32)
FIGURES = {"natural": "natural_accuracy", "verified": "certified_accuracy"}
REMARK = "Mean ± standard deviation over the seeds."
STATES_REMARK = (
    "States at the end of the training, of 1,000 training images: means over the layers, and over the seeds. "
    "Dead units are inactive for every image, and so a part of the inactive. "
    "A star: fewer seeds than the rest, or failed runs. "
    f"A dagger ({COLLAPSED}): runs that have collapsed are among them."
)


# --- tables ----------------------------------------------------------------------------------------------


def shown(cell: Cell, values: Sequence[float], seeds: int) -> str:
    """Mean and standard deviation; where seeds are fewer than `seeds`, have failed or have collapsed, how many."""
    words = cell.remark(seeds)
    mark = f" ({words})" if words else ""
    if not values:
        return f"–{mark}"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}{mark}"


def error_table(found: Found, eps: float) -> list[list[str]]:
    """Header, then natural and verified error of each method, by warm-up."""
    header = ["method", *(f"{figure} error %, {warm_up}" for warm_up in found.plan.warm_ups for figure in FIGURES)]
    seeds = found.most_seeds(eps)
    rows = [[method] for method in found.methods(eps)]
    for row in rows:
        for warm_up in found.plan.warm_ups:
            cell = found.cell(row[0], warm_up, eps)
            row += [shown(cell, cell.errors(accuracy), seeds) for accuracy in FIGURES.values()]
    return [header, *rows]


def state_table(found: Found, eps: float) -> list[list[str]]:
    """Header, then the states of each method's ReLUs, by warm-up; marked where seeds are missing or have collapsed."""
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
    """Header, then the differences of each part, by setting."""
    rows = [[part.method, *map(str, part.comparisons.values()), part.verdict] for part in claim.parts]
    return [["method", *claim.parts[0].comparisons, "verdict"], *rows]


def growth_table(sweeps: Sequence[DepthSweep]) -> list[list[str]]:
    """Header, then scheme, mean growth at each depth, the rate a layer."""
    rows = [
        [sweep.scheme, *(f"{spread.mean:.3g}" for spread in sweep.growth), f"×{number(sweep.rate)}"] for sweep in sweeps
    ]
    return [["scheme", *(f"{depth} layers" for depth in DEPTHS), "a layer"], *rows]


def growth(plan: Plan, data_dir: Path | None) -> list[DepthSweep]:
    """Mean width at the last ReLU over the input's, against depth, before any training."""
    preset = plan.preset_of(Run("fast", "short", plan.radii[0], SEEDS[0]))
    images = load_images(preset.data.name, "train", data_dir=data_dir)
    return sweep_depth(preset, images, SCHEMES, SEEDS, DEPTHS)


# --- as Markdown -----------------------------------------------------------------------------------------


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """The lines of a table; the first row is its header."""
    header, *rows = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([header, "|---" * len(table[0]) + "|", *rows])


def markdown(found: Found, sweeps: Sequence[DepthSweep]) -> str:
    """Everything but the pictures."""
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


# --- as a page -------------------------------------------------------------------------------------------


def blocks(found: Found, sweeps: Sequence[DepthSweep]) -> Iterator[Html]:
    """The page's content."""
    for remark in found.plan.remarks:
        yield html.paragraph(remark)
    yield html.note(f"{found.summary}. {found.collapse}".strip())
    yield html.heading("What the results say")
    yield html.paragraph(RULE)
    yield from under_heading(judge_growth(sweeps))
    for claim in claims(found):
        yield from under_heading(claim.sentence)
        header, *rows = claim_table(claim)
        yield html.details("The differences that this rests on", [html.table(header, rows)])
    yield html.heading("Before training: growth against depth")
    header, *rows = growth_table(sweeps)
    yield html.table(header, rows)
    yield html.gallery(
        [html.figure(growth_picture(sweeps), "Mean width of the bounds over the input's", "Mean of three seeds.")]
    )
    for eps in filter(found.methods, found.plan.radii):
        yield from training_blocks(found, eps)


def under_heading(sentence: str) -> Iterator[Html]:
    """What a sentence says before its colon as a heading, and the rest below it."""
    topic, _, rest = sentence.partition(": ")
    yield html.heading(topic, level=3)
    yield html.paragraph(rest)


def training_blocks(found: Found, eps: float) -> Iterator[Html]:
    """Tables and pictures of one radius."""
    yield html.heading(f"Training at {setting(eps)}")
    header, *rows = error_table(found, eps)
    yield html.table(header, rows)
    yield html.paragraph(REMARK)
    yield html.figure(
        error_picture(found, eps),
        f"Verified error over the epochs, {setting(eps)}",
        "On held-out examples at the full radius in every epoch: mean over the seeds, and a band from the least to the "
        "greatest. The dotted lines are the ends of the warm-ups. "
        f"By a method ({COLLAPSED}): its runs that have collapsed.",
    )
    header, *rows = state_table(found, eps)
    yield html.table(header, rows)
    yield html.paragraph(STATES_REMARK)
    for warm_up in found.plan.warm_ups:
        yield html.figure(
            state_picture(found, eps, warm_up),
            f"States of the ReLUs over the epochs, {warm_up} warm-up, {setting(eps)}",
            "At each epoch's ε: means over layers and seeds. The dotted line is the end of the warm-up.",
        )


def results(folder: Path) -> Found:
    """What is in the folder; nothing there is an error."""
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
    write_atomic(arguments.page, html.page("The paper's claims at small scale", blocks(found, sweeps)).encode())


if __name__ == "__main__":
    main()
