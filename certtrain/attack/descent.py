"""Projected gradient descent (Madry et al. 2018): signed gradients, and steps that fall linearly from ε/2."""

from torch import Tensor

from certtrain.attack.losses import Loss
from certtrain.attack.state import AttackState, Work


def run(state: AttackState, work: Work, draws: Tensor, loss: Loss, eps: float, steps: int) -> None:
    """Take `steps` from one start in each box, which `draws` (n, …) in [0, 1) place."""
    point = work.project(work.lower + (work.upper - work.lower) * draws)
    for step in range(steps):
        if state.over(work):
            return
        found = state.probe(work, point, loss)
        work, point, gradient = work.take(found.robust), point[found.robust], found.gradient[found.robust]
        size = eps / 2 * (1 - step / steps)
        point = work.project(point + size * gradient.sign())
    if not state.over(work):
        state.try_out(work, point)
