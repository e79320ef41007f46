"""Line drawings as SVG for an HTML page, by matplotlib, which is loaded only when one is drawn.

The same numbers give the same bytes. Text stays text, colours are the page's
variables, and ids carry the drawing's name, so that many fit on one page.
"""

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

from certtrain.errors import MissingExtra
from certtrain.palette import PALETTE
from certtrain.reports.axes import drawable, from_zero, whole_decades

_P = ParamSpec("_P")
Series = Sequence[float | None]

WIDTH, HEIGHT = 360, 210  # points, without the legend
LEFT, RIGHT, BOTTOM, TOP = 56, 8, 38, 10  # margins, in points
LEGEND_ROW = 16  # points
PAPER, INK, MUTED, GRID, SHADE = (PALETTE[name].light for name in ("paper", "ink", "muted", "grid", "shade"))
MARKED = 12  # so many epochs or fewer have a dot each

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # it comes with matplotlib; the page's own is hardly wider
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
    """A drawing: what is read aloud in its place, its size in points, and the markup inside its svg element.

    The markup is matplotlib's, which escapes all text in it.
    """

    label: str
    width: float
    height: float
    markup: str


@dataclass(frozen=True)
class Curve:
    """One line: a value for each epoch, None where there is none; the colour is one of PALETTE or #rrggbb."""

    label: str
    values: Series
    colour: str
    dashed: bool = False
    width: float = 1.8
    """Points."""


@dataclass(frozen=True)
class EpochAxis:
    """The horizontal axis: the epochs' numbers, and the first and last of those that are shaded."""

    numbers: Sequence[int]
    shaded: tuple[int, int] | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """Half an epoch to either side."""
        return self.numbers[0] - 0.5, self.numbers[-1] + 0.5


def in_own_style(draw: Callable[_P, Svg]) -> Callable[_P, Svg]:
    """Let `draw` use matplotlib in this file's style, whatever the user's own.

    It then raises MissingExtra where matplotlib is not installed.
    """

    @functools.wraps(draw)
    def drawn(*args: _P.args, **options: _P.kwargs) -> Svg:
        try:
            import matplotlib
        except ImportError as error:
            raise MissingExtra('curves need matplotlib: pip install "certtrain[plot]"') from error
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **options)

    return drawn


@in_own_style
def draw_curves(
    name: str, epochs: EpochAxis, curves: Sequence[Curve], *, label: str, percent: bool = False, log: bool = False
) -> Svg:
    """Lines over epochs, with a legend above them where there are several; `label` says what they are.

    percent: shares of one, on an axis from 0 to 100%. log: a logarithmic axis, on which only values above zero show.
    """
    rows = math.ceil(len(curves) / 2) if len(curves) > 1 else 0
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
    """Shares of one that add up, as a stack for each epoch in the colours of that name, and a line above it."""
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
    """A matplotlib figure for a page on which no other drawing has this `name`.

    To be called in a function that is `in_own_style`.
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
    """Only the ids that something refers to, each with the drawing's name before it."""
    used = dict.fromkeys(re.findall(r'(?:href="|url\()#([\w.-]+)', drawn))
    for number, old in enumerate(used):
        new = f"{name}-{number}"
        drawn = re.sub(rf'(xlink:)?href="#{re.escape(old)}"', f'href="#{new}"', drawn)
        drawn = drawn.replace(f"url(#{old})", f"url(#{new})").replace(f' id="{old}"', f' data-id="{new}"')
    return re.sub(r' id="[^"]*"', "", drawn).replace(" data-id=", " id=")


def _empty(epochs: EpochAxis, legend_rows: int, label: str) -> tuple[Any, Any]:
    """A figure and its axes, with room for the legend."""
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
