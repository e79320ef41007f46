"""Projected gradient descent (Madry et al. 2018): signed gradients, and steps that fall linearly from half the radius.

Written as the ascent of a loss. `run_pgd` attacks a data set or a property, and
leaves out the examples that are falsified on the way. `ascend` takes the same
steps within a training step: it waits for nothing, and compiles with the rest.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from certtrain.attack.criterion import Work
from certtrain.attack.losses import Loss
from certtrain.attack.state import AttackState
from certtrain.bounds.box import Box


def run_pgd(state: AttackState, work: Work, draws: Tensor | float, loss: Loss, steps: int) -> None:
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
    """Inputs (B, …) of the boxes where `loss` is high, `steps` after the start that `draws` (B, …) in [0, 1] place.

    `loss` maps inputs (B, …) to one value for each example, (B,); it is not differentiated by anything else, and the
    result has no gradient. For training: no counterexample is looked for, and as the ends of the boxes are those of
    centre and radius, the result may lie outside an input's box by their rounding.
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
