"""Projected gradient descent (Madry et al. 2018): signed gradients, and steps that fall linearly from ε/2."""

from torch import Tensor

from certtrain.attack.hunt import Hunt, Work
from certtrain.attack.losses import Loss


def run(hunt: Hunt, work: Work, draws: Tensor, loss: Loss, eps: float, steps: int) -> None:
    """Take `steps` from one start in each box, which `draws` (n, …) in [0, 1) place."""
    point = work.project(work.lower + (work.upper - work.lower) * draws)
    for step in range(steps):
        if hunt.over(work):
            return
        found = hunt.probe(work, point, loss)
        work, point, gradient = work.take(found.whole), point[found.whole], found.gradient[found.whole]
        size = eps / 2 * (1 - step / steps)
        point = work.project(point + size * gradient.sign())
    if not hunt.over(work):
        hunt.try_out(work, point)
