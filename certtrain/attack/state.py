"""One batch under attack: which examples are still robust, and what was found for the others."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from certtrain.attack.criterion import Criterion, Work
from certtrain.attack.losses import Loss
from certtrain.data import derive_seed


class Probe(NamedTuple):
    """What the network gives for one input per example: loss (n,), its gradient (n, …), which are still robust (n,)."""

    loss: Tensor
    gradient: Tensor
    robust: Tensor


class AttackState:
    """The attack on the boxes of one batch.

    falsified: (B,), of which examples a counterexample was found. adversarial: (B, …), those; of others their centre.
    numbers: (B,), of the examples in their set: with the seed they decide the random starts.
    """

    def __init__(self, criterion: Criterion, batch: Work, numbers: Tensor, stop: Callable[[], bool]) -> None:
        self.criterion, self.batch, self.numbers, self.stop = criterion, batch, numbers, stop
        self.falsified = torch.zeros(len(batch.rows), dtype=torch.bool, device=batch.rows.device)
        self.adversarial = batch.x.clone()

    def work(self, targets: Tensor | None = None) -> Work:
        """The examples that are still robust, with these target classes (B,)."""
        batch = self.batch if targets is None else self.batch._replace(targets=targets)
        return batch.take(~self.falsified)

    def over(self, work: Work) -> bool:
        """Whether nothing is left to do, or no time to do it."""
        return len(work.rows) == 0 or self.stop()

    def random(self, work: Work, *names: int | str) -> Tensor:
        """Numbers in [0, 1) for each example (n, …), by the names and its number, whatever batch it is in."""
        shape, rows = work.x.shape[1:], self.numbers[work.rows.cpu()].tolist()
        draws = [
            torch.rand(shape, generator=Generator().manual_seed(derive_seed("attack", *names, row))) for row in rows
        ]
        return torch.stack(draws).to(work.x)

    def probe(self, work: Work, point: Tensor, loss: Loss) -> Probe:
        """Try `point` (n, …), note counterexamples, and find the direction in which the loss rises."""
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self.criterion.outputs(point)
            losses = loss(outputs.float() if outputs.dtype == torch.bfloat16 else outputs, work.labels, work.targets)
            gradient = torch.autograd.grad(losses.sum(), point)[0]
        robust = self.note(work, point.detach(), outputs.detach())
        # A direction that is not a number is none: NaN pixels are in no box.
        return Probe(losses.detach(), gradient.nan_to_num(0.0), robust)

    @torch.no_grad()
    def try_out(self, work: Work, point: Tensor) -> None:
        """As `probe`, without a direction."""
        self.note(work, point, self.criterion.outputs(point))

    @torch.no_grad()
    def note(self, work: Work, point: Tensor, outputs: Tensor) -> Tensor:
        """Note each point (n, …) that is a counterexample by its outputs (n, K); which examples are still robust."""
        robust = self.criterion.robust(outputs, work)
        for number in (~robust).nonzero().flatten().tolist():
            alone, example = point[number : number + 1], work.row(number)
            robust[number] = not (example.holds(alone) and self.criterion.confirmed(alone, example))
        found = work.rows[~robust]
        self.falsified[found] = True
        self.adversarial[found] = point[~robust]
        return robust
