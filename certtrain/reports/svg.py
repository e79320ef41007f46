"""Line drawings as SVG for an HTML page, by matplotlib, which is loaded only when it is used.

The same numbers give the same bytes. Text stays text, colours are variables of
the page, and ids contain the drawing's name, so that many drawings fit on one page.
"""

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

from certtrain.palette import PALETTE
from certtrain.reports.axes import drawable, from_zero, whole_decades

_P = ParamSpec("_P")
Series = Sequence[float | None]

WIDTH, HEIGHT = 360, 210  # points, without the legend
WIDE, HIGH = 840, 380  # points, of a picture that is alone on its page
LEFT, RIGHT, BOTTOM, TOP = 56, 8, 38, 10  # margins, in points
LEGEND_ROW = 16  # points
PAPER, INK, MUTED, GRID, SHADE = (PALETTE[name].light for name in ("paper", "ink", "muted", "grid", "shade"))
MARKED = 12  # with at most this many epochs, each has a dot

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # it comes with matplotlib; the page's own font is hardly wider
    "font.size": 11.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "legend.fontsize": 11.0,
}


@dataclass(frozen=True)
class Svg:
    """A drawing: its label for screen readers, its size in points, and the markup inside its svg element.

    The markup is matplotlib's, which escapes all text in it.
    """

    label: str
    width: float
    height: float
    markup: str


@dataclass(frozen=True)
class Curve:
    """One line, with a value or None for each epoch. The colour is a name in PALETTE or #rrggbb."""

    label: str
    values: Series
    colour: str
    dashed: bool = False
    width: float = 1.8
    """In points."""


@dataclass(frozen=True)
class EpochAxis:
    """The horizontal axis: the epochs' numbers, and the first and last epoch of the shaded part."""

    numbers: Sequence[int]
    shaded: tuple[int, int] | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """The limits of the axis: half an epoch beyond the first and the last."""
        return self.numbers[0] - 0.5, self.numbers[-1] + 0.5


def in_own_style(draw: Callable[_P, Svg]) -> Callable[_P, Svg]:
    """Make `draw` use matplotlib in the style of this file, whatever the user's settings."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **options: _P.kwargs) -> Svg:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **options)

    return drawn


@in_own_style
def draw_curves(
    name: str,
    epochs: EpochAxis,
    curves: Sequence[Curve],
    *,
    label: str,
    percent: bool = False,
    log: bool = False,
    legend: bool = True,
) -> Svg:
    """Lines over epochs, with a legend above them if there are several and one is wanted; `label` says what they show.

    percent: the values are shares of one, on an axis from 0 to 100%. log: the axis is logarithmic, and shows only
    values above zero.
    """
    rows = math.ceil(len(curves) / 2) if legend and len(curves) > 1 else 0
    figure, axes = _empty(epochs, rows, label)
    marker = "o" if len(epochs.numbers) <= MARKED else ""
    for curve in curves:
        values = [drawable(value, log) for value in curve.values]
        dashes = "--" if curve.dashed else "-"
        colour = _colour(curve.colour)
        inside = PAPER if curve.dashed else colour
        style = {"color": colour, "linewidth": curve.width, "marker": marker, "markerfacecolor": inside}
        axes.plot(epochs.numbers, values, dashes, label=curve.label, **style)
    _number_axis(axes, [v for c in curves for v in c.values], percent=percent, log=log)
    if rows:
        place = {"loc": "upper left", "bbox_to_anchor": (0.02, 1.0), "ncols": 2, "columnspacing": 1.2}
        figure.legend(*axes.get_legend_handles_labels(), **place, borderpad=0.2, labelspacing=0.25, handlelength=1.8)
    return drawing(figure, name, f"{label} over epochs")


@in_own_style
def draw_shares(name: str, epochs: EpochAxis, shares: Mapping[str, Series], line: Series, *, label: str) -> Svg:
    """Shares that add up to one, as a stack for each epoch in the colours of their names, and a line over them."""
    figure, axes = _empty(EpochAxis(epochs.numbers), 0, label)
    edges = [*(number - 0.5 for number in epochs.numbers), epochs.numbers[-1] + 0.5]
    below = [0.0] * len(epochs.numbers)
    for colour, values in shares.items():
        above = [a + (b or 0.0) for a, b in zip(below, values, strict=True)]
        axes.stairs(above, edges, baseline=below, fill=True, color=_colour(colour), linewidth=0)
        below = above
    marker = "o" if len(epochs.numbers) <= MARKED else ""
    axes.plot(epochs.numbers, [drawable(v) for v in line], "--", marker=marker, color=INK, linewidth=1.4)
    axes.grid(False)
    _number_axis(axes, [], percent=True, log=False)
    axes.set_ylim(0, 1)
    return drawing(figure, name, f"{label} over epochs")


def drawing(figure: Any, name: str, label: str) -> Svg:
    """A matplotlib figure as SVG, for a page on which no other drawing has this `name`.

    Call it within a function that is decorated with `in_own_style`.
    """
    data = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(data, format="svg", transparent=True, metadata=nothing)
    drawn = data.getvalue()
    drawn = drawn[drawn.index(">", drawn.index("<svg")) + 1 :]
    drawn = re.sub(r"<style.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"font-family: [^;\"]*;? ?", "", drawn)
    drawn = re.sub(r' d="[^"]*"', lambda found: re.sub(r"\d+\.\d{3,}", _shorter, found[0]), drawn)
    drawn = re.sub(r"#[0-9a-f]{6}\b", lambda found: VARIABLES.get(found[0], found[0]), drawn)
    width, height = (round(72 * inches, 2) for inches in figure.get_size_inches())
    return Svg(label, width, height, _own_ids(drawn, name).removesuffix("</svg>\n"))


VARIABLES = {light: f"var(--{name})" for name, (light, *_) in reversed(PALETTE.items())}


def _shorter(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}"


def _own_ids(drawn: str, name: str) -> str:
    """Keep only the ids that something refers to, and put the drawing's name before each."""
    used = dict.fromkeys(re.findall(r'(?:href="|url\()#([\w.-]+)', drawn))
    for number, old in enumerate(used):
        new = f"{name}-{number}"
        drawn = re.sub(rf'(xlink:)?href="#{re.escape(old)}"', f'href="#{new}"', drawn)
        drawn = drawn.replace(f"url(#{old})", f"url(#{new})").replace(f' id="{old}"', f' data-id="{new}"')
    return re.sub(r' id="[^"]*"', "", drawn).replace(" data-id=", " id=")


def _empty(epochs: EpochAxis, legend_rows: int, label: str) -> tuple[Any, Any]:
    """A figure and its axes, with space for the legend."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    height, top = HEIGHT + LEGEND_ROW * legend_rows, TOP + LEGEND_ROW * legend_rows
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    box = (LEFT / WIDTH, BOTTOM / height, (WIDTH - LEFT - RIGHT) / WIDTH, (height - BOTTOM - top) / height)
    axes = figure.add_axes(box)
    axes.set(xlabel="epoch", xlim=epochs.limits)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    if epochs.shaded is not None:
        first, last = epochs.shaded
        axes.axvspan(first - 0.5, last + 0.5, color=SHADE, linewidth=0, zorder=0)
    return figure, axes


def _number_axis(axes: Any, values: Series, *, percent: bool, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    if log:
        axes.set_yscale("log")
        axes.set_ylim(*whole_decades(values))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
        axes.set_ylim(*((-0.02, 1.02) if percent else from_zero(values)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, percent)))


def _tick(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.0f}%"
    return f"{value:g}".replace("e+0", "e").replace("e-0", "e-")


def _colour(name: str) -> str:
    return PALETTE[name].light if name in PALETTE else name
