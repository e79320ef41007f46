"""A model looked into: the state of its layers over data, trained or at initialisation."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from certtrain.assemble import make_network
from certtrain.bounds.interval import boundable
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.certificate import CLIP
from certtrain.data import ImageSet, to_unit
from certtrain.diagnostics import LayerState, layer_states
from certtrain.errors import NetworkError
from certtrain.initialize import InitRecord
from certtrain.modelfile import Classifier
from certtrain.preset import Preset, Scheme
from certtrain.verify import check_fit


@dataclass(frozen=True)
class InitialNetwork:
    """A network before training.

    by_weights: its layers with every BatchNorm at its start (mean 0, variance 1), so that the
        weights alone make the widths grow. in_training: its layers as the first training step sees
        them, with the batch's own statistics; None for a network without BatchNorm.
    """

    scheme: Scheme
    network: nn.Sequential
    records: list[InitRecord]
    by_weights: list[LayerState]
    in_training: list[LayerState] | None

    def to_dict(self) -> dict[str, Any]:
        """What is known of it, as plain values."""
        return {
            "scheme": self.scheme,
            "layers": [asdict(record) for record in self.records],
            "by_weights": [state.to_dict() for state in self.by_weights],
            "in_training": self.in_training and [state.to_dict() for state in self.in_training],
        }


def inspect_model(
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
    if not any(isinstance(call.layer, nn.ReLU) for call in boundable(model).calls):
        raise NetworkError("the network has no ReLU layer, and so no states of ReLUs to show")
    return layer_states(_traces(model.eval(), images, eps, batch_size, on_progress))


def inspect_initial(preset: Preset, train: ImageSet, scheme: Scheme, eps: float, examples: int = 256) -> InitialNetwork:
    """A preset's network initialised by `scheme`, and its layers over the first training images."""
    network, records = make_network(preset, train, scheme)
    x = to_unit(train.take(examples).images)
    by_weights = _states_of(network.eval(), x, eps)
    normalized = any(isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) for layer in network.modules())
    in_training = _states_of(network.train(), x, eps) if normalized else None
    return InitialNetwork(scheme, network, records, by_weights, in_training)


@torch.no_grad()
def _states_of(network: nn.Module, x: Tensor, eps: float) -> list[LayerState]:
    return layer_states([trace_bounds(boundable(network), x, eps, CLIP)])


@torch.no_grad()
def _traces(
    model: Classifier, images: ImageSet, eps: float, size: int, on_progress: Callable[[int], None]
) -> Iterator[BoundTrace]:
    graph, device = boundable(model), next(model.parameters()).device
    for first in range(0, len(images), size):
        yield trace_bounds(graph, to_unit(images.images[first : first + size].to(device)), eps, CLIP)
        on_progress(min(first + size, len(images)))
