"""The pictures on the page of the claims, with a small picture for each method, so that no line hides another."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from statistics import fmean
from typing import Any

from claims_found import COLLAPSED, Cell, Found, layer_mean, short
from claims_plan import Plan, setting

from certtrain.diagnostics.growth import DepthSweep
from certtrain.palette import PALETTE
from certtrain.reports.svg import INK, MUTED, Svg, drawing, in_own_style

COLOURS = {"short": PALETTE["falsified"].light, "long": PALETTE["natural"].light}
DASHES = {"short": "-", "long": "--"}
LINES = ("falsified", "natural", "tightness", "certified")  # colours of the initialisations
STACK = ("active", "unstable", "inactive", "dead")
TICKS = 6  # the most epochs with a label
COLUMNS = 3
WIDTH, ROW, LEGEND = 12.5, 2.3, 0.5  # inches


@in_own_style
def growth_picture(sweeps: Sequence[DepthSweep]) -> Svg:
    """One line for each initialisation, on a logarithmic axis, where an exponential is a straight line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for sweep, colour in zip(sweeps, LINES, strict=True):
        axes.plot(
            sweep.depths,
            [spread.mean for spread in sweep.growth],
            "o-",
            color=PALETTE[colour].light,
            label=sweep.scheme,
        )
    axes.set(yscale="log", xlabel="layers", ylabel="mean width over the input's", xticks=sweeps[0].depths)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+0", "e").replace("e+", "e"))
    axes.legend()
    return drawing(figure, "growth", "growth of the bounds against depth")


@in_own_style
def error_picture(found: Found, eps: float) -> Svg:
    """Verified error over the epochs for both warm-ups: the mean, and a band from the smallest to the largest seed."""
    name, plan, epochs = _name("verified-error", eps), found.plan, _epochs(found.plan)

    def draw(axes: Any, method: str) -> dict[str, Cell]:
        cells = {warm_up: found.cell(method, warm_up, eps) for warm_up in plan.warm_ups}
        for warm_up, cell in cells.items():
            reference = found.cell("fast", warm_up, eps).by_epoch(_verified_error)
            if method != "fast" and reference:
                axes.plot(epochs, [fmean(v) for v in reference], DASHES[warm_up], color=MUTED, linewidth=1)
            if values := cell.by_epoch(_verified_error):
                axes.fill_between(
                    epochs, *_smallest_and_largest(values), color=COLOURS[warm_up], alpha=0.2, linewidth=0
                )
                axes.plot(epochs, [fmean(v) for v in values], DASHES[warm_up], color=COLOURS[warm_up], linewidth=1.8)
                axes.axvline(_ramp_end(plan, warm_up), color=COLOURS[warm_up], linewidth=0.8, linestyle=":")
        return cells

    handles = [_line(COLOURS[name], DASHES[name], f"{name} warm-up") for name in plan.warm_ups]
    handles += [_line(MUTED, "-", "fast, for comparison")]
    return _panels(name, f"verified error over epochs, {setting(eps)}", found, eps, draw, handles)


@in_own_style
def state_picture(found: Found, eps: float, warm_up: str) -> Svg:
    """The shares of ReLU states over the epochs, as a stack; dead units are a part of the inactive."""
    name, plan, epochs = _name(f"states-{warm_up}", eps), found.plan, _epochs(found.plan)

    def draw(axes: Any, method: str) -> dict[str, Cell]:
        cell = found.cell(method, warm_up, eps)
        below = [0.0] * len(epochs)
        for state, values in _stack(cell).items():
            above = [a + b for a, b in zip(below, values, strict=True)]
            edges = [0.5, *(epoch + 0.5 for epoch in epochs)]
            axes.stairs(above, edges, baseline=below, fill=True, color=PALETTE[state].light, linewidth=0)
            below = above
        if cell.whole:
            axes.axvline(_ramp_end(plan, warm_up), color=INK, linewidth=0.8, linestyle=":")
        return {warm_up: cell}

    label = f"states of ReLUs over epochs, {warm_up} warm-up, {setting(eps)}"
    return _panels(name, label, found, eps, draw, [_patch(state) for state in STACK])


def _panels(
    name: str, label: str, found: Found, eps: float, draw: Callable[[Any, str], dict[str, Cell]], handles: Sequence[Any]
) -> Svg:
    """A small picture for each method, all with the same axes; `draw` returns the cells that it draws, by warm-up."""
    from matplotlib.figure import Figure

    methods, epochs, seeds = found.plan.methods, _epochs(found.plan), found.most_seeds(eps)
    rows, every = -(-len(methods) // COLUMNS), max(2, -(-len(epochs) // TICKS))
    figure = Figure(figsize=(WIDTH, ROW * rows + LEGEND), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True).flat
    for axes, method in zip_longest(grid, methods):
        if method is None:
            axes.set_axis_off()
            continue
        axes.set(
            xlim=(epochs[0] - 0.5, epochs[-1] + 0.5),
            ylim=(0, 1.02),
            xticks=epochs[every - 1 :: every],
            yticks=(0, 0.25, 0.5, 0.75, 1),
        )
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        axes.set_title(f"{short(method)}{_remark(draw(axes, method), seeds)}", fontsize=12, loc="left", color=INK)
    for axes in figure.axes[-COLUMNS:]:
        axes.set_xlabel("epoch")
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return drawing(figure, name, label)


def _epochs(plan: Plan) -> range:
    return range(1, plan.epochs + 1)


def _name(what: str, eps: float) -> str:
    """The name of a picture, which no other picture on the page has."""
    return f"{what}-{eps:g}".replace(".", "-")


def _remark(cells: dict[str, Cell], seeds: int) -> str:
    """The missing and the collapsed runs of a panel, in words."""
    daggers = {name: f"{len(cell.collapsed)}{COLLAPSED}" * bool(cell.collapsed) for name, cell in cells.items()}
    parts = {name: [cell.missing(seeds), daggers[name]] for name, cell in cells.items()}
    remarks = [f"{name}: {', '.join(filter(None, words))}" for name, words in parts.items() if any(words)]
    return f" ({'; '.join(remarks)})" if remarks else ""


def _verified_error(epoch: dict[str, Any]) -> float:
    return float(1 - epoch["validation_certified_accuracy"])


def _smallest_and_largest(values: Sequence[tuple[float, ...]]) -> tuple[list[float], list[float]]:
    return [min(seeds) for seeds in values], [max(seeds) for seeds in values]


def _stack(cell: Cell) -> dict[str, list[float]]:
    """Means over seeds and layers that add up to one; the inactive without the dead, and the dead."""
    means = {state: [fmean(seeds) for seeds in cell.by_epoch(layer_mean(state))] for state in STACK}
    means["inactive"] = [all_ - dead for all_, dead in zip(means["inactive"], means["dead"], strict=True)]
    return means if cell.whole else {}


def _ramp_end(plan: Plan, warm_up: str) -> float:
    """The place on the axis where the epochs with the full radius begin."""
    return float(plan.warm_ups[warm_up]["eps.start"] + plan.warm_ups[warm_up]["eps.length"] - 0.5)


def _line(colour: str, dashes: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=dashes, linewidth=1.8, label=label)


def _patch(state: str) -> Any:
    from matplotlib.patches import Patch

    label = {"inactive": "inactive, not dead", "dead": "dead: inactive for every example"}.get(state, state)
    return Patch(facecolor=PALETTE[state].light, label=label)
