"""The pictures of a run: its curves over the epochs, and the states of its layers over the epochs."""

from collections.abc import Collection, Iterator
from colorsys import hls_to_rgb
from itertools import cycle, islice
from operator import attrgetter
from typing import TypeVar

from certtrain.palette import STATES
from certtrain.reports.pages import Picture
from certtrain.reports.svg import Curve, EpochAxis, draw_curves, draw_shares
from certtrain.runs.history import Run
from certtrain.spec.epsilon import format_eps

_T = TypeVar("_T")

ACCURACIES = {  # by their names in the metrics: label, colour, whether the line is dashed
    "natural_accuracy": ("natural", "natural", False),
    "certified_accuracy": ("certified", "certified", False),
    "validation_natural_accuracy": ("natural, held out", "natural", True),
    "validation_certified_accuracy": ("certified, held out", "certified", True),
}
LOSSES = {  # label, colour, width: after the warm-up the robust loss coincides with the total, which is drawn wider
    "loss": ("total", "total", 4.5),
    "natural_loss": ("natural", "natural", 1.8),
    "robust_loss": ("robust", "certified", 1.8),
}
OTHER_COLOURS = ("falsified", "tightness", "balance", "misclassified")  # for measures that are not listed here
REGULARISERS = {"tightness_loss": ("tightness", "tightness"), "relu_balance_loss": ("ReLU balance", "balance")}
SINGLE = {
    "eps": "ε at the end of the epoch",
    "learning_rate": "Learning rate at the end of the epoch",
    "gradient_norm": "Gradient norm",
}


def curve_pictures(run: Run) -> Iterator[Picture]:
    """Accuracies, losses, regularisers, ε, learning rate and gradient norm over the epochs, at least one.

    Quantities that were not measured are left out.
    """
    axis = _axis(run)
    if accuracies := _accuracies(run):
        svg = draw_curves("accuracies", axis, accuracies, label="accuracy", percent=True)
        yield Picture(svg, "Accuracy", _remark(run, accuracies))
    if losses := _losses(run):
        svg = draw_curves("losses", axis, losses, label="loss", log=_far_apart(losses))
        yield Picture(
            svg, "Losses", "Natural: without perturbation. Robust: of the objective's worst case in each box."
        )
    if regularisers := [Curve(label, run.values(name), c) for name, (label, c) in _known(run, REGULARISERS)]:
        svg = draw_curves("regularisers", axis, regularisers, label="regulariser")
        yield Picture(
            svg,
            "Regularisers",
            "Tightness penalises bounds that grow from layer to layer, ReLU balance layers with far more inactive than "
            "active ReLUs or the reverse. Without their weights, which are zero after the warm-up. Then only compiled "
            "steps measure them; else they are shown as zero.",
        )
    for name, title in _known(run, SINGLE):
        curve = Curve(title, run.values(name), "ink")
        yield Picture(draw_curves(name, axis, [curve], label=title), title)


def layer_pictures(run: Run) -> Iterator[Picture]:
    """The growth of the bounds over the epochs, and the ReLU states over the epochs of each layer of the last one."""
    axis, names = _axis(run), [layer.name for layer in run.layers]
    growths = [
        Curve(name, run.layer_values(name, attrgetter("growth")), colour, dashed=bool(index % 2))
        for index, (name, colour) in enumerate(zip(names, hues(len(names)), strict=True))
    ]
    svg = draw_curves("growth", axis, growths, label="growth of the bounds' width", log=True)
    yield Picture(svg, "Growth: mean width over the input's")
    for index, name in enumerate(names):
        states = {state: run.layer_values(name, attrgetter(state)) for state in STATES}
        dead = run.layer_values(name, attrgetter("dead"))
        yield Picture(draw_shares(f"states{index}", axis, states, dead, label=f"states of {name}"), name)


def _axis(run: Run) -> EpochAxis:
    return EpochAxis([epoch.epoch for epoch in run.epochs], run.warm_up)


def _known(run: Run, names: dict[str, _T]) -> list[tuple[str, _T]]:
    return [(name, about) for name, about in names.items() if name in run.measured]


def _accuracies(run: Run) -> list[Curve]:
    found = _known(run, ACCURACIES)
    known = [Curve(label, run.values(name), colour, dashed) for name, (label, colour, dashed) in found]
    return known + _others(run, "_accuracy", ACCURACIES)


def _remark(run: Run, accuracies: list[Curve]) -> str:
    remarks = []
    if run.preset.train.batch_norm_statistics != "clean":
        remarks.append("Natural: on the first training images, at the end of the epoch.")
    if any(curve.dashed for curve in accuracies):
        remarks.append(f"Held out: at ε = {format_eps(run.preset.eps.max)} in every epoch.")
    return " ".join(remarks)


def _losses(run: Run) -> list[Curve]:
    found = _known(run, LOSSES)
    known = [Curve(label, run.values(name), colour, width=width) for name, (label, colour, width) in found]
    return known + _others(run, "_loss", {*LOSSES, *REGULARISERS})


def _others(run: Run, kind: str, known: Collection[str]) -> list[Curve]:
    """The measures of that kind that are not known here: those of the objective's own."""
    names = [name for name in run.measured if name.endswith(kind) and name not in known]
    return [
        Curve(name.removesuffix(kind).replace("_", " "), run.values(name), colour)
        for name, colour in zip(names, islice(cycle(OTHER_COLOURS), len(names)), strict=True)
    ]


def _far_apart(curves: list[Curve]) -> bool:
    """Whether small values would be invisible beside large ones on a linear axis."""
    values = [value for curve in curves for value in curve.values if value is not None and value > 0]
    return len(values) > 1 and max(values) > 100 * min(values)


def hues(count: int) -> list[str]:
    """Colours from blue to red for lines from first to last, readable on light and dark pages."""
    colours = [hls_to_rgb((220 - 215 * index / max(count - 1, 1)) / 360, 0.5, 0.65) for index in range(count)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in colours]
