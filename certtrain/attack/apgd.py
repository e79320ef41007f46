"""Auto-PGD (Croce and Hein 2020, algorithm 1), for boxes."""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from certtrain.attack.criterion import AttackBatch
from certtrain.attack.losses import Loss
from certtrain.attack.state import AttackState, Probe

FIRST_STEP = 2.0  # in multiples of the radius
MOMENTUM = 0.75  # α: the weight of the new step; the last move has weight 1 − α
RISING = 0.75  # ρ: the share of steps that must increase the loss


class Iterates(NamedTuple):
    """The state of the search, one row for each example.

    point, gradient, loss: of the last iterate. previous: the iterate before.
    best, best_gradient, best_loss: of the iterate with the highest loss so far.
    step: in multiples of the radius. rises: how many steps since the last
    checkpoint increased the loss. halved, checked: whether that checkpoint halved
    the step, and the highest loss there.
    """

    point: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step: Tensor
    rises: Tensor
    halved: Tensor
    checked: Tensor

    def take(self, which: Tensor) -> Self:
        """The examples of the mask `which`."""
        return self if bool(which.all()) else type(self)(*(tensor[which] for tensor in self))


def checkpoints(steps: int) -> list[int]:
    """The checkpoints, after which step sizes may change: at 0.22 of all steps, then with gaps that shrink to 0.06."""
    marks, last, share = [0], 0.0, 0.22
    while (mark := math.ceil(round(share * steps, 9))) <= steps:
        marks.append(mark)
        last, share = share, share + max(share - last - 0.03, 0.06)
    return sorted(set(marks))


def run_apgd(state: AttackState, batch: AttackBatch, draws: Tensor, loss: Loss, steps: int) -> None:
    """Take `steps` steps in each box, from one start that `draws` (n, …) in [0, 1) determine."""
    towards = 2 * draws - 1
    start = batch.project(batch.x + batch.radius * towards / _wide(towards.flatten(1).abs().amax(dim=1), towards))
    found = state.probe(batch, start, loss)
    iterates, batch = _begin(start, found).take(found.robust), batch.take(found.robust)
    marks = checkpoints(steps)
    for number in range(1, steps + 1):
        if state.finished(batch):
            return
        point = _next(iterates, batch, 1.0 if number == 1 else MOMENTUM)
        found = state.probe(batch, point, loss)
        iterates, batch = _moved(iterates, point, found).take(found.robust), batch.take(found.robust)
        if number in marks:
            iterates = _checked(iterates, number - marks[marks.index(number) - 1])


def _begin(start: Tensor, found: Probe) -> Iterates:
    loss, gradient, none = found.loss, found.gradient, torch.zeros_like(found.loss)
    sizes = torch.full_like(loss, FIRST_STEP)
    return Iterates(start, start, gradient, loss, start, gradient, loss, sizes, none, none > 0, loss)


def _next(iterates: Iterates, batch: AttackBatch, momentum: float) -> Tensor:
    """The next iterate: a step along the signed gradient, and a share of the last move."""
    size = _wide(iterates.step.to(iterates.point), iterates.point) * batch.radius
    ahead = batch.project(iterates.point + size * iterates.gradient.sign())
    inertia = (1 - momentum) * (iterates.point - iterates.previous)
    return batch.project(iterates.point + momentum * (ahead - iterates.point) + inertia)


def _moved(iterates: Iterates, point: Tensor, found: Probe) -> Iterates:
    better = found.loss > iterates.best_loss
    return iterates._replace(
        point=point,
        previous=iterates.point,
        gradient=found.gradient,
        loss=found.loss,
        best=_pick(better, point, iterates.best),
        best_gradient=_pick(better, found.gradient, iterates.best_gradient),
        best_loss=torch.where(better, found.loss, iterates.best_loss),
        rises=iterates.rises + (found.loss > iterates.loss),
    )


def _checked(iterates: Iterates, gap: int) -> Iterates:
    """Halve the step and return to the best iterate where too few of the last `gap` steps increased the loss.

    The same happens where the step was not halved at the previous checkpoint and the best loss has not increased since.
    """
    halve = (iterates.rises < RISING * gap) | (~iterates.halved & (iterates.best_loss <= iterates.checked))
    return iterates._replace(
        point=_pick(halve, iterates.best, iterates.point),
        gradient=_pick(halve, iterates.best_gradient, iterates.gradient),
        loss=torch.where(halve, iterates.best_loss, iterates.loss),
        step=torch.where(halve, iterates.step / 2, iterates.step),
        rises=torch.zeros_like(iterates.rises),
        halved=halve,
        checked=iterates.best_loss,
    )


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """One value for each example (n,), in a shape that broadcasts with values (n, …)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _pick(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(_wide(which, yes), yes, no)
