"""Auto-PGD (Croce and Hein 2020, algorithm 1), for boxes."""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from certtrain.attack.losses import Loss
from certtrain.attack.state import AttackState, Probe, Work

MOMENTUM = 0.75  # α: the share of the new step beside the last one
RISING = 0.75  # ρ: the share of steps that must raise the loss


class Climb(NamedTuple):
    """Where each point's search stands: one row a point.

    point, gradient and loss are the last iterate's, previous is the one before;
    best… belong to the highest loss so far. rises counts the steps since the
    last checkpoint that raised the loss; halved and checked are that
    checkpoint's decision and its highest loss.
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
        """The points of the mask `which`."""
        return self if bool(which.all()) else type(self)(*(tensor[which] for tensor in self))


def checkpoints(steps: int) -> list[int]:
    """The steps after which step sizes are looked at: shares 0.22, then gaps that shrink by 0.03 down to 0.06."""
    marks, last, share = [0], 0.0, 0.22
    while (mark := math.ceil(round(share * steps, 9))) <= steps:
        marks.append(mark)
        last, share = share, share + max(share - last - 0.03, 0.06)
    return sorted(set(marks))


def run(state: AttackState, work: Work, draws: Tensor, loss: Loss, eps: float, steps: int) -> None:
    """Take `steps` from one start in each box, which `draws` (n, …) in [0, 1) place."""
    towards = 2 * draws - 1
    start = work.project(work.x + eps * towards / _wide(towards.flatten(1).abs().amax(dim=1), towards))
    found = state.probe(work, start, loss)
    climb, work = _begin(start, found, 2 * eps).take(found.robust), work.take(found.robust)
    marks = checkpoints(steps)
    for number in range(1, steps + 1):
        if state.over(work):
            return
        point = _next(climb, work, 1.0 if number == 1 else MOMENTUM)
        found = state.probe(work, point, loss)
        climb, work = _moved(climb, point, found).take(found.robust), work.take(found.robust)
        if number in marks:
            climb = _checked(climb, number - marks[marks.index(number) - 1])


def _begin(start: Tensor, found: Probe, step: float) -> Climb:
    loss, gradient, none = found.loss, found.gradient, torch.zeros_like(found.loss)
    sizes = torch.full_like(loss, step)
    return Climb(start, start, gradient, loss, start, gradient, loss, sizes, none, none > 0, loss)


def _next(climb: Climb, work: Work, momentum: float) -> Tensor:
    """A step along the signed gradient, and a share of the last move."""
    ahead = work.project(climb.point + _wide(climb.step.to(climb.point), climb.point) * climb.gradient.sign())
    inertia = (1 - momentum) * (climb.point - climb.previous)
    return work.project(climb.point + momentum * (ahead - climb.point) + inertia)


def _moved(climb: Climb, point: Tensor, found: Probe) -> Climb:
    better = found.loss > climb.best_loss
    return climb._replace(
        point=point,
        previous=climb.point,
        gradient=found.gradient,
        loss=found.loss,
        best=_pick(better, point, climb.best),
        best_gradient=_pick(better, found.gradient, climb.best_gradient),
        best_loss=torch.where(better, found.loss, climb.best_loss),
        rises=climb.rises + (found.loss > climb.loss),
    )


def _checked(climb: Climb, gap: int) -> Climb:
    """Halve the step, and go back to the best point, where the last `gap` steps rose too seldom or won nothing.

    The second condition holds only where the step was not halved at the checkpoint before.
    """
    halve = (climb.rises < RISING * gap) | (~climb.halved & (climb.best_loss <= climb.checked))
    return climb._replace(
        point=_pick(halve, climb.best, climb.point),
        gradient=_pick(halve, climb.best_gradient, climb.gradient),
        loss=torch.where(halve, climb.best_loss, climb.loss),
        step=torch.where(halve, climb.step / 2, climb.step),
        rises=torch.zeros_like(climb.rises),
        halved=halve,
        checked=climb.best_loss,
    )


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """One value a point (n,), to be multiplied with points (n, …)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _pick(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(_wide(which, yes), yes, no)
