"""The state of the ReLU layers while a network trains, over its first training images."""

from torch import nn

from certtrain.data import ImageSet
from certtrain.diagnostics.findings import STATE_EXAMPLES, first_sentence, ranked_findings
from certtrain.diagnostics.layer_states import layer_states
from certtrain.diagnostics.model_states import traces_over
from certtrain.runs.epoch import LayerState
from certtrain.runtime.precision import tensor_cores
from certtrain.training.pacing import Pacing, Recurring

BATCH_SIZE = 200  # at most, of the images that the states are taken over


class LayerDiagnostics:
    """The newest state of each ReLU layer of `network`: what `stats` would say of it at the same ε."""

    def __init__(self, network: nn.Module, images: ImageSet, batch_size: int, pacing: Pacing) -> None:
        self.network, self.images, self.batch_size = network, images, min(BATCH_SIZE, batch_size)
        self.layers: tuple[LayerState, ...] = ()
        self.exploding = False
        self.timing = Recurring(pacing.diagnostics, pacing.diagnostics_share)

    def due(self) -> bool:
        """Whether the states are old, or not there yet."""
        return not self.layers or self.timing.due()

    def update(self, eps: float) -> None:
        """Take the states anew, in boxes of radius `eps`. Raises NonFiniteError that names a layer."""
        with self.timing.timed(), tensor_cores(False):
            images = self.images.take(STATE_EXAMPLES)
            self.layers = tuple(layer_states(traces_over(self.network, images, eps, self.batch_size)))

    def new_explosion(self) -> str | None:
        """A sentence where the bounds explode in the newest states and did not when this was last called."""
        before, found = self.exploding, ranked_findings(self.layers, ["exploding"])
        self.exploding = bool(found)
        return first_sentence(found) if found and not before else None
