"""The states of the ReLU layers during training, over the first training images."""

from torch import nn

from certtrain.data import ImageSet
from certtrain.diagnostics.findings import STATE_EXAMPLES, UNKNOWN, InUse, first_sentence, ranked_findings
from certtrain.diagnostics.layer_states import layer_states
from certtrain.diagnostics.model_states import traces_over
from certtrain.runs.epoch import LayerState
from certtrain.runtime.precision import tensor_cores
from certtrain.training.pacing import Pacing, Recurring

BATCH_SIZE = 200  # images at a time, at most, over which the states are computed


class LayerDiagnostics:
    """The newest state of each ReLU layer of `network`, computed as `stats` computes it at the same ε."""

    def __init__(self, network: nn.Module, images: ImageSet, batch_size: int, pacing: Pacing) -> None:
        self.network, self.images, self.batch_size = network, images, min(BATCH_SIZE, batch_size)
        self.layers: tuple[LayerState, ...] = ()
        self.exploding = False
        self.timing = Recurring(pacing.diagnostics, pacing.diagnostics_share)

    def due(self) -> bool:
        """Whether the states are due to be computed, for the first time or again."""
        return not self.layers or self.timing.due()

    def update(self, eps: float) -> None:
        """Compute the states again, in boxes of radius `eps`. Raises NonFiniteError, which names a layer."""
        with self.timing.timed(), tensor_cores(False):
            images = self.images.take(STATE_EXAMPLES)
            self.layers = tuple(layer_states(traces_over(self.network, images, eps, self.batch_size)))

    def new_explosion(self, in_use: InUse = UNKNOWN) -> str | None:
        """A sentence if the bounds explode in the newest states, and did not at the last call; else None."""
        before, found = self.exploding, ranked_findings(self.layers, ["exploding"], in_use)
        self.exploding = bool(found)
        return first_sentence(found) if found and not before else None
