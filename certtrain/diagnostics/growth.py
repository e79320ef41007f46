"""The growth of bounds at initialisation, of several initialisation schemes over several seeds, and by depth.

The claim is that of Shi et al. 2021, section 3.1: with the usual initialisations
the width of the bounds grows exponentially with depth, with the IBP
initialisation it stays constant.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from torch import nn

from certtrain.bounds.box import input_box
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import trace_bounds
from certtrain.data import ImageSet, to_unit
from certtrain.diagnostics.findings import AT_START, Finding, ranked_findings
from certtrain.diagnostics.model_states import InitialNetwork, initial_network
from certtrain.errors import NonFiniteError
from certtrain.network.assembly import make_network
from certtrain.runs.epoch import LayerState
from certtrain.spec.architecture import CNN, MLP
from certtrain.spec.preset import Preset, Scheme

SWEEP_BATCH = 4  # examples at a time; a deep network keeps the boxes of all its layers
CONSTANT = 1.05  # a growth rate per layer from 1/CONSTANT to CONSTANT counts as constant

Trend = Literal["exponential", "constant", "shrinking"]
OnNetworks = Callable[[int, int], None]  # called with the number of networks done, and of all


@dataclass(frozen=True)
class Spread:
    """One number over several seeds: mean, standard deviation (0 for one seed), smallest, largest, and all values."""

    mean: float
    std: float
    min: float
    max: float
    values: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """The spread of one or more values."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return Spread(fmean(values), deviation, min(values), max(values), tuple(values))


@dataclass(frozen=True)
class LayerGrowth:
    """The growth of the mean width from the network's input to the input of one ReLU layer, over several seeds."""

    name: str
    growth: Spread

    def to_dict(self) -> dict[str, Any]:
        """The layer's name, the mean growth as "growth", and the rest of the spread beside it."""
        numbers = self.growth.to_dict()
        return {"name": self.name, "growth": numbers.pop("mean"), **numbers}


@dataclass(frozen=True)
class SchemeGrowth:
    """A preset's network initialised by one scheme, once for each seed."""

    scheme: Scheme
    networks: tuple[InitialNetwork, ...]

    @property
    def by_weights(self) -> list[LayerGrowth]:
        """The growth at each ReLU layer that is due to the weights alone."""
        return _over_seeds([network.by_weights for network in self.networks])

    @property
    def in_training(self) -> list[LayerGrowth] | None:
        """The growth at each ReLU layer in the first training step; None for a network without BatchNorm."""
        states = [network.in_training for network in self.networks if network.in_training is not None]
        return _over_seeds(states) if states else None

    @property
    def findings(self) -> list[Finding]:
        """The worst finding about each layer over all seeds, by the weights alone."""
        found = ranked_findings([layer for network in self.networks for layer in network.by_weights], AT_START)
        return list({finding.layer: finding for finding in reversed(found)}.values())[::-1]

    def to_dict(self) -> dict[str, Any]:
        """Everything by name, each seed's network included."""
        trained = self.in_training
        return {
            "scheme": self.scheme,
            "by_weights": [layer.to_dict() for layer in self.by_weights],
            "in_training": trained and [layer.to_dict() for layer in trained],
            "findings": [finding.to_dict() for finding in self.findings],
            "networks": [network.to_dict() for network in self.networks],
        }


@dataclass(frozen=True)
class DepthSweep:
    """One scheme's growth at the last ReLU of plain networks of several depths.

    rate: the factor per layer, from `growth_rate`.
    """

    scheme: Scheme
    depths: tuple[int, ...]
    growth: tuple[Spread, ...]
    rate: float | None

    @property
    def trend(self) -> Trend:
        """How the width changes with depth at this rate."""
        rate = self.rate or 0.0
        if rate > CONSTANT:
            return "exponential"
        return "constant" if rate >= 1 / CONSTANT else "shrinking"

    def to_dict(self) -> dict[str, Any]:
        """Everything by name."""
        rows = []
        for depth, growth in zip(self.depths, self.growth, strict=True):
            numbers = growth.to_dict()
            rows.append({"depth": depth, "growth": numbers.pop("mean"), **numbers})
        return {"scheme": self.scheme, "rate": self.rate, "trend": self.trend, "depths": rows}


def compare_schemes(
    preset: Preset,
    train: ImageSet,
    schemes: Sequence[Scheme],
    seeds: Sequence[int],
    *,
    examples: int = 256,
    device: str = "cpu",
    on_progress: OnNetworks = lambda done, total: None,
) -> list[SchemeGrowth]:
    """The preset's network initialised by each scheme, with each seed. Raises NonFiniteError as `initial_network`."""
    found = []
    for number, scheme in enumerate(schemes):
        networks = []
        for seed in seeds:
            seeded = preset.model_copy(update={"seed": seed})
            networks.append(initial_network(seeded, train, scheme, examples=examples, device=device))
            on_progress(number * len(seeds) + len(networks), len(schemes) * len(seeds))
        found.append(SchemeGrowth(scheme, tuple(networks)))
    return found


def sweep_depth(
    preset: Preset,
    train: ImageSet,
    schemes: Sequence[Scheme],
    seeds: Sequence[int],
    depths: Sequence[int],
    *,
    examples: int = 16,
    device: str = "cpu",
    on_progress: OnNetworks = lambda done, total: None,
) -> list[DepthSweep]:
    """The growth at the last ReLU of plain networks (`plain_preset`) of two or more `depths`, by each scheme and seed.

    With the same seed, the first layers of a deep network are those of a shallower one, so the deepest network gives
    the growth of all. Raises NonFiniteError if bounds are not finite.
    """
    deepest, found = plain_preset(preset, train, max(depths)), []
    for number, scheme in enumerate(schemes):
        runs = []
        for seed in seeds:
            network, _ = make_network(deepest.model_copy(update={"seed": seed}), train, scheme)
            runs.append(_growth_by_layer(network.to(device), train.take(examples).to(device), preset.eps.max))
            on_progress(number * len(seeds) + len(runs), len(schemes) * len(seeds))
        growth = tuple(spread([run[depth - 1] for run in runs]) for depth in depths)
        found.append(DepthSweep(scheme, tuple(depths), growth, growth_rate(depths, [s.mean for s in growth])))
    return found


def describe_plain(preset: Preset) -> str:
    """The hidden layers of a plain network in words."""
    match preset.model:
        case CNN(channels=channels):
            return f"3×3 convolutions of {channels[0]} channels"
        case MLP(hidden=hidden):
            return f"linear layers of {hidden[0]} units"
    raise ValueError(f"{preset.model.name} is not a plain network")


def plain_preset(preset: Preset, train: ImageSet, depth: int) -> Preset:
    """The preset with a plain network of `depth` equal hidden layers, as wide as the first layer of its own network.

    The layers are 3×3 convolutions of stride 1 if the preset's network has convolutions, else linear layers. They
    have no BatchNorm, which would hide the effect of the weights.
    """
    network, _ = make_network(preset, train)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    if convolutions:
        ones, channels = (1,) * depth, (convolutions[0].out_channels,) * depth
        plain: CNN | MLP = CNN(name="cnn", channels=channels, kernels=(3,) * depth, strides=ones, batch_norm=False)
    else:
        first = next(layer for layer in network.modules() if isinstance(layer, nn.Linear))
        plain = MLP(name="mlp", hidden=(first.out_features,) * depth, batch_norm=False)
    return preset.model_copy(update={"model": plain})


def growth_rate(depths: Sequence[int], growth: Sequence[float]) -> float | None:
    """The growth per layer, as a factor: e to the slope of the least-squares line through (depth, log growth).

    A growth of zero has no logarithm and is left out. None if fewer than two different depths remain.
    """
    pairs = [(depth, math.log(g)) for depth, g in zip(depths, growth, strict=True) if g > 0]
    if len({depth for depth, _ in pairs}) < 2:
        return None
    middle = fmean(depth for depth, _ in pairs)
    covariance = sum((depth - middle) * log for depth, log in pairs)
    return math.exp(covariance / sum((depth - middle) ** 2 for depth, _ in pairs))


@torch.no_grad()
def _growth_by_layer(network: nn.Module, images: ImageSet, eps: float) -> list[float]:
    """Mean width at each ReLU's input divided by that at the network's, in float64: float32 ends at 3e38."""
    graph = checked_graph(network.double())
    totals, start = torch.zeros(0), 0.0
    for first in range(0, len(images), SWEEP_BATCH):
        part = images.images[first : first + SWEEP_BATCH]
        trace = trace_bounds(graph, input_box(to_unit(part).double(), eps))
        widths = torch.stack([box.radius.flatten(1).mean(1).sum() for _, box in trace.relu_boxes])
        totals = widths if not len(totals) else totals + widths
        start += trace.input.radius.flatten(1).mean(1).sum().item()
    growth: list[float] = (totals / start).tolist()
    for (name, _), value in zip(trace.relu_boxes, growth, strict=True):
        if not math.isfinite(value):
            raise NonFiniteError(f"the bounds at the input of {name!r} are not finite; sweep fewer layers")
    return growth


def _over_seeds(networks: Sequence[Sequence[LayerState]]) -> list[LayerGrowth]:
    found = []
    for row in zip(*networks, strict=True):
        growth = [
            layer.growth for layer in row if layer.growth is not None
        ]  # `initial_network` raises an error if a growth is None
        found.append(LayerGrowth(row[0].name, spread(growth)))
    return found
