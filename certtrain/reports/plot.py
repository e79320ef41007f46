"""Pictures of layer states and of growth as PNG files, drawn by matplotlib.

Every function that draws writes a file. It raises StorageError if the file cannot be written.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from certtrain.diagnostics.epochs import History
from certtrain.diagnostics.findings import layer_means
from certtrain.diagnostics.growth import DepthSweep, SchemeGrowth, Spread
from certtrain.diagnostics.model_states import ModelStates
from certtrain.errors import RunError
from certtrain.palette import PALETTE, SERIES, STATES
from certtrain.reports.axes import drawable, whole_decades
from certtrain.runs.epoch import LayerState
from certtrain.storage import write_atomic

MARKERS = "osD^vPX"  # one for each colour of SERIES
MOST_NAMES = 16  # with more layers than this, an axis has numbers in place of names
GRID_COLOUR = PALETTE["grid"].light
GROWTH_COLOUR, CERTIFIED_COLOUR, EPS_COLOUR = "#30588c", SERIES[0], "#7a2f8f"  # the last two are drawn over states
GROWTH_AXIS = "mean width of the bounds over the input's"

Axes = Any
PlacedLayers = Sequence[tuple[float, Sequence[LayerState]]]
"""A network's layers at each of several epochs."""


def plot_states(path: Path, models: Sequence[ModelStates], title: str) -> None:
    """Draw each layer's ReLU states as a bar, and beside it its growth; with a row of panels for each model."""
    heights = [1.0 + 0.4 * len(model.layers) for model in models]
    figure = _figure(10, 1.2 + sum(heights))
    grid = figure.subplots(len(models), 2, squeeze=False, width_ratios=(2, 1), height_ratios=heights)
    limits = whole_decades(layer.growth for model in models for layer in model.layers)
    for (states, growth), model in zip(grid, models, strict=True):
        _draw_states(states, model.layers)
        _draw_growth(growth, model.layers, limits)
        states.set_title(model.name, loc="left", fontsize=10, fontweight="bold")
    grid[-1][0].set_xlabel("share of ReLUs")
    grid[-1][1].set_xlabel(GROWTH_AXIS)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path, title)


def plot_growth(path: Path, schemes: Sequence[SchemeGrowth], title: str) -> None:
    """Draw the growth at each ReLU of the network: a line for each initialisation, with a band over its seeds.

    With BatchNorm there are two panels: the growth by the weights alone, and that in the first training step.
    """
    trained = {scheme.scheme: scheme.in_training for scheme in schemes}
    panels = [("by the weights", {scheme.scheme: scheme.by_weights for scheme in schemes})]
    if all(layers is not None for layers in trained.values()):
        panels[0] = ("by the weights (BatchNorm at its start)", panels[0][1])
        panels.append(("in training (BatchNorm on the batch)", {s: layers or [] for s, layers in trained.items()}))
    names = [layer.name for layer in schemes[0].by_weights]
    figure = _figure(5.4 * len(panels) + 0.6, 5)
    for axes, (name, lines) in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        for number, (scheme, layers) in enumerate(lines.items()):
            _draw_band(axes, range(1, len(names) + 1), [layer.growth for layer in layers], scheme, number)
        axes.set(title=name, yscale="log", xlabel="ReLU, from the input on")
        if len(names) <= MOST_NAMES:
            axes.set_xticks(range(1, len(names) + 1), names, rotation=30, ha="right", rotation_mode="anchor")
        axes.grid(axis="y", color=GRID_COLOUR)
        axes.tick_params(labelleft=True)
    figure.axes[0].set_ylabel(GROWTH_AXIS)
    figure.axes[0].legend(frameon=False)
    _save(figure, path, title)


def plot_sweep(path: Path, sweeps: Sequence[DepthSweep], title: str) -> None:
    """Draw the growth at the last ReLU by depth. The axis is logarithmic, so an exponential is a straight line."""
    figure = _figure(7.5, 5)
    axes = figure.subplots()
    for number, sweep in enumerate(sweeps):
        rate = "no width left" if sweep.rate is None else f"×{sweep.rate:.3g} a layer"
        _draw_band(axes, sweep.depths, sweep.growth, f"{sweep.scheme}: {rate}", number)
    axes.set(yscale="log", xlabel="ReLU layers", ylabel=GROWTH_AXIS, xticks=sweeps[0].depths)
    axes.grid(axis="y", color=GRID_COLOUR)
    axes.legend(frameon=False)
    _save(figure, path, title)


def plot_history(path: Path, history: History, networks: Sequence[ModelStates], titles: tuple[str, str]) -> None:
    """Draw ReLU states and growth over the epochs, as they were trained; beside it the run's networks at one ε."""
    if not history.epochs:
        raise RunError("no epoch of the run is finished yet, so there is nothing to draw; leave --plot out")
    columns: list[tuple[str, PlacedLayers]] = [(titles[0], [(epoch.epoch, epoch.layers) for epoch in history.epochs])]
    if placed := [(network.epoch, network.layers) for network in networks if network.epoch is not None]:
        columns.append((titles[1], placed))
    figure = _figure(5.5 * len(columns) + 1.5, 7.5)
    grid = figure.subplots(2, len(columns), squeeze=False, sharey="row")
    for number, (title, epochs) in enumerate(columns):
        _draw_shares(grid[0][number], epochs, separate=number > 0)
        _draw_growths(grid[1][number], epochs, separate=number > 0)
        grid[0][number].set_title(_wrapped(title, 60), fontsize=10)
    _draw_progress(grid[0][0], history)
    grid[0][0].set_ylabel("mean share of the layers' ReLUs")
    grid[1][0].set_ylabel(GROWTH_AXIS)
    for row in grid:
        handles, labels = row[0].get_legend_handles_labels()
        row[-1].legend(handles, labels, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path, "")


# --- parts of pictures -----------------------------------------------------------------------------------


def _draw_states(axes: Axes, layers: Sequence[LayerState]) -> None:
    places, left = range(len(layers)), [0.0] * len(layers)
    for state in STATES:
        shares = [layer.to_dict()[state] for layer in layers]
        axes.barh(places, shares, left=left, color=PALETTE[state].light, label=state)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set(xlim=(0, 1), yticks=places, yticklabels=[layer.name for layer in layers], ylim=(len(layers) - 0.5, -0.5))


def _draw_growth(axes: Axes, layers: Sequence[LayerState], limits: tuple[float, float]) -> None:
    axes.plot([drawable(layer.growth, log=True) for layer in layers], range(len(layers)), "o-", color=GROWTH_COLOUR)
    axes.set(xscale="log", xlim=limits, yticks=[], ylim=(len(layers) - 0.5, -0.5))
    axes.grid(axis="x", color=GRID_COLOUR)


def _draw_band(axes: Axes, places: Sequence[int], growth: Sequence[Spread], label: str, number: int) -> None:
    """Draw the means as a line, and a band from the smallest to the largest seed; lines that coincide stay visible."""
    colour, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
    means = [drawable(g.mean, log=True) for g in growth]
    lowest, highest = [drawable(g.min, log=True) for g in growth], [drawable(g.max, log=True) for g in growth]
    axes.fill_between(places, lowest, highest, color=colour, alpha=0.2, lw=0)
    size = 9 - 1.5 * (number % 4)
    axes.plot(places, means, marker=marker, markersize=size, color=colour, label=label, lw=2.5 - 0.5 * (number % 4))


def _draw_shares(axes: Axes, epochs: PlacedLayers, *, separate: bool) -> None:
    """Draw means over the layers, stacked: as areas, or as bars if `separate`. Dead units are part of the inactive."""
    places, means = [place for place, _ in epochs], [layer_means(layers) for _, layers in epochs]
    separate = separate or len(epochs) == 1  # an area needs two points
    width, below = max(0.8, 0.03 * (places[-1] - places[0])), [0.0] * len(epochs)
    for state in STATES:
        above = [b + (mean.to_dict()[state] or 0.0) for b, mean in zip(below, means, strict=True)]
        if separate:
            heights = [a - b for a, b in zip(above, below, strict=True)]
            axes.bar(places, heights, width, bottom=below, color=PALETTE[state].light, label=state)
        else:
            axes.fill_between(places, below, above, color=PALETTE[state].light, label=state, lw=0)
        below = above
    living = [1 - (mean.dead or 0.0) for mean in means]
    axes.plot(places, living, ":k", marker="_" if separate else "", label="dead (from the top)")
    axes.set(ylim=(0, 1))
    _number_epochs(axes, places, width if separate else 0.0)


def _draw_growths(axes: Axes, epochs: PlacedLayers, *, separate: bool) -> None:
    """Draw a line for each layer, from dark near the input to light."""
    from matplotlib import colormaps

    places, names = [place for place, _ in epochs], [layer.name for layer in epochs[0][1]]
    for number, name in enumerate(names):
        colour = colormaps["viridis"](0.85 * number / max(len(names) - 1, 1))
        growth = [drawable(layers[number].growth, log=True) for _, layers in epochs]
        axes.plot(places, growth, "o:" if separate else ".-", color=colour, label=name)
    axes.set(yscale="log", xlabel="epoch")
    axes.grid(axis="y", color=GRID_COLOUR)
    _number_epochs(axes, places, max(0.8, 0.03 * (places[-1] - places[0])) if separate else 0.0)


def _number_epochs(axes: Axes, places: Sequence[float], margin: float) -> None:
    from matplotlib.ticker import MaxNLocator

    margin = margin if places[-1] > places[0] else 1.0
    axes.set_xlim(places[0] - margin, places[-1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelleft=True)


def _draw_progress(axes: Axes, history: History) -> None:
    """Draw certified accuracy, and ε as a share of its largest value, over the states."""
    places, radii = [epoch.epoch for epoch in history.epochs], [epoch.eps for epoch in history.epochs]
    certified, largest = [epoch.certified_accuracy for epoch in history.epochs], max(radii)
    axes.plot(places, certified, color=CERTIFIED_COLOUR, label="certified")
    if largest > 0:
        shares = [eps / largest for eps in radii]
        axes.plot(places, shares, "--", color=EPS_COLOUR, label=f"ε / {largest:.3g}")


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _wrapped(text: str, letters: int) -> str:
    """The text in lines of at most `letters` letters; no line ends within an equation."""
    return "\n".join(wrap(text.replace(" = ", "\u00a0=\u00a0"), letters))


def _save(figure: Any, path: Path, title: str) -> None:
    if title:
        figure.suptitle(_wrapped(title, int(12 * figure.get_figwidth())), fontsize=11)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    write_atomic(path, data.getvalue())
