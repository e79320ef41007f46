"""Findings: what the numbers of a ReLU layer's state say is wrong with it, in sentences; without torch."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Literal, Self, TypeVar, get_args

from certtrain.formats import percent
from certtrain.runs.epoch import LayerState
from certtrain.spec.layers import Graph, ModuleSection
from certtrain.spec.preset import Preset

# The thresholds of the findings. The digits preset, trained by the method of Shi et al. 2021, reaches none of them.
EXPLODING = 1e3  # growth of the mean width, if at least this share of the ReLUs is also unstable:
EXPLODING_UNSTABLE = 0.5  # while ε is small, bounds that have grown a lot may still be narrow
DEAD = 0.5  # share of channels that are inactive for every example, everywhere in the image
INACTIVE = 0.95  # share of inactive ReLUs
UNSTABLE = 0.8  # share of unstable ReLUs
UNBALANCED = 0.1  # the smaller of the balance ratios; the regulariser's tolerance τ is 0.5

LONGER_RAMP = "a longer ramp of ε (eps.length)"

_T = TypeVar("_T")
Kind = Literal["exploding", "dead", "inactive", "unstable", "unbalanced"]
STATE_EXAMPLES = (
    1000  # training images, starting with the first, over which a training and `stats` compute layer states
)
MOST_SENTENCES = 3  # layers for which a view shows a sentence; it says how many more there are
KINDS: tuple[Kind, ...] = get_args(Kind)  # the worst first
AT_START: tuple[Kind, ...] = ("exploding", "dead", "inactive")  # before training; the ramp of ε removes the others


@dataclass(frozen=True)
class LayerMeans:
    """Unweighted means over a network's layers that have the number; None if no layer has it.

    largest_growth: the largest growth of all layers.
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

    severity: the number divided by the threshold of its kind, so 1 at the threshold and more beyond it. sentence: what
    the numbers mean and what helps.
    """

    layer: str
    kind: Kind
    severity: float
    sentence: str

    def to_dict(self) -> dict[str, str]:
        """Layer, kind and sentence by name."""
        return {"layer": self.layer, "kind": self.kind, "sentence": self.sentence}


@dataclass(frozen=True)
class InUse:
    """What a run uses already, which is therefore not advised; by default nothing is known to be in use.

    relu_balance: None if it is not known. bounds: the objective has bounds, which should be tight. on_ramp: ε has not
    reached its largest value yet, so that a longer ramp would only come later.
    """

    ibp_init: bool = False
    batch_norm: bool = False
    tightness: bool = False
    relu_balance: bool | None = None
    bounds: bool = True
    on_ramp: bool = False

    @classmethod
    def by(cls, preset: Preset, eps: float) -> Self:
        """What a run with this preset uses when it trains at radius `eps`."""
        model, terms = preset.model, preset.regularizer
        return cls(
            ibp_init=preset.init == "ibp",
            batch_norm=not isinstance(model, Graph | ModuleSection) and model.batch_norm,
            tightness=terms.weight > 0 and terms.tightness,
            relu_balance=terms.weight > 0 and terms.relu_balance,
            bounds=preset.objective.name != "pgd",
            on_ramp=eps < preset.eps.max,
        )

    @property
    def ramp_advice(self) -> str:
        """What to do about the ramp of ε."""
        return "" if self.on_ramp else LONGER_RAMP

    @property
    def balance_advice(self) -> str:
        """What to do about the balance of the ReLUs."""
        return "regularizer.relu_balance = true" if self.relu_balance is False else "a larger regularizer.weight"


UNKNOWN = InUse()


def layer_means(layers: Sequence[LayerState]) -> LayerMeans:
    """The means of a network's layers."""

    def known(name: str) -> list[float]:
        values = (layer.to_dict()[name] for layer in layers)
        return [value for value in values if value is not None]

    names = ("active", "inactive", "unstable", "dead", "growth", "mean_ratio", "variance_ratio")
    means = {name: fmean(known(name)) if known(name) else None for name in names}
    return LayerMeans(**means, largest_growth=max(known("growth"), default=None))


def is_exploding(layer: LayerState) -> bool:
    """Whether the bounds at this layer are too wide to be of use."""
    return layer.growth is not None and layer.growth >= EXPLODING and layer.unstable >= EXPLODING_UNSTABLE


def layer_finding(layer: LayerState, kinds: Collection[Kind] = KINDS, in_use: InUse = UNKNOWN) -> Finding | None:
    """The worst finding about a layer, of the given kinds; None if there is none."""
    found = (find(layer, in_use) for find in (_exploding, _dead, _inactive, _unstable, _unbalanced))
    return next((finding for finding in found if finding is not None and finding.kind in kinds), None)


def ranked_findings(
    layers: Iterable[LayerState], kinds: Collection[Kind] = KINDS, in_use: InUse = UNKNOWN
) -> list[Finding]:
    """The worst finding about each layer that has one, ordered by kind, then by severity; the worst first."""
    found = [finding for layer in layers if (finding := layer_finding(layer, kinds, in_use)) is not None]
    return sorted(found, key=lambda finding: (KINDS.index(finding.kind), -finding.severity))


def findings_at(eps: float, layers: Iterable[LayerState], preset: Preset | None = None) -> list[Finding]:
    """As `ranked_findings`, for a training step at radius `eps`; none before the ramp, when boxes have no width.

    What the run of that preset uses already is not advised.
    """
    return ranked_findings(layers, in_use=UNKNOWN if preset is None else InUse.by(preset, eps)) if eps > 0 else []


def sentences(
    findings: Sequence[Finding], at_most: int = MOST_SENTENCES, where: str = "--json lists them"
) -> list[str]:
    """The sentences of the first `at_most` findings, then a line with the number of the others."""
    more = [f"{_and_more(len(findings) - at_most)}; {where}"] * (len(findings) > at_most)
    return [*(finding.sentence for finding in findings[:at_most]), *more]


def first_sentence(findings: Sequence[Finding]) -> str:
    """The sentence of the first finding, and the number of the others if there are any."""
    more = len(findings) - 1
    return findings[0].sentence + (f" ({_and_more(more)})" if more else "")


def _and_more(count: int) -> str:
    return f"and {count} more layer{'s' * (count > 1)}"


def worst_of_kinds(found: Iterable[tuple[_T, Finding]]) -> list[tuple[_T, Finding]]:
    """The worst finding of each kind, with what it was found in; the worst kind first."""
    found = list(found)
    of_kind = [[item for item in found if item[1].kind == kind] for kind in KINDS]
    return [max(items, key=lambda item: item[1].severity) for items in of_kind if items]


def _try(*advice: str) -> str:
    """The advice that is not empty, as the end of a sentence; without any, when to look again."""
    *others, last = [part for part in advice if part] or [""]
    if not last:
        return "; look again at the end of the ramp, since ε still rises"
    return f"; try {', '.join(others)} or {last}" if others else f"; try {last}"


def _exploding(layer: LayerState, in_use: InUse) -> Finding | None:
    if layer.growth is None or not is_exploding(layer):
        return None
    regularisers = "" if in_use.tightness and in_use.relu_balance else "the regularisers"
    advice = _try(
        "" if in_use.ibp_init else 'init = "ibp"',
        "" if in_use.batch_norm else "BatchNorm in every layer",
        regularisers,
        in_use.ramp_advice,
    )
    sentence = (
        f"bounds explode: at {layer.name!r} they are {layer.growth:.3g} times as wide as the input, so "
        f"hardly any example can be certified{advice}"
    )
    return Finding(layer.name, "exploding", layer.growth / EXPLODING, sentence)


def _dead(layer: LayerState, in_use: InUse) -> Finding | None:
    """Channels count, not units: the weights of a unit that sees nothing but a border learn at other places."""
    of_units = layer.dead_channels is None or layer.dead_channels == layer.dead
    share = layer.dead if layer.dead_channels is None else layer.dead_channels
    if share < DEAD:
        return None
    what, place = ("units", "") if of_units else ("channels", " at every place")
    sentence = (
        f"{percent(share, 1)} of the {what} of {layer.name!r} are dead: they are inactive for every example{place} and "
        f"no longer learn{_try('a smaller train.learning_rate', in_use.balance_advice)}"
    )
    return Finding(layer.name, "dead", share / DEAD, sentence)


def _inactive(layer: LayerState, in_use: InUse) -> Finding | None:
    if layer.inactive < INACTIVE:
        return None
    sentence = (
        f"{percent(layer.inactive, 1)} of the ReLUs of {layer.name!r} are inactive, so the layer passes on little of "
        f"an image{_try(in_use.balance_advice, in_use.ramp_advice)}"
    )
    return Finding(layer.name, "inactive", layer.inactive / INACTIVE, sentence)


def _unstable(layer: LayerState, in_use: InUse) -> Finding | None:
    if layer.unstable < UNSTABLE or not in_use.bounds:
        return None
    sentence = (
        f"{percent(layer.unstable, 1)} of the ReLUs of {layer.name!r} are unstable: the bounds of their inputs have "
        f"different signs{_try(in_use.ramp_advice, '' if in_use.on_ramp else 'a smaller ε')}"
    )
    return Finding(layer.name, "unstable", layer.unstable / UNSTABLE, sentence)


def _unbalanced(layer: LayerState, in_use: InUse) -> Finding | None:
    unknown = "regularizer.relu_balance with a larger regularizer.weight"
    advice = unknown if in_use.relu_balance is None else in_use.balance_advice
    ratios = [ratio for ratio in (layer.mean_ratio, layer.variance_ratio) if ratio is not None]
    if not ratios or min(ratios) >= UNBALANCED:
        return None
    sentence = (
        f"the active and inactive ReLUs of {layer.name!r} are out of balance (ratio {min(ratios):.2g}; 1 is best, 0.5 "
        f"is good){_try(advice)}"
    )
    return Finding(layer.name, "unbalanced", UNBALANCED / max(min(ratios), 1e-9), sentence)
