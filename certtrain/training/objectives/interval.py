"""The cross-entropy of certified margins: by intervals, and by linear bounds beside them."""

import torch
from torch import Tensor

from certtrain.bounds.linear import margins as linear_margins
from certtrain.bounds.trace import BoundTrace
from certtrain.training.fusion import fused_cross_entropy
from certtrain.training.objectives.base import Objective, RobustLosses, margin_losses
from certtrain.training.passes import Passes


class IBP(Objective):
    """L(m) by intervals over the whole box (Gowal et al. 2018)."""

    def robust(self, passes: Passes, found: tuple[Tensor, ...]) -> RobustLosses:
        """As `Objective`."""
        trace = passes.trace(passes.input_box())
        margins = trace.margins(passes.labels)
        return RobustLosses(margin_losses(margins, passes.labels), margins, (trace,))


class CrownIBP(Objective):
    """As IBP, and linear bounds with weight 1 − ε/ε_max (Zhang et al. 2020, eq. 9).

    With `loss_fusion` they bound the loss itself (Xu et al. 2020, section 3.3), else the margins.
    """

    fades = True

    def __init__(self, loss_fusion: bool) -> None:
        self.loss_fusion = loss_fusion

    def robust(self, passes: Passes, found: tuple[Tensor, ...]) -> RobustLosses:
        """As `Objective`. Fused bounds have no margins: the margins are then those of the intervals."""
        trace, labels, weight = passes.trace(passes.input_box()), passes.labels, passes.warmup
        margins = trace.margins(labels)
        if weight is None:
            return RobustLosses(margin_losses(margins, labels), margins, (trace,))
        if self.loss_fusion:
            return RobustLosses(_fused(trace, margins, labels, weight), margins, (trace,))
        by_class = linear_margins(trace, labels)
        margins = torch.lerp(margins.to(by_class), by_class, weight)
        return RobustLosses(margin_losses(margins, labels), margins, (trace,))


def _fused(trace: BoundTrace, margins: Tensor, labels: Tensor, weight: Tensor | float) -> Tensor:
    fused = fused_cross_entropy(trace, labels)
    return torch.lerp(margin_losses(margins, labels).to(fused), fused, weight)
