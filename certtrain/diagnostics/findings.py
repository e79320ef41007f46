"""What is wrong with a ReLU layer by the numbers of its state, in sentences; without torch."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Literal, TypeVar, get_args

from certtrain.formats import percent
from certtrain.runs.epoch import LayerState

# From where on a layer is called bad. The digits preset, which trains by the paper's method, stays clear of them all.
EXPLODING = 1e3  # growth of the mean width since the input, if it also leaves this share of the ReLUs unstable:
MATTERS = 0.5  # while ε is small, bounds that have grown a lot may still be narrow
DEAD = 0.5  # share of units that are off for every example
INACTIVE = 0.95  # share of ReLUs that are surely off
UNSTABLE = 0.8  # share of ReLUs whose sign the bounds leave open
UNBALANCED = 0.1  # the smaller balance ratio, below this; the regulariser's tolerance τ is 0.5

_T = TypeVar("_T")
Kind = Literal["exploding", "dead", "inactive", "unstable", "unbalanced"]
STATE_EXAMPLES = 1000  # the first training images, over which a training measures its layers' states, as `stats` does
MOST_SENTENCES = 3  # layers that a view has a sentence for; it says how many more there are
KINDS: tuple[Kind, ...] = get_args(Kind)  # the worst first
AT_START: tuple[Kind, ...] = ("exploding", "dead", "inactive")  # before training; the ramp of ε resolves the others


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


def is_exploding(layer: LayerState) -> bool:
    """Whether bounds have grown beyond use on the way to this layer."""
    return layer.growth is not None and layer.growth >= EXPLODING and layer.unstable >= MATTERS


def layer_finding(layer: LayerState, kinds: Collection[Kind] = KINDS) -> Finding | None:
    """The worst finding about a layer, of the kinds asked for, or None if there is nothing wrong with it."""
    found = _exploding(layer), _dead(layer), _inactive(layer), _unstable(layer), _unbalanced(layer)
    return next((finding for finding in found if finding is not None and finding.kind in kinds), None)


def ranked_findings(layers: Iterable[LayerState], kinds: Collection[Kind] = KINDS) -> list[Finding]:
    """What is wrong with each bad layer, the worst first: by kind, then by how far beyond its threshold."""
    found = [finding for layer in layers if (finding := layer_finding(layer, kinds)) is not None]
    return sorted(found, key=lambda finding: (KINDS.index(finding.kind), -finding.badness))


def findings_at(eps: float, layers: Iterable[LayerState], kinds: Collection[Kind] = KINDS) -> list[Finding]:
    """As `ranked_findings`, during a training at ε; none before the ramp, when no box has a width to judge."""
    return ranked_findings(layers, kinds) if eps > 0 else []


def sentences(
    findings: Sequence[Finding], at_most: int = MOST_SENTENCES, where: str = "--json lists them"
) -> list[str]:
    """The sentences of the first `at_most`, and a line that says how many more layers are bad, and where they stand."""
    more = [f"{_and_more(len(findings) - at_most)}; {where}"] * (len(findings) > at_most)
    return [*(finding.sentence for finding in findings[:at_most]), *more]


def first_sentence(findings: Sequence[Finding]) -> str:
    """The first one's sentence; if there are more, how many."""
    more = len(findings) - 1
    return findings[0].sentence + (f" ({_and_more(more)})" if more else "")


def _and_more(count: int) -> str:
    return f"and {count} more layer{'s' * (count > 1)}"


def worst_of_kinds(found: Iterable[tuple[_T, Finding]]) -> list[tuple[_T, Finding]]:
    """Of each kind of finding the worst, with what it was found in; the worst kind first."""
    found = list(found)
    of_kind = [[item for item in found if item[1].kind == kind] for kind in KINDS]
    return [max(items, key=lambda item: item[1].badness) for items in of_kind if items]


def _exploding(layer: LayerState) -> Finding | None:
    if layer.growth is None or not is_exploding(layer):
        return None
    sentence = (
        f"bounds explode: at {layer.name!r} they are {layer.growth:.3g} times as wide as the input, so "
        'hardly an example can be certified; init = "ibp", BatchNorm in every layer, the regularisers and a longer '
        "rise of ε (eps.length) help"
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
        f"{layer.name!r} is almost inactive: {percent(layer.inactive, 1)} of its ReLUs are off, so little of an image "
        "gets through; try a larger regularizer.weight, or let ε rise for longer (eps.length)"
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
        f"{layer.name!r} is out of balance between its active and inactive ReLUs (ratio {min(ratios):.2g}, 1 at best, "
        "0.5 is good); regularizer.relu_balance with a larger regularizer.weight helps"
    )
    return Finding(layer.name, "unbalanced", UNBALANCED / max(min(ratios), 1e-9), sentence)
