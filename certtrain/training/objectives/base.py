"""What a training objective is: from the passes of a batch to a loss for each example."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from certtrain.bounds.trace import BoundTrace
from certtrain.training.passes import Passes, SignedAscent


@dataclass(frozen=True)
class RobustLosses:
    """An objective's results for the examples of some passes.

    losses: (B,), what training minimises, beside the natural loss and the regularisers.
    margins: (B, K), if the objective has them: lower bounds of the margins over the whole box, which say which examples
        are certified.
    traces: of the boxes that were propagated, of one part of the network after the other; the regularisers depend on
        them. Empty for an objective without boxes.
    measures: (B,) each, by name: what is logged besides, as a mean over the examples.
    """

    losses: Tensor
    margins: Tensor | None = None
    traces: tuple[BoundTrace, ...] = ()
    measures: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """A training objective. It keeps no state from step to step, and changes nothing.

    attacks: whether `prepare` attacks; then the clean batch passes first. fades: whether the objective has terms that
    fade out with the warm-up, so that steps after it are compiled anew.
    """

    attacks = False
    fades = False

    def prepare(self, passes: Passes, ascent: SignedAscent) -> tuple[Tensor, ...]:
        """What the attacks find, (B, …) each, without gradients. Called before `robust`, and never compiled."""
        return ()

    @abstractmethod
    def robust(self, passes: Passes, found: tuple[Tensor, ...]) -> RobustLosses:
        """The losses, given what `prepare` found. It is compiled, so it must not depend on values."""


def margin_losses(margins: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy (B,) of the logits −margins (B, K) against `labels`.

    For lower bounds of the margins, it bounds the worst-case cross-entropy in the box from above (Wong and Kolter 2018,
    theorem 2; Gowal et al. 2018, eq. 11).
    """
    return F.cross_entropy(-margins, labels, reduction="none")


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    """logit[y] − logit[j], (B, K), of logits (B, K)."""
    return logits.gather(1, labels.unsqueeze(1)) - logits


def all_positive(margins: Tensor, labels: Tensor) -> Tensor:
    """1 for each example (B,) whose margins (B, K) to all other classes are above zero, else 0."""
    others = margins.detach().scatter(1, labels.unsqueeze(1), 1.0)
    return (others > 0).all(1).to(margins.dtype)
