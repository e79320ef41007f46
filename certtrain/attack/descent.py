"""Projected gradient descent (Madry et al. 2018): signed gradients, with steps that decrease linearly from ε/2.

It is written as ascent of a loss. Attacks on a data set or a property use `run_pgd`,
which drops examples once they are falsified. A training step uses `ascend`, which
takes the same steps without waiting for the device, and can be compiled.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from certtrain.attack.criterion import AttackBatch
from certtrain.attack.losses import Loss
from certtrain.attack.state import AttackState
from certtrain.bounds.box import Box


def run_pgd(state: AttackState, batch: AttackBatch, draws: Tensor | float, loss: Loss, steps: int) -> None:
    """Take `steps` steps in each box, from one start that `draws` (n, …) in [0, 1) determine."""
    point = batch.project(batch.lower + (batch.upper - batch.lower) * draws)
    for step in range(steps):
        if state.finished(batch):
            return
        found = state.probe(batch, point, loss)
        batch, point, gradient = batch.take(found.robust), point[found.robust], found.gradient[found.robust]
        point = batch.project(point + _size(batch.radius, step, steps) * gradient.sign())
    if not state.finished(batch):
        state.try_inputs(batch, point)


def ascend(loss: Callable[[Tensor], Tensor], box: Box, draws: Tensor | float, steps: int) -> Tensor:
    """Inputs (B, …) in the boxes where `loss` is high, after `steps` steps from starts by `draws` in [0, 1).

    `loss` maps inputs (B, …) to one value for each example, (B,). The result has no gradient, neither to the boxes nor
    to what the loss depends on. This is for training, which needs no exact ends: no counterexample is confirmed, and
    the ends of a box are rounded as centre ± radius.
    """
    lower, upper, radius = box.lower.detach(), box.upper.detach(), box.radius.detach()
    gradient = torch.func.grad(lambda point: loss(point).sum())
    point = lower + (upper - lower) * draws
    with torch.no_grad():
        for step in range(steps):
            point = (point + _size(radius, step, steps) * gradient(point).sign()).clamp(lower, upper)
    return point


def _size(radius: float | Tensor, step: int, steps: int) -> float | Tensor:
    return radius / 2 * (1 - step / steps)
