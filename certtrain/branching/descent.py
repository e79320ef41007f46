"""Gradient descent from the inputs that minimise the bounds of domains: a counterexample may be near."""

from functools import partial

import torch
from torch import Tensor

from certtrain.attack.descent import AscentSteps, ascend
from certtrain.bounds.box import Box
from certtrain.branching.problem import Problem

# Signed steps, in half widths of the box. The minimisers of linear bounds are corners; the least values are often near.
DESCENT = AscentSteps(sizes=(0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02), restarts=1, start=1.0, best=True)


@torch.no_grad()
def descended(problem: Problem, inputs: Tensor) -> Tensor:
    """Inputs (D, …) of the problem's box where the largest function is small, from `inputs` (D, …) of the box."""
    start = problem.prefix.start
    box = Box(start.centre.expand_as(inputs), start.radius.expand_as(inputs))
    shares = (inputs - box.centre) / box.radius.clamp(min=torch.finfo(inputs.dtype).tiny)
    draws = (shares.clamp(-1, 1) / 2 + 0.5).unsqueeze(0)
    return ascend(partial(_losses, problem), partial(_gradient, problem), box, draws, DESCENT, ())


def _losses(problem: Problem, inputs: Tensor) -> Tensor:
    """Minus the largest function (D,) at each input."""
    return -(problem.run(inputs)[0] @ problem.functions.T + problem.offsets).amax(1)


def _gradient(problem: Problem, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The losses and their gradient, without torch.func, whose first use takes a second to import."""
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        losses = _losses(problem, inputs)
        return losses.detach(), torch.autograd.grad(losses.sum(), inputs)[0]
