"""Per-layer numbers from the boxes of a pass: ReLU states, widths, growth, balance. And what a bad number means."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from certtrain.bounds.interval import Box, boundable
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.errors import NonFiniteError
from certtrain.formats import percent

# From where on a layer is called bad. The digits preset, which trains by the paper's method, stays clear of them all.
EXPLODING = 1e3  # growth of the mean width since the input, if it also leaves this share of the ReLUs unstable:
MATTERS = 0.5  # while ε is small, bounds that have grown a lot may still be narrow
DEAD = 0.5  # share of units that are off for every example
INACTIVE = 0.95  # share of ReLUs that are surely off
UNSTABLE = 0.8  # share of ReLUs whose sign the bounds leave open
UNBALANCED = 0.1  # the smaller balance ratio, below this; the regulariser's tolerance τ is 0.5

T = TypeVar("T")
Kind = Literal["exploding", "dead", "inactive", "unstable", "unbalanced"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # the worst first
AT_START: tuple[Kind, ...] = ("exploding", "dead", "inactive")  # before training; the ramp of ε settles the rest


@dataclass(frozen=True)
class LayerState:
    """One ReLU layer's inputs over some data.

    active, inactive, unstable: shares of (example, unit) pairs whose bounds are
        above zero (lower > 0), at most zero (upper ≤ 0), or neither.
    dead: share of units that are inactive for every example.
    centre, width: means of (upper + lower)/2 and of upper − lower.
    growth: mean width over the network input's, after normalisation; None if the input has no width.
    mean_ratio, variance_ratio: the balance ratios r_m and r_v of Shi et al. 2021, folded to at most 1;
        None where nothing is active and nothing inactive.
    """

    name: str
    units: int
    active: float
    inactive: float
    unstable: float
    dead: float
    centre: float
    width: float
    growth: float | None
    mean_ratio: float | None
    variance_ratio: float | None

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)

    @property
    def exploding(self) -> bool:
        """Whether bounds have grown beyond use on the way to this layer."""
        return self.growth is not None and self.growth >= EXPLODING and self.unstable >= MATTERS


@dataclass(frozen=True)
class LayerMeans:
    """Means of a network's layers, each counting the same, over those that have the number; None where none has it.

    largest_growth: the growth at the layer where it is largest.
    """

    active: float | None
    inactive: float | None
    unstable: float | None
    dead: float | None
    growth: float | None
    largest_growth: float | None
    mean_ratio: float | None
    variance_ratio: float | None

    def to_dict(self) -> dict[str, float | None]:
        """All fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """What is wrong with one layer.

    badness: 1 at the threshold of its kind and more beyond it. sentence: what the row means and what helps, in one
    plain sentence.
    """

    layer: str
    kind: Kind
    badness: float
    sentence: str

    def to_dict(self) -> dict[str, str]:
        """What is wrong where, and the sentence."""
        return {"layer": self.layer, "kind": self.kind, "sentence": self.sentence}


def layer_means(layers: Sequence[LayerState]) -> LayerMeans:
    """The line that sums a network up."""

    def known(name: str) -> list[float]:
        values = (layer.to_dict()[name] for layer in layers)
        return [value for value in values if value is not None]

    names = ("active", "inactive", "unstable", "dead", "growth", "mean_ratio", "variance_ratio")
    means = {name: fmean(known(name)) if known(name) else None for name in names}
    return LayerMeans(**means, largest_growth=max(known("growth"), default=None))


def explain(layer: LayerState, kinds: Collection[Kind] = KINDS) -> Finding | None:
    """The worst thing about a layer, of those asked for, or None if there is nothing wrong with it."""
    found = _exploding(layer), _dead(layer), _inactive(layer), _unstable(layer), _unbalanced(layer)
    return next((finding for finding in found if finding is not None and finding.kind in kinds), None)


def worst(layers: Iterable[LayerState], at_most: int = 3, kinds: Collection[Kind] = KINDS) -> list[Finding]:
    """What is wrong with the worst layers, the worst first: by kind, then by how far beyond its threshold."""
    found = [finding for layer in layers if (finding := explain(layer, kinds)) is not None]
    return sorted(found, key=lambda finding: (KINDS.index(finding.kind), -finding.badness))[:at_most]


def worst_of_kinds(found: Iterable[tuple[T, Finding]], at_most: int = 3) -> list[tuple[T, Finding]]:
    """Of each kind of trouble the worst finding, with what it was found in; the worst kind first."""
    found = list(found)
    of_kind = [[item for item in found if item[1].kind == kind] for kind in KINDS]
    return [max(items, key=lambda item: item[1].badness) for items in of_kind if items][:at_most]


def _exploding(layer: LayerState) -> Finding | None:
    if layer.growth is None or not layer.exploding:
        return None
    sentence = (
        f"bounds explode: at {layer.name!r} they are {layer.growth:.3g} times as wide as the input, so "
        'hardly a point can be certified; start from init = "ibp", or let ε rise for longer (eps.length)'
    )
    return Finding(layer.name, "exploding", layer.growth / EXPLODING, sentence)


def _dead(layer: LayerState) -> Finding | None:
    if layer.dead < DEAD:
        return None
    sentence = (
        f"{percent(layer.dead, 1)} of the units of {layer.name!r} are dead: they are off for every example and learn "
        "no more; try a smaller train.learning_rate or a larger regularizer.weight"
    )
    return Finding(layer.name, "dead", layer.dead / DEAD, sentence)


def _inactive(layer: LayerState) -> Finding | None:
    if layer.inactive < INACTIVE:
        return None
    sentence = (
        f"{layer.name!r} is nearly shut: {percent(layer.inactive, 1)} of its ReLUs are off, so little of an image gets "
        "through; try a larger regularizer.weight, or let ε rise for longer (eps.length)"
    )
    return Finding(layer.name, "inactive", layer.inactive / INACTIVE, sentence)


def _unstable(layer: LayerState) -> Finding | None:
    if layer.unstable < UNSTABLE:
        return None
    sentence = (
        f"{percent(layer.unstable, 1)} of the ReLUs of {layer.name!r} are unstable: their bounds leave open whether "
        "they are on or off; let ε rise for longer (eps.length), or choose a smaller ε"
    )
    return Finding(layer.name, "unstable", layer.unstable / UNSTABLE, sentence)


def _unbalanced(layer: LayerState) -> Finding | None:
    ratios = [ratio for ratio in (layer.mean_ratio, layer.variance_ratio) if ratio is not None]
    if not ratios or min(ratios) >= UNBALANCED:
        return None
    sentence = (
        f"{layer.name!r} leans to one side: its active and inactive ReLUs are out of balance (ratio {min(ratios):.2g}, "
        "1 at best, 0.5 is good); turn regularizer.relu_balance on, or raise regularizer.weight"
    )
    return Finding(layer.name, "unbalanced", UNBALANCED / max(min(ratios), 1e-9), sentence)


def layer_states(traces: Iterable[BoundTrace]) -> list[LayerState]:
    """The state of each ReLU layer over all batches of `traces`, which are used one at a time.

    Raises NonFiniteError that names the first layer whose bounds hold NaN or infinity.
    """
    totals: list[_Totals] = []
    examples, input_radius = 0, 0.0
    for trace in traces:
        totals = totals or [_Totals(name) for name, _ in trace.relu_boxes]
        examples += trace.input.radius.shape[0]
        input_radius += trace.input.radius.double().flatten(1).mean(1).sum().item()
        for total, (_, box) in zip(totals, trace.relu_boxes, strict=True):
            total.add(box)
    return [total.state(2 * input_radius / examples) for total in totals]


@torch.no_grad()
def relu_units(model: nn.Module, x: Tensor) -> int:
    """How many ReLU inputs the network has for one example of `x` (B, …); B is two or more."""
    trace = trace_bounds(boundable(model), x[:2], 0.0, None)
    return sum(box.centre[0].numel() for _, box in trace.relu_boxes)


class _Totals:
    """Sums over batches, in float64, from which a layer's state follows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sums: Tensor | None = None
        self.dead: Tensor | None = None
        self.count = 0

    @torch.no_grad()
    def add(self, box: Box) -> None:
        lower, upper = box.lower, box.upper
        dead = (upper <= 0).all(dim=0)
        self.dead = dead if self.dead is None else self.dead & dead
        sums = _sums(box.centre.double(), box.radius.double(), lower > 0, upper <= 0)
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += lower.numel()

    def state(self, input_width: float) -> LayerState:
        assert self.sums is not None
        assert self.dead is not None  # add() sets both
        if not bool(self.sums.isfinite().all()):
            raise NonFiniteError(f"the bounds at the input of {self.name!r} are not finite; try a smaller ε")
        unstable = self.count - int(self.sums[0]) - int(self.sums[1])
        active, inactive, centre, radius, *moments = (self.sums / self.count).tolist()
        width = 2 * radius
        return LayerState(
            name=self.name,
            units=self.dead.numel(),
            active=active,
            inactive=inactive,
            unstable=unstable / self.count,
            dead=self.dead.double().mean().item(),
            centre=centre,
            width=width,
            growth=width / input_width if input_width > 0 else None,
            mean_ratio=_folded(moments[0], -moments[1]),
            variance_ratio=_folded(
                _spread(active, moments[0], moments[2], centre), _spread(inactive, moments[1], moments[3], centre)
            ),
        )


def _sums(centre: Tensor, radius: Tensor, active: Tensor, inactive: Tensor) -> Tensor:
    """Counts of the two states, sums of centre and radius, and of c·A, c·I, c²·A, c²·I."""
    on, off, square = active.double(), inactive.double(), centre.square()
    terms = (on, off, centre, radius, centre * on, centre * off, square * on, square * off)
    return torch.stack([term.sum() for term in terms])


def _spread(share: float, first: float, second: float, mean: float) -> float:
    """Mean of (c − mean)² over the chosen entries times their share, from their first two moments."""
    return max(second - 2 * mean * first + mean * mean * share, 0.0)


def _folded(first: float, second: float) -> float | None:
    larger = max(first, second)
    return abs(min(first, second)) / larger if larger > 0 else None  # not −0, the negative of no sum
