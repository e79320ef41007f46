"""Pictures of layer states, by matplotlib."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

from certtrain.diagnostics import LayerState
from certtrain.errors import MissingExtra
from certtrain.storage import write_atomic

STATES = (("active", "#2a9d57"), ("unstable", "#e9b93c"), ("inactive", "#b5b5b5"))


def plot_states(path: Path, layers: Sequence[LayerState], title: str) -> None:
    """Draw each layer's ReLU states as a bar, and the growth of its bounds beside it, into a PNG file.

    Raises MissingExtra without matplotlib, StorageError if the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra('plots need matplotlib: pip install "certtrain[plot]"') from error
    figure = Figure(figsize=(10, 1.6 + 0.45 * len(layers)), layout="constrained")
    states, growth = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    names, places = [layer.name for layer in layers], range(len(layers))
    left = [0.0] * len(layers)
    for state, colour in STATES:
        shares = [layer.to_dict()[state] for layer in layers]
        states.barh(places, shares, left=left, color=colour, label=state)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    states.set(xlim=(0, 1), xlabel="share of ReLUs", yticks=places, yticklabels=names)
    states.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    states.invert_yaxis()
    growth.plot([layer.growth or float("nan") for layer in layers], places, "o-", color="#30588c")
    growth.set(xscale="log", xlabel="mean width over the input's", xlim=_decades(layers))
    growth.grid(axis="x", color="#dddddd")
    figure.suptitle(title, fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    write_atomic(path, data.getvalue())


def _decades(layers: Sequence[LayerState]) -> tuple[float, float]:
    """Whole powers of ten around all growths, so that the axis has a label at both ends."""
    exponents = [math.log10(layer.growth) for layer in layers if layer.growth]
    lowest, highest = math.floor(min(exponents, default=0)), math.ceil(max(exponents, default=0))
    return 10.0**lowest, 10.0 ** max(highest, lowest + 1)
