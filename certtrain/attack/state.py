"""One batch under attack: which points are still robust, and what was found for the others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Generator, Tensor, nn

from certtrain.attack.box import box_ends
from certtrain.attack.losses import Loss
from certtrain.bounds.checks import check_labels
from certtrain.bounds.rounding import arithmetic_named
from certtrain.data import derive_seed
from certtrain.runtime.precision import tensor_cores
from certtrain.verdicts import correct_points


class Work(NamedTuple):
    """The points that an attack works on: boxes (n, …), labels and target classes (n,), rows in the batch (n,)."""

    x: Tensor
    lower: Tensor
    upper: Tensor
    labels: Tensor
    targets: Tensor
    rows: Tensor

    def take(self, which: Tensor) -> Self:
        """The points of the mask `which` (n,)."""
        return self if bool(which.all()) else type(self)(*(tensor[which] for tensor in self))

    def project(self, point: Tensor) -> Tensor:
        """The nearest point of each box."""
        return point.clamp(self.lower, self.upper)


class Probe(NamedTuple):
    """What the network says of one candidate a point: loss (n,), its gradient (n, …), and which are still robust."""

    loss: Tensor
    gradient: Tensor
    robust: Tensor


class AttackState:
    """The search through one batch of boxes; `falsified` (B,) and `adversarial` (B, …) hold what was found."""

    def __init__(
        self, model: nn.Module, work: Work, numbers: Tensor, arithmetic: str, stop: Callable[[], bool]
    ) -> None:
        self.model, self.batch, self.numbers, self.arithmetic, self.stop = model, work, numbers, arithmetic, stop
        self.falsified, self.adversarial = torch.zeros_like(work.labels, dtype=torch.bool), work.x.clone()
        with torch.no_grad():
            self.logits = self.infer(work.x)
        check_labels(work.labels, self.logits.shape)
        self._record(work, work.x, self.logits)

    def work(self, rank: int | None = None) -> Work:
        """The points that are still whole; their targets are the other class that is `rank`-th likeliest, from 0."""
        others = self.logits.float().scatter(1, self.batch.labels.unsqueeze(1), -torch.inf)
        targets = others.argsort(dim=1, descending=True, stable=True)[:, rank or 0]
        return self.batch._replace(targets=targets).take(~self.falsified)

    def over(self, work: Work) -> bool:
        """Whether nothing is left to do, or no time to do it."""
        return len(work.rows) == 0 or self.stop()

    def random(self, work: Work, *names: int | str) -> Tensor:
        """Numbers in [0, 1) for each point (n, …), by the names and the example's number, whatever batch it is in."""
        shape, rows = work.x.shape[1:], self.numbers[work.rows.cpu()].tolist()
        draws = [
            torch.rand(shape, generator=Generator().manual_seed(derive_seed("attack", *names, row))) for row in rows
        ]
        return torch.stack(draws).to(work.x)

    def infer(self, x: Tensor) -> Tensor:
        """Logits by plain inference in the arithmetic of the attack."""
        with running(self.arithmetic, x.device.type):
            logits: Tensor = self.model(x)
        return logits

    def probe(self, work: Work, point: Tensor, loss: Loss) -> Probe:
        """Try `point` (n, …), note counterexamples, and find the way up."""
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.infer(point)
            losses = loss(logits.float() if logits.dtype == torch.bfloat16 else logits, work.labels, work.targets)
            gradient = torch.autograd.grad(losses.sum(), point)[0]
        robust = self._record(work, point.detach(), logits.detach())
        # A direction that is not a number is none: NaN pixels are in no box.
        return Probe(losses.detach(), gradient.nan_to_num(0.0), robust)

    @torch.no_grad()
    def try_out(self, work: Work, point: Tensor) -> None:
        """As `probe`, without the way up."""
        self._record(work, point, self.infer(point))

    @torch.no_grad()
    def _record(self, work: Work, point: Tensor, logits: Tensor) -> Tensor:
        """Note each point (n, …) that breaks its box; which are still robust.

        Sums run in another order for one example than for many. A
        counterexample counts only if it is one alone as well.
        """
        robust = correct_points(logits, work.labels)
        for row in (~robust).nonzero().flatten().tolist():
            alone, label = point[row : row + 1], work.labels[row : row + 1]
            inside = bool(((alone >= work.lower[row]) & (alone <= work.upper[row])).all())
            robust[row] = not inside or bool(correct_points(self.infer(alone), label))
        found = work.rows[~robust]
        self.falsified[found] = True
        self.adversarial[found] = point[~robust]
        return robust


def batch_of(x: Tensor, labels: Tensor, eps: float) -> Work:
    """All points of a batch with their boxes."""
    return Work(x, *box_ends(x, eps), labels, labels, torch.arange(len(x), device=x.device))


@contextmanager
def running(arithmetic: str, device: str) -> Iterator[None]:
    """Within it, inference on `device` computes in that arithmetic, where it has it; else in the network's own type.

    "real" cannot be run, and a CPU has no TF32: float32 stands for both. Raises MethodError for an unknown name.
    """
    arithmetic_named(arithmetic)
    with (
        tensor_cores(arithmetic == "tf32"),
        torch.autocast(device, torch.bfloat16, enabled=arithmetic == "bf16", cache_enabled=False),
    ):
        yield
