"""What `claims.py` has found, as a Markdown table and as one HTML page with its pictures.

python benchmarks/claims_report.py --data-dir DATA --folder claims --page claims.html
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from claims import COMMON, METHODS, NETWORK, RADII, SEEDS, WARM_UPS, Run, read

from certtrain import html
from certtrain.curves import Curve, Epochs, draw_curves, in_own_style, svg
from certtrain.data import load_images
from certtrain.growth import DepthSweep, sweep_depth
from certtrain.html import Html
from certtrain.preset import Scheme, load_preset
from certtrain.storage import write_atomic

COLOURS = ("#9096a0", "#1c1e21", "#d9a521", "#8a5a00", "#23894c", "#2f6fc4", "#cc3a2b", "#8a4fbf", "#4cc2c2")
SCHEMES: tuple[Scheme, ...] = ("ibp", "kaiming", "xavier", "orthogonal")
DEPTHS = (2, 4, 8, 16, 32)
STATES = {"dead": "units that are inactive for every example", "unstable": "unstable ReLUs", "active": "active ReLUs"}


@dataclass(frozen=True)
class Found:
    """All results that are there, by run."""

    records: dict[Run, dict[str, Any]]

    def of(self, method: str, warm_up: str, eps: float) -> list[dict[str, Any]]:
        """The records of one cell of the table, by seed."""
        runs = sorted((run for run in self.records if run == Run(method, warm_up, eps, run.seed)), key=lambda r: r.seed)
        return [self.records[run] for run in runs]


# --- the table -------------------------------------------------------------------------------------------


def cell(records: list[dict[str, Any]], figure: str) -> str:
    """Mean and standard deviation in per cent of the error; how many runs have failed."""
    errors = [100 * (1 - record["results"][figure]) for record in records if record["results"]]
    failed = len(records) - len(errors)
    lost = f" ({failed} failed)" if failed else ""
    if not errors:
        return f"–{lost}"
    spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    return f"{statistics.mean(errors):.2f}{spread}{lost}"


def header() -> list[str]:
    """One column of natural and one of verified error for each warm-up."""
    return ["method", *(f"{figure} error %, {warm_up}" for warm_up in WARM_UPS for figure in ("natural", "verified"))]


def rows(found: Found, eps: float) -> Iterator[list[str]]:
    """A row for each method that has results."""
    for method in METHODS:
        cells = [found.of(method, warm_up, eps) for warm_up in WARM_UPS]
        if any(cells):
            figures = ("natural_accuracy", "certified_accuracy")
            yield [method, *(cell(records, figure) for records in cells for figure in figures)]


def markdown(found: Found) -> str:
    """The tables of all radii."""
    lines = []
    for eps in RADII:
        seeds = sorted({run.seed for run in found.records if run.eps == eps})
        if not seeds:
            continue
        lines += [f"\nε = {eps}, seeds {', '.join(map(str, seeds))}\n", f"| {' | '.join(header())} |"]
        lines += ["|---" * len(header()) + "|", *(f"| {' | '.join(row)} |" for row in rows(found, eps))]
        lines += ["", f"| {' | '.join(state_header())} |", "|---" * len(state_header()) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in state_rows(found, eps)]
    return "\n".join(lines)


def state_header() -> list[str]:
    """One column for each state and warm-up."""
    return ["method", *(f"{state} %, {warm_up}" for warm_up in WARM_UPS for state in STATES)]


def state_rows(found: Found, eps: float) -> Iterator[list[str]]:
    """The ReLUs' states at the end of the training: means over layers and seeds, in per cent."""
    for method in METHODS:
        cells = [found.of(method, warm_up, eps) for warm_up in WARM_UPS]
        if any(cells):
            yield [method, *(at_the_end(records, state) for records in cells for state in STATES)]


def at_the_end(records: list[dict[str, Any]], state: str) -> str:
    """The mean of a share over the last epochs' layers."""
    values = [layer_mean(state)(record["epochs"][-1]) for record in records if record["results"]]
    return f"{100 * statistics.mean(values):.1f}" if values else "–"


# --- growth at initialisation ---------------------------------------------------------------------------


def growth(data_dir: Path | None) -> list[DepthSweep]:
    """Mean width at the last ReLU over the input's, against depth, before any training."""
    images = load_images("mnist", "train", data_dir=data_dir)
    preset = load_preset("mnist-cpu", {**NETWORK, "eps.max": RADII[0]})
    return sweep_depth(preset, images, SCHEMES, SEEDS, DEPTHS)


def growth_markdown(sweeps: list[DepthSweep]) -> str:
    """A row for each scheme."""
    lines = ["\ngrowth of the bounds before training, against depth\n"]
    lines.append(f"| scheme | {' | '.join(f'{depth} layers' for depth in DEPTHS)} | a layer |")
    lines.append("|---" * (len(DEPTHS) + 2) + "|")
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in growth_rows(sweeps))])


def growth_rows(sweeps: list[DepthSweep]) -> Iterator[list[str]]:
    """Scheme, mean growth at each depth, the rate a layer."""
    for sweep in sweeps:
        yield [sweep.scheme, *(f"{spread.mean:.3g}" for spread in sweep.growth), f"×{html.number(sweep.rate)}"]


@in_own_style
def growth_picture(sweeps: list[DepthSweep]) -> Html:
    """One line for each scheme; on the logarithmic axis an exponential is straight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for sweep, colour in zip(sweeps, COLOURS[4:], strict=False):
        axes.plot(DEPTHS, [spread.mean for spread in sweep.growth], "o-", color=colour, label=sweep.scheme)
    axes.set(yscale="log", xlabel="layers", ylabel="mean width over the input's", xticks=DEPTHS)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+", "e"))
    axes.legend()
    return svg(figure, "growth", "growth of the bounds against depth")


# --- the pictures ----------------------------------------------------------------------------------------


def mean_curve(records: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> list[float]:
    """The mean over seeds of a value of each epoch, of the runs that went to their end."""
    whole = [[value(epoch) for epoch in record["epochs"]] for record in records if record["results"]]
    return [statistics.mean(values) for values in zip(*whole, strict=True)]


def picture(found: Found, name: str, eps: float, warm_up: str, value: Callable[[dict[str, Any]], float]) -> Html:
    """One line for each method, over the epochs."""
    settings = WARM_UPS[warm_up]
    ramp = (settings["eps.start"], settings["eps.start"] + settings["eps.length"] - 1)
    axis = Epochs(range(1, COMMON["train.epochs"] + 1), ramp)
    curves = []
    for method, colour in zip(METHODS, COLOURS, strict=True):
        if values := mean_curve(found.of(method, warm_up, eps), value):
            curves.append(Curve(short(method), values, colour, dashed=" with" in method))
    return draw_curves(f"{name}-{warm_up}-{round(100 * eps)}", axis, curves, label=name, percent=True)


def short(method: str) -> str:
    """For a legend: "fast − balance", "CROWN-IBP + BN"."""
    words = {" without ": " − ", " with ": " + ", "IBP initialisation": "init", "BatchNorm": "BN"}
    for long, brief in words.items():
        method = method.replace(long, brief)
    return method


def layer_mean(state: str) -> Callable[[dict[str, Any]], float]:
    """The mean of a share over the layers of an epoch."""
    return lambda epoch: statistics.mean(layer[state] for layer in epoch["layers"])


def blocks(found: Found, sweeps: list[DepthSweep]) -> Iterator[Html]:
    """The page's content."""
    yield html.heading("Before training: growth against depth")
    yield html.table(("scheme", *(f"{depth} layers" for depth in DEPTHS), "a layer"), growth_rows(sweeps))
    yield html.figure(growth_picture(sweeps), "Mean width of the bounds over the input's", "Mean of three seeds.")
    yield html.heading("Training")
    yield html.paragraph(
        "MNIST, 10,000 training examples, a network of four convolutions and two linear layers; errors on 2,500 "
        "held-out examples, mean and standard deviation over seeds. The short warm-up takes 4 epochs of 12, the long "
        "one 8 of 12; both begin after one natural epoch."
    )
    for eps in RADII:
        table = list(rows(found, eps))
        if not table:
            continue
        yield html.heading(f"ε = {eps}")
        yield html.table(header(), table)
        yield html.table(state_header(), state_rows(found, eps))
        yield html.gallery(figures(found, eps))


def figures(found: Found, eps: float) -> Iterator[Html]:
    """Verified error and ReLU states over the epochs."""
    for warm_up in WARM_UPS:
        drawn = picture(found, "verified error", eps, warm_up, lambda e: 1 - e["validation_certified_accuracy"])
        yield html.figure(drawn, f"Verified error, {warm_up} warm-up", "At the full radius in every epoch.")
    for (state, meaning), warm_up in product(STATES.items(), WARM_UPS):
        drawn = picture(found, state, eps, warm_up, layer_mean(state))
        yield html.figure(
            drawn,
            f"{state}, {warm_up} warm-up",
            f"Share of {meaning} of the first 1,000 training images, mean over the layers.",
        )


def main() -> None:
    """Parse the arguments, print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("claims"))
    parser.add_argument("--page", type=Path, default=Path("claims.html"))
    arguments = parser.parse_args()
    found = Found(read(arguments.folder))
    sweeps = growth(arguments.data_dir)
    print(growth_markdown(sweeps))
    print(markdown(found))
    print("\nerrors: mean ± standard deviation over the seeds; states: means over layers and seeds, of 1,000 images")
    total = len(METHODS) * len(WARM_UPS) * len(RADII) * len(SEEDS)
    print(f"\n{len(found.records)} of {total} runs are there")
    write_atomic(arguments.page, html.page("The paper's claims at small scale", blocks(found, sweeps)).encode())


if __name__ == "__main__":
    main()
