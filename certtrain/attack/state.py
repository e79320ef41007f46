"""The state of an attack on one batch: which examples are still robust, and the counterexamples of the others."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from certtrain.attack.criterion import AttackBatch, Criterion
from certtrain.attack.losses import Loss
from certtrain.data import derive_seed


class Probe(NamedTuple):
    """For one input of each example: the loss (n,), its gradient (n, …), and which examples are still robust (n,)."""

    loss: Tensor
    gradient: Tensor
    robust: Tensor


class AttackState:
    """The attack on the boxes of one batch.

    falsified: (B,), which examples have a counterexample. adversarial: (B, …), the counterexamples, else the centres.
    numbers: (B,), of the examples in their set; with the seed they determine the random starts.
    """

    def __init__(self, criterion: Criterion, batch: AttackBatch, numbers: Tensor, stop: Callable[[], bool]) -> None:
        self.criterion, self.batch, self.numbers, self.stop = criterion, batch, numbers, stop
        self.falsified = torch.zeros(len(batch.rows), dtype=torch.bool, device=batch.rows.device)
        self.adversarial = batch.x.clone()

    def remaining(self, targets: Tensor | None = None) -> AttackBatch:
        """The examples that are still robust, with these target classes (B,)."""
        batch = self.batch if targets is None else self.batch._replace(targets=targets)
        return batch.take(~self.falsified)

    def finished(self, batch: AttackBatch) -> bool:
        """Whether no example is left, or the attack must stop."""
        return len(batch.rows) == 0 or self.stop()

    def random(self, batch: AttackBatch, *names: int | str) -> Tensor:
        """Random numbers in [0, 1) for each example (n, …), which depend only on `names` and its number in the set."""
        shape, rows = batch.x.shape[1:], self.numbers[batch.rows.cpu()].tolist()
        draws = [
            torch.rand(shape, generator=Generator().manual_seed(derive_seed("attack", *names, row))) for row in rows
        ]
        return torch.stack(draws).to(batch.x)

    def probe(self, batch: AttackBatch, point: Tensor, loss: Loss) -> Probe:
        """Evaluate the inputs `point` (n, …), record counterexamples, and compute the gradient of the loss."""
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self.criterion.outputs(point)
            losses = loss(outputs.float() if outputs.dtype == torch.bfloat16 else outputs, batch.labels, batch.targets)
            gradient = torch.autograd.grad(losses.sum(), point)[0]
        robust = self.record(batch, point.detach(), outputs.detach())
        # A NaN gradient counts as zero, since NaN pixels are in no box.
        return Probe(losses.detach(), gradient.nan_to_num(0.0), robust)

    @torch.no_grad()
    def try_inputs(self, batch: AttackBatch, point: Tensor) -> None:
        """As `probe`, without the gradient."""
        self.record(batch, point, self.criterion.outputs(point))

    @torch.no_grad()
    def record(self, batch: AttackBatch, point: Tensor, outputs: Tensor) -> Tensor:
        """Record the inputs (n, …) whose outputs (n, K) make them counterexamples; returns which are none (n,)."""
        robust = self.criterion.robust(outputs, batch)
        for number in (~robust).nonzero().flatten().tolist():
            alone, example = point[number : number + 1], batch.row(number)
            robust[number] = not (example.holds(alone) and self.criterion.confirmed(alone, example))
        found = batch.rows[~robust]
        self.falsified[found] = True
        self.adversarial[found] = point[~robust]
        return robust
