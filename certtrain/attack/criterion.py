"""What an attack searches for, and what counts as a counterexample: here, inputs that inference misclassifies."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from certtrain.bounds.box import box_ends
from certtrain.bounds.rounding import arithmetic_named
from certtrain.runtime.precision import tensor_cores
from certtrain.verdicts import correct_examples


class AttackBatch(NamedTuple):
    """The n examples that an attack works on.

    x: (n, …), the centres. lower, upper: (n, …), the ends of the boxes. radius: a number or (n, …), the unit of steps.
    labels, targets: (n,), the classes in the loss. rows: (n,), the examples' rows in the whole batch.
    """

    x: Tensor
    lower: Tensor
    upper: Tensor
    radius: float | Tensor
    labels: Tensor
    targets: Tensor
    rows: Tensor

    def take(self, which: Tensor) -> Self:
        """The examples in the mask `which` (n,)."""
        return self if bool(which.all()) else self._part(which)

    def row(self, number: int) -> Self:
        """One of the examples."""
        return self._part(slice(number, number + 1))

    def _part(self, which: Tensor | slice) -> Self:
        radius = self.radius[which] if isinstance(self.radius, Tensor) else self.radius
        about = self.labels[which], self.targets[which], self.rows[which]
        return type(self)(self.x[which], self.lower[which], self.upper[which], radius, *about)

    def project(self, point: Tensor) -> Tensor:
        """The nearest input in each box."""
        return point.clamp(self.lower, self.upper)

    def holds(self, point: Tensor) -> bool:
        """Whether all inputs (n, …) are in their boxes; NaN is in none."""
        return bool(((point >= self.lower) & (point <= self.upper)).all())


class Criterion(Protocol):
    """The network under attack, and what counts as a counterexample."""

    def outputs(self, x: Tensor) -> Tensor:
        """The network's outputs (n, K) for inputs (n, …), with gradients where they are enabled."""

    def robust(self, outputs: Tensor, batch: AttackBatch) -> Tensor:
        """Which (n,) of the outputs are no counterexample."""

    def confirmed(self, point: Tensor, example: AttackBatch) -> bool:
        """Whether an input (1, …) of the box that is a counterexample in a batch is also one alone."""


class Misclassification(NamedTuple):
    """Inputs that the network misclassifies in the named arithmetic, both in their batch and alone.

    A tie of logits counts as misclassified, and so does NaN. Sums may run in another order in another batch, so an
    input must be misclassified alone as well.
    """

    model: nn.Module
    arithmetic: str

    def outputs(self, x: Tensor) -> Tensor:
        """As `Criterion`."""
        with computing_in(self.arithmetic, x.device.type):
            logits: Tensor = self.model(x)
        return logits

    def robust(self, outputs: Tensor, batch: AttackBatch) -> Tensor:
        """As `Criterion`."""
        return correct_examples(outputs, batch.labels)

    def confirmed(self, point: Tensor, example: AttackBatch) -> bool:
        """As `Criterion`."""
        return not bool(correct_examples(self.outputs(point), example.labels))


def batch_of(x: Tensor, labels: Tensor, eps: float) -> AttackBatch:
    """All examples of a batch with their boxes of radius `eps`, cut to [0, 1]."""
    return AttackBatch(x, *box_ends(x, eps), eps, labels, labels, torch.arange(len(x), device=x.device))


@contextmanager
def computing_in(arithmetic: str, device: str) -> Iterator[None]:
    """A context in which inference on `device` computes in that arithmetic, if the device has it.

    "real" cannot be run, and a CPU has no TF32: float32 replaces both. Raises MethodError for an unknown name.
    """
    arithmetic_named(arithmetic)
    with (
        tensor_cores(arithmetic == "tf32"),
        torch.autocast(device, torch.bfloat16, enabled=arithmetic == "bf16", cache_enabled=False),
    ):
        yield
