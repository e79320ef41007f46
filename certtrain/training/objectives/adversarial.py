"""Adversarial training, and the expressive losses between it and IBP.

MTL-IBP, CC-IBP and Exp-IBP are the losses of these names in "Expressive Losses for Verified Robustness via Convex
Combinations" (De Palma et al. 2024).
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from certtrain.attack.descent import AttackLoss
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import StatisticsByCall
from certtrain.spec.objective import AttackSection
from certtrain.training.objectives.base import Objective, RobustLosses, all_positive, margin_losses, margins_of
from certtrain.training.passes import Passes, SignedAscent


class InputAttack:
    """The attack on inputs that several objectives begin with: ascent of the cross-entropy in the box."""

    def __init__(self, graph: LayerGraph, settings: AttackSection) -> None:
        self.graph, self.settings = graph, settings
        self.loss = AttackLoss(self._losses)

    def _losses(self, x: Tensor, statistics: StatisticsByCall, labels: Tensor) -> Tensor:
        return F.cross_entropy(plain_pass(self.graph, x, statistics=statistics).output, labels, reduction="none")

    def inputs(self, passes: Passes, ascent: SignedAscent) -> Tensor:
        """Attacked inputs (B, …)."""
        box = passes.input_box(self.settings.radius)
        return ascent(self.loss, passes, box, self.settings, "attack", passes.labels)


class Adversarial(Objective):
    """L(x′) at attacked inputs x′ (Madry et al. 2018). Nothing is bounded."""

    attacks = True

    def __init__(self, graph: LayerGraph, attack: AttackSection) -> None:
        self.attack = InputAttack(graph, attack)

    def prepare(self, passes: Passes, ascent: SignedAscent) -> tuple[Tensor, ...]:
        """As `Objective`: x′."""
        return (self.attack.inputs(passes, ascent),)

    def robust(self, passes: Passes, found: tuple[Tensor, ...]) -> RobustLosses:
        """As `Objective`."""
        margins = margins_of(passes.outputs(found[0]), passes.labels)
        losses = margin_losses(margins, passes.labels)
        return RobustLosses(losses, measures={"adversarial_accuracy": all_positive(margins, passes.labels)})


# From the weight α of the bounds, the margins (B, K) by bounds and at x′, and labels (B,), to losses (B,).
Mix = Callable[[float, Tensor, Tensor, Tensor], Tensor]


class Expressive(Objective):
    """A mix of the losses of IBP and of an attack, with weight α of IBP (De Palma et al. 2024)."""

    attacks = True

    def __init__(self, graph: LayerGraph, attack: AttackSection, alpha: float, mix: Mix) -> None:
        self.attack, self.alpha, self.mix = InputAttack(graph, attack), alpha, mix

    def prepare(self, passes: Passes, ascent: SignedAscent) -> tuple[Tensor, ...]:
        """As `Objective`: x′."""
        return (self.attack.inputs(passes, ascent),)

    def robust(self, passes: Passes, found: tuple[Tensor, ...]) -> RobustLosses:
        """As `Objective`. One pass is for boxes and attacked inputs, so that each weight is read once for both."""
        labels = passes.labels
        trace = passes.trace(passes.input_box(), beside=found[0])
        assert trace.clean is not None
        bounded, attacked = trace.margins(labels), margins_of(trace.clean, labels)
        losses = self.mix(self.alpha, bounded, attacked, labels)
        return RobustLosses(losses, bounded, (trace,), _measures(bounded, attacked, labels))


def _measures(bounded: Tensor, attacked: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
    return {
        "certified_loss": margin_losses(bounded, labels),
        "adversarial_loss": margin_losses(attacked, labels),
        "adversarial_accuracy": all_positive(attacked, labels),
    }


def mtl_ibp(alpha: float, bounded: Tensor, attacked: Tensor, labels: Tensor) -> Tensor:
    """α L(m) + (1 − α) L(x′) (De Palma et al. 2024)."""
    return alpha * margin_losses(bounded, labels) + (1 - alpha) * margin_losses(attacked, labels)


def cc_ibp(alpha: float, bounded: Tensor, attacked: Tensor, labels: Tensor) -> Tensor:
    """L(α m + (1 − α) m(x′)) (De Palma et al. 2024)."""
    return margin_losses(alpha * bounded + (1 - alpha) * attacked.to(bounded), labels)


def exp_ibp(alpha: float, bounded: Tensor, attacked: Tensor, labels: Tensor) -> Tensor:
    """L(m)^α L(x′)^(1 − α) (De Palma et al. 2024)."""
    # A loss may be rounded to zero, where its logarithm is not finite; there it has no gradient.
    logs = (_positive(margin_losses(margins, labels)).log() for margins in (bounded, attacked))
    certified, adversarial = logs
    return (alpha * certified + (1 - alpha) * adversarial).exp()


def _positive(losses: Tensor) -> Tensor:
    return losses.clamp(min=torch.finfo(losses.dtype).tiny)
