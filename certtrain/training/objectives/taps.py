"""TAPS and STAPS: intervals through the first part of the network, an attack in their box.

From "Connecting Certified and Adversarial Training" (Mao et al. 2023).
"""

import torch
from torch import Tensor

from certtrain.attack.descent import AttackLoss
from certtrain.bounds.box import Box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import StatisticsByCall
from certtrain.bounds.trace import BoundTrace
from certtrain.errors import UnsupportedLayer
from certtrain.spec.objective import LatentAttack
from certtrain.training.objectives.base import Objective, RobustLosses, all_positive, margin_losses
from certtrain.training.objectives.sabr import SmallBoxes, shrinking
from certtrain.training.passes import Clean, Passes, SignedAscent

WHOLE_NETWORK = "input"  # the split before the first layer


class TAPS(Objective):
    """L(margins of latent inputs) L(m) with m by intervals over the same box (Mao et al. 2023).

    For each class j, an attack in the box before the second part of the network finds a latent input where
    logit[y] − logit[j] is small. Its gradient goes on to the ends of that box. small: SABR's boxes in place of the
    input boxes, as in STAPS.
    """

    attacks = True

    def __init__(self, graph: LayerGraph, settings: LatentAttack, small: SmallBoxes | None = None) -> None:
        self.graph, self.settings, self.small = graph, settings, small
        self.first, self.second = _parts(graph, settings.split)
        self.altered = shrinking(settings.relu_shrinkage)
        self.loss = AttackLoss(self._losses)

    def prepare(self, passes: Passes, ascent: SignedAscent) -> tuple[Tensor, ...]:
        """As `Objective`: the places (B, K, …) of the latent inputs in their box, in [0, 1]; for STAPS, x′ before."""
        points = () if self.small is None else (self.small.attack.inputs(passes, ascent),)
        lower, width = ascent.wrap(self._latent_ends)(passes.x, passes.labels, passes.eps, passes.clean, points)
        return (*points, self._places(passes, ascent, lower, width))

    def robust(self, passes: Passes, found: tuple[Tensor, ...]) -> RobustLosses:
        """As `Objective`."""
        *points, places = found
        labels = passes.labels
        box, traces = self._latent_box(passes, tuple(points))
        latent = self._latent_margins(passes, box, places)
        whole = passes.trace(box, graph=self.second, altered=self.altered)
        margins = whole.margins(labels)
        by_attack, by_bounds = margin_losses(latent, labels), margin_losses(margins, labels)
        losses = _scaled(by_attack, self.settings.gradient_scale) * by_bounds
        measures = {
            "latent_loss": by_attack,
            "interval_loss": by_bounds,
            "latent_accuracy": all_positive(latent, labels),
        }
        if self.small is not None:
            measures |= {"small_box_accuracy": all_positive(margins, labels)}
        # Of a smaller box, or by bounds that were shrunk, margins certify nothing.
        certified = margins if self.small is None and self.altered is None else None
        return RobustLosses(losses, certified, (*traces, whole), measures)

    # --- the latent box ----------------------------------------------------------------------------------

    def _latent_box(self, passes: Passes, points: tuple[Tensor, ...]) -> tuple[Box, tuple[BoundTrace, ...]]:
        """The box (B, …) before the second part, and the trace of the first part if there is one."""
        box = passes.input_box() if self.small is None else self.small.around(passes, points[0])
        if self.first is None:
            return box, ()
        trace = passes.trace(box, graph=self.first, altered=self.altered)
        return trace.output, (trace,)

    def _latent_ends(
        self, x: Tensor, labels: Tensor, eps: Tensor, clean: Clean, points: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Lower end and width (B, …) of the latent box, without gradients."""
        with torch.no_grad():
            passes = Passes(self.graph, x, labels, eps, source=clean.statistics, clean=clean)
            box, _ = self._latent_box(passes, points)
            return box.lower, 2 * box.radius

    # --- the latent inputs -------------------------------------------------------------------------------

    def _places(self, passes: Passes, ascent: SignedAscent, lower: Tensor, width: Tensor) -> Tensor:
        assert passes.clean is not None
        classes = passes.clean.logits.shape[1]
        labels, targets = _rows_by_class(passes.labels, classes)
        low, wide = (end.repeat_interleave(classes, 0) for end in (lower, width))
        box = Box(low + wide / 2, wide / 2)
        points = ascent(self.loss, passes, box, self.settings.latent_attack, "latent attack", labels, targets)
        places = ((points - low) / wide.where(wide > 0, 1.0)).clamp(0, 1)
        return places.view(len(lower), classes, *places.shape[1:])

    def _losses(self, points: Tensor, statistics: StatisticsByCall, labels: Tensor, targets: Tensor) -> Tensor:
        """logit[t] − logit[y], (n,), of latent inputs (n, …)."""
        logits = plain_pass(self.second, points, statistics=statistics).output
        return _column(logits, targets) - _column(logits, labels)

    def _latent_margins(self, passes: Passes, box: Box, places: Tensor) -> Tensor:
        """logit[y] − logit[j] (B, K), each at the latent input that was found for class j."""
        points = linked(box.lower.unsqueeze(1), box.upper.unsqueeze(1), places, self.settings.link)
        labels, targets = _rows_by_class(passes.labels, places.shape[1])
        losses = self._losses(points.flatten(0, 1), passes.statistics, labels, targets)
        return -losses.view(places.shape[:2])


def linked(lower: Tensor, upper: Tensor, places: Tensor, link: float) -> Tensor:
    """The points lower + places · (upper − lower), whose gradient goes to the ends of the box (Mao et al. 2023).

    A point passes its gradient to an end in full if it lies there, and less the farther it is: nothing from a share
    `link` of the width on.
    """
    to_lower, to_upper = (((link - share) / link).clamp(0, 1) for share in (places, 1 - places))
    held = torch.lerp(lower.detach(), upper.detach(), places)
    return held + to_lower * (lower - lower.detach()) + to_upper * (upper - upper.detach())


def _parts(graph: LayerGraph, split: str) -> tuple[LayerGraph | None, LayerGraph]:
    """The two parts of the network. Raises UnsupportedLayer, which says which layers the field can name."""
    if split == WHOLE_NETWORK:
        return None, graph
    names = [graph.calls[value - 1].name for value in graph.cuts()]
    if split not in names:
        known = ", ".join([WHOLE_NETWORK, *names])
        raise UnsupportedLayer(f"objective.split is {split!r}; this network can be split at: {known}")
    return graph.split(graph.value_of(split))


def _rows_by_class(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The label and the class (B K,) of each row: all classes of an example, then those of the next."""
    return labels.repeat_interleave(classes), torch.arange(classes, device=labels.device).repeat(len(labels))


def _column(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def _scaled(losses: Tensor, scale: float) -> Tensor:
    """The same values, with `scale` times their gradient."""
    return losses.detach() + scale * (losses - losses.detach())
