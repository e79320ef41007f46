"""SABR: intervals over a small box around an attacked input.

From "Certified Training: Small Boxes are All You Need" (Müller et al. 2023).
"""

import torch
from torch import Tensor, nn

from certtrain.bounds.box import Box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.interval import Altered
from certtrain.spec.objective import AttackSection
from certtrain.training.objectives.adversarial import InputAttack
from certtrain.training.objectives.base import Objective, RobustLosses, all_positive, margin_losses
from certtrain.training.passes import Passes, SignedAscent


class SmallBoxes:
    """The small boxes: λ times the half width of the input boxes, around attacked inputs, inside the input boxes."""

    def __init__(self, graph: LayerGraph, attack: AttackSection, ratio: float) -> None:
        self.attack, self.ratio = InputAttack(graph, attack), ratio

    def around(self, passes: Passes, points: Tensor) -> Box:
        """The boxes around `points` (B, …), which may lie outside the input boxes."""
        whole = passes.input_box()
        radius = whole.radius * self.ratio
        offset = (points - whole.centre).clamp(radius - whole.radius, whole.radius - radius)
        return Box(whole.centre + offset, radius)


class SABR(Objective):
    """L(m) by intervals over the small box, with bounds of ReLUs that shrink by `shrinkage`."""

    attacks = True

    def __init__(self, boxes: SmallBoxes, shrinkage: float) -> None:
        self.boxes, self.altered = boxes, shrinking(shrinkage)

    def prepare(self, passes: Passes, ascent: SignedAscent) -> tuple[Tensor, ...]:
        """As `Objective`: attacked inputs."""
        return (self.boxes.attack.inputs(passes, ascent),)

    def robust(self, passes: Passes, found: tuple[Tensor, ...]) -> RobustLosses:
        """As `Objective`. The small box certifies nothing, so there are no margins."""
        trace = passes.trace(self.boxes.around(passes, found[0]), altered=self.altered)
        margins = trace.margins(passes.labels)
        measures = {"small_box_accuracy": all_positive(margins, passes.labels)}
        return RobustLosses(margin_losses(margins, passes.labels), traces=(trace,), measures=measures)


def shrinking(shrinkage: float) -> Altered | None:
    """Multiply the upper bounds of unstable ReLUs by 1 − s (Müller et al. 2023); None for s = 0."""
    if shrinkage == 0:
        return None

    def altered(layer: nn.Module, box: Box) -> Box:
        if not isinstance(layer, nn.ReLU):
            return box
        lower, upper = box.lower, box.upper
        upper = torch.where((lower < 0) & (upper > 0), upper * (1 - shrinkage), upper)
        return Box((lower + upper) / 2, (upper - lower) / 2, box.clean)

    return altered
