"""The states of a model's layers over data, trained or at initialisation."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certtrain.bounds.box import input_box
from certtrain.bounds.statistics import StatisticsSource, batch_statistics, running_statistics
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.data import ImageSet, to_unit
from certtrain.diagnostics.epochs import Trained
from certtrain.diagnostics.findings import (
    AT_START,
    Finding,
    InUse,
    LayerMeans,
    layer_means,
    ranked_findings,
    worst_of_kinds,
)
from certtrain.diagnostics.layer_states import layer_states
from certtrain.errors import EpsilonError, NetworkError, NonFiniteError
from certtrain.network.assembly import make_network
from certtrain.network.initialization import InitRecord
from certtrain.network.modelfile import Classifier
from certtrain.runs.epoch import LayerState
from certtrain.runtime.device import device_of
from certtrain.spec.preset import Preset, Scheme
from certtrain.verification.verify import check_fit


@dataclass(frozen=True)
class InitialNetwork:
    """A network before training, initialised by a scheme with a seed.

    by_weights: its layers, with the initial statistics in every BatchNorm (mean 0, variance 1), so that the growth
        is due to the weights alone. in_training: its layers in the first training step, with the batch's own
        statistics; None for a network without BatchNorm.
    """

    scheme: Scheme
    seed: int
    records: list[InitRecord]
    by_weights: list[LayerState]
    in_training: list[LayerState] | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values by name."""
        return {
            "scheme": self.scheme,
            "seed": self.seed,
            "layers": [asdict(record) for record in self.records],
            "by_weights": [state.to_dict() for state in self.by_weights],
            "in_training": self.in_training and [state.to_dict() for state in self.in_training],
            "findings": [finding.to_dict() for finding in ranked_findings(self.by_weights, AT_START)],
        }


@dataclass(frozen=True)
class ModelStates:
    """A model's short name, its file, and the states of its layers.

    step, epoch: when in its run the model was saved; for networks of one run only. trained: how its run trains, for a
    model that is given by the folder of its run.
    """

    name: str
    file: Path
    layers: list[LayerState]
    step: int | None = None
    epoch: float | None = None
    trained: Trained | None = None

    @property
    def means(self) -> LayerMeans:
        """The means over the layers."""
        return layer_means(self.layers)

    @property
    def findings(self) -> list[Finding]:
        """The worst finding about each layer that has one, the worst first."""
        on_ramp = self.trained is not None and self.trained.on_ramp
        return ranked_findings(self.layers, in_use=InUse(on_ramp=on_ramp))

    def to_dict(self) -> dict[str, Any]:
        """Everything by name; step, epoch and how its run trains only if they are known."""
        time = {name: value for name, value in (("step", self.step), ("epoch", self.epoch)) if value is not None}
        layers, findings = [layer.to_dict() for layer in self.layers], [finding.to_dict() for finding in self.findings]
        numbers = {"means": self.means.to_dict(), "findings": findings, "layers": layers}
        trained = {} if self.trained is None else {"trained": self.trained.to_dict()}
        return {"model": str(self.file), "name": self.name, **time, **trained, **numbers}


def worst_models(models: Sequence[ModelStates]) -> list[tuple[str, Finding]]:
    """For each kind of finding, the model and the finding where it is worst; the worst kind first."""
    return worst_of_kinds((model.name, finding) for model in models for finding in model.findings)


def model_layer_states(
    model: Classifier,
    images: ImageSet,
    eps: float,
    *,
    batch_size: int = 200,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[LayerState]:
    """The state of each ReLU layer over `images` in boxes of radius `eps`.

    Raises DataError if the images do not fit, NonFiniteError if bounds are not
    finite, NetworkError if there is no ReLU.
    """
    check_fit(model, images)
    if not any(isinstance(call.layer, nn.ReLU) for call in checked_graph(model).calls):
        raise NetworkError("the network has no ReLU layer, so there are no ReLU states to show")
    return layer_states(traces_over(model, images, eps, batch_size, on_progress))


def initial_network(
    preset: Preset, train: ImageSet, scheme: Scheme, *, examples: int = 256, device: str = "cpu"
) -> InitialNetwork:
    """A preset's network initialised by `scheme` with the preset's seed, and its layers over training images.

    `examples`: number of images, starting with the first. The boxes have the preset's largest ε. Raises NonFiniteError
    if bounds are not finite, even in float64, and EpsilonError if boxes have no width because ε is lost to rounding.
    """
    network, records = make_network(preset, train, scheme)
    network = network.to(device)
    x = to_unit(train.take(examples).images.to(device))
    by_weights = _states_of(network, x, preset.eps.max, running_statistics)
    normalized = any(isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) for layer in network.modules())
    in_training = _states_of(network, x, preset.eps.max, batch_statistics) if normalized else None
    if any(layer.growth is None for layer in by_weights):
        raise EpsilonError(f"boxes of radius {preset.eps.max:g} have no width in float32; choose a larger --eps")
    return InitialNetwork(scheme, preset.seed, records, by_weights, in_training)


@torch.no_grad()
def _states_of(network: nn.Module, x: Tensor, eps: float, statistics: StatisticsSource) -> list[LayerState]:
    def states(network: nn.Module, x: Tensor) -> list[LayerState]:
        box = input_box(x, eps, with_clean=True)
        return layer_states([trace_bounds(checked_graph(network), box, statistics=statistics)])

    try:
        return states(network, x)
    except NonFiniteError:  # growth beyond the range of float32 can be shown in float64
        return states(copy.deepcopy(network).double(), x.double())


@torch.no_grad()
def traces_over(
    model: nn.Module,
    images: ImageSet,
    eps: float,
    size: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Iterator[BoundTrace]:
    """The traces of `images` in boxes of radius `eps`, `size` images at a time, in evaluation; without gradients."""
    graph, device = checked_graph(model), device_of(model)
    for first in range(0, len(images), size):
        x = to_unit(images.images[first : first + size].to(device))
        yield trace_bounds(graph, input_box(x, eps, with_clean=True))
        on_progress(min(first + size, len(images)))
