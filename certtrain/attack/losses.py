"""Losses for attacks: from logits (B, K), labels (B,) and target classes (B,) to one value for each example (B,)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from certtrain.attack.settings import APGD, SingleAttack

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
_TINY = 1e-12  # keeps the ratio finite where the largest logits are equal


def loss_of(settings: SingleAttack, classes: int) -> Loss:
    """The loss of these settings for a network with `classes` classes."""
    targeted = settings.targets > 0
    if isinstance(settings, APGD) and settings.loss == "ce":
        return targeted_cross_entropy if targeted else cross_entropy
    if isinstance(settings, APGD) and classes >= (4 if targeted else 3):
        return targeted_ratio if targeted else ratio
    return targeted_margin if targeted else margin


def margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """max logit[j] − logit[y] over the other classes j."""
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(dim=1)
    return others - _column(logits, labels)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """logit[t] − logit[y]."""
    return _column(logits, targets) - _column(logits, labels)


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against the label."""
    return F.cross_entropy(logits, labels, reduction="none")


def targeted_cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Minus the cross-entropy against the target."""
    return -F.cross_entropy(logits, targets, reduction="none")


def ratio(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The margin over the difference of the largest and the third largest logit (Croce and Hein 2020, eq. 6)."""
    top = logits.topk(3, dim=1).values
    return margin(logits, labels, targets) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_ratio(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The target's margin over the largest logit minus the mean of the third and fourth largest (ibid., eq. 7)."""
    top = logits.topk(4, dim=1).values
    return targeted_margin(logits, labels, targets) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


def _column(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)
