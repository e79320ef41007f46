"""Projected gradient descent (Madry et al. 2018): signed gradients, with steps that decrease linearly from ε/2.

It is written as ascent of a loss. Attacks on a data set or a property use `run_pgd`,
which drops examples once they are falsified. A training step uses `ascend`, which
takes steps of any lengths, never waits for the device, and leaves the loss and its
gradient to compiled functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

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


class AttackLoss:
    """A loss that an attack in a training step ascends, and its gradient.

    losses: from inputs (n, …) and other arguments to a value for each input, (n,). gradient: from the same to these
    values and their gradient (n, …). Both have no side effects, and can be compiled.
    """

    def __init__(self, losses: Callable[..., Tensor]) -> None:
        self.losses = losses

        def total(point: Tensor, *about: Any) -> tuple[Tensor, Tensor]:
            values = losses(point, *about)
            return values.sum(), values.detach()

        gradient_and_value = torch.func.grad_and_value(total, has_aux=True)

        def gradient(point: Tensor, *about: Any) -> tuple[Tensor, Tensor]:
            gradients, (_, values) = gradient_and_value(point, *about)
            return values, gradients

        self.gradient = gradient


class AscentSteps(NamedTuple):
    """sizes: the length of each step, in half widths of the box. restarts: the number of starts.

    start: the share of the box, around its centre, from which starts are drawn. best: whether all inputs on the way
    count, and not only the last one of each start.
    """

    sizes: tuple[float, ...]
    restarts: int
    start: float
    best: bool


@torch.no_grad()
def ascend(
    losses: Callable[..., Tensor],
    gradient: Callable[..., tuple[Tensor, Tensor]],
    box: Box,
    draws: Tensor | None,
    steps: AscentSteps,
    about: tuple[Any, ...],
) -> Tensor:
    """Inputs (n, …) of the boxes where a loss is high, without a gradient: signed steps (Madry et al. 2018).

    losses, gradient: as in `AttackLoss`, and called with `about`. draws: (R, n, …) in [0, 1), the starts; None for the
    centres. This is for training, which needs no exact ends: no counterexample is confirmed, and the ends of a box are
    rounded as centre ± radius. Nothing here waits for the device.
    """
    lower, upper, radius = box.lower, box.upper, box.radius
    kept = _Kept()
    for restart in range(steps.restarts):
        point = box.centre
        if draws is not None:
            point = torch.addcmul(point, radius, draws[restart] * (2 * steps.start) - steps.start)
        for size in steps.sizes:
            values, gradients = gradient(point, *about)
            if steps.best:
                kept.offer(point, values)
            point = (point + size * radius * gradients.sign()).clamp(lower, upper)
        if steps.best or steps.restarts > 1:
            kept.offer(point, losses(point, *about))
    return point if kept.point is None else kept.point


class _Kept:
    """The inputs (n, …) with the largest loss so far."""

    def __init__(self) -> None:
        self.point: Tensor | None = None
        self.values: Tensor | None = None

    def offer(self, point: Tensor, values: Tensor) -> None:
        if self.point is None or self.values is None:
            self.point, self.values = point, values
            return
        larger = values > self.values
        self.values = torch.where(larger, values, self.values)
        self.point = torch.where(larger.view(-1, *[1] * (point.dim() - 1)), point, self.point)


def _size(radius: float | Tensor, step: int, steps: int) -> float | Tensor:
    return radius / 2 * (1 - step / steps)
