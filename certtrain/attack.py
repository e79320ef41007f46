"""Projected gradient descent: an upper limit on robust accuracy (Madry et al. 2018)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from certtrain.data import derive_seed
from certtrain.objective import correct_points


@dataclass(frozen=True)
class PGD:
    """The attack's settings: `steps` of decaying size from each of `restarts` random starts."""

    steps: int = 20
    restarts: int = 1
    seed: int = 0


class Attacked(NamedTuple):
    """Which points (B,) were misclassified at some input in their box, and those inputs (B, …)."""

    broken: Tensor
    adversarial: Tensor


def pgd(model: nn.Module, x: Tensor, labels: Tensor, eps: float, attack: PGD, index: int = 0) -> Attacked:
    """Search the boxes of radius `eps` around pixels `x` (B, …), cut to [0, 1], for misclassified inputs.

    Each restart descends the smallest margin by signed gradients, its step
    falling linearly from ε/2. The clean inputs are tried first, so a point
    that is misclassified already counts as broken. `index` is the batch's
    number: random starts depend on it and the seed alone.
    """
    lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    generator = Generator().manual_seed(derive_seed(attack.seed, "attack", index))
    found = _keep(model, x, labels, Attacked(torch.zeros_like(labels, dtype=torch.bool), x.clone()))
    for _ in range(attack.restarts if eps > 0 else 0):
        point = lower + (upper - lower) * torch.rand(x.shape, generator=generator).to(x)
        for step in range(attack.steps):
            size = eps / 2 * (1 - step / attack.steps)
            point = (point - size * _gradient(model, point, labels).sign()).clamp(lower, upper)
            found = _keep(model, point, labels, found)
    return found


def _gradient(model: nn.Module, point: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each point's smallest margin, logit[y] − max logit[j]."""
    point = point.detach().requires_grad_()
    logits, column = model(point), labels.unsqueeze(1)
    others = logits.scatter(1, column, -torch.inf).amax(dim=1)
    margin = (logits.gather(1, column).squeeze(1) - others).sum()
    return torch.autograd.grad(margin, point)[0]


@torch.no_grad()
def _keep(model: nn.Module, point: Tensor, labels: Tensor, found: Attacked) -> Attacked:
    new = ~correct_points(model(point), labels) & ~found.broken
    shape = (-1,) + (1,) * (point.dim() - 1)
    return Attacked(found.broken | new, torch.where(new.view(shape), point, found.adversarial))
