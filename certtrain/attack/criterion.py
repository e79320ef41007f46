"""What an attack looks for, and what counts as found: here, inputs that plain inference misclassifies."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from certtrain.bounds.box import box_ends
from certtrain.bounds.rounding import arithmetic_named
from certtrain.runtime.precision import tensor_cores
from certtrain.verdicts import correct_points


class Work(NamedTuple):
    """The examples that an attack works on, n of them.

    x: (n, …), the centres. lower, upper: (n, …), the ends of the boxes. radius: a number or (n, …), the unit of steps.
    labels, targets: (n,), the classes that the loss is of; rows: (n,), in the batch.
    """

    x: Tensor
    lower: Tensor
    upper: Tensor
    radius: float | Tensor
    labels: Tensor
    targets: Tensor
    rows: Tensor

    def take(self, which: Tensor) -> Self:
        """The examples of the mask `which` (n,)."""
        return self if bool(which.all()) else self._part(which)

    def row(self, number: int) -> Self:
        """One of the examples."""
        return self._part(slice(number, number + 1))

    def _part(self, which: Tensor | slice) -> Self:
        radius = self.radius[which] if isinstance(self.radius, Tensor) else self.radius
        about = self.labels[which], self.targets[which], self.rows[which]
        return type(self)(self.x[which], self.lower[which], self.upper[which], radius, *about)

    def project(self, point: Tensor) -> Tensor:
        """The nearest point of each box."""
        return point.clamp(self.lower, self.upper)

    def holds(self, point: Tensor) -> bool:
        """Whether all of the points (n, …) lie in their boxes; NaN lies in none."""
        return bool(((point >= self.lower) & (point <= self.upper)).all())


class Criterion(Protocol):
    """What is attacked, and what is looked for."""

    def outputs(self, x: Tensor) -> Tensor:
        """What the network gives (n, K) for inputs (n, …); gradients pass where they are enabled."""

    def robust(self, outputs: Tensor, work: Work) -> Tensor:
        """Which (n,) of the outputs are not what is looked for."""

    def confirmed(self, point: Tensor, example: Work) -> bool:
        """Whether an input (1, …) of the box, which seemed to be one in a batch, counts by itself."""


class Misclassification(NamedTuple):
    """Inputs that the network misclassifies in the named arithmetic, in their batch and alone.

    A tie of logits is an error, and so is NaN. Sums run in another order for one example than for many, so an input
    counts only if it is misclassified alone as well.
    """

    model: nn.Module
    arithmetic: str

    def outputs(self, x: Tensor) -> Tensor:
        """As `Criterion`."""
        with running(self.arithmetic, x.device.type):
            logits: Tensor = self.model(x)
        return logits

    def robust(self, outputs: Tensor, work: Work) -> Tensor:
        """As `Criterion`."""
        return correct_points(outputs, work.labels)

    def confirmed(self, point: Tensor, example: Work) -> bool:
        """As `Criterion`."""
        return not bool(correct_points(self.outputs(point), example.labels))


def batch_of(x: Tensor, labels: Tensor, eps: float) -> Work:
    """All examples of a batch with their boxes of radius `eps`, cut to [0, 1]."""
    return Work(x, *box_ends(x, eps), eps, labels, labels, torch.arange(len(x), device=x.device))


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
