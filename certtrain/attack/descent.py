"""Projected gradient descent (Madry et al. 2018): signed gradients, and steps that fall linearly from half the radius.

Written as ascent of a loss: the attack on a data set or a property goes by `run`,
which drops what is falsified on its way. A training step goes by `ascend`, which
takes the same steps, waits for nothing, and can be compiled with the rest of it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from certtrain.attack.criterion import Work
from certtrain.attack.losses import Loss
from certtrain.attack.state import AttackState
from certtrain.bounds.box import Box


def run(state: AttackState, work: Work, draws: Tensor | float, loss: Loss, steps: int) -> None:
    """Take `steps` from one start in each box, which `draws` (n, …) in [0, 1) place."""
    point = work.project(work.lower + (work.upper - work.lower) * draws)
    for step in range(steps):
        if state.over(work):
            return
        found = state.probe(work, point, loss)
        work, point, gradient = work.take(found.robust), point[found.robust], found.gradient[found.robust]
        point = work.project(point + _size(work.radius, step, steps) * gradient.sign())
    if not state.over(work):
        state.try_out(work, point)


def ascend(loss: Callable[[Tensor], Tensor], box: Box, draws: Tensor | float, steps: int) -> Tensor:
    """Inputs (B, …) of the boxes where `loss` is high, after `steps` from the start that `draws` in [0, 1) place.

    `loss` maps inputs (B, …) to one value an example, (B,). What is found has no gradient, neither from the boxes nor
    from what the loss depends on. As in training, where one step of a network is not worth an exact end: nothing is
    tried for a counterexample, and a box's ends may be off by the rounding of centre and radius.
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
