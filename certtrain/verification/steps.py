"""The steps of a cascade: each takes examples that are open, and returns what it has found about them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from certtrain.attack import AttackSettings
from certtrain.attack import attack as search
from certtrain.attack.criterion import running
from certtrain.bounds.settings import VERDICTS_ALONE
from certtrain.bounds.settings import Settings as BoundSettings
from certtrain.runtime.deadline import NEVER, Deadline
from certtrain.verdicts import Verdict, correct_points
from certtrain.verification.certificate import Certifier

INFERENCE, ATTACK = "inference", "attack"


class ExampleBatch(NamedTuple):
    """Examples of a set: their numbers, pixels (B, C, H, W) in [0, 1], labels (B,), and the radius of their boxes.

    budget: the end of the whole verification. seconds: that each example may take in a step beyond the first ones.
    """

    numbers: Sequence[int]
    x: Tensor
    labels: Tensor
    eps: float
    budget: Deadline = NEVER
    seconds: float = math.inf

    def deadline(self, examples: int = 1) -> Deadline:
        """Of a step that begins now, and works on so many of the examples together."""
        return self.budget.earlier(Deadline.after(self.seconds * examples))


class StepResult(NamedTuple):
    """What a step has found about each example of a batch.

    margins: (B,) lower bounds of the smallest margins, if the step has any.
    counterexamples: (B, C, H, W), of use where the verdict is "falsified".
    trees: of each example, where the method has trees, as in `ExampleResult`.
    complete: False if the step broke off for want of time: what it leaves open was not tried.
    """

    verdicts: Sequence[Verdict]
    margins: Tensor | None = None
    counterexamples: Tensor | None = None
    trees: Sequence[Mapping[int, str]] | None = None
    complete: bool = True


class VerificationStep(Protocol):
    """One way to decide examples. One that it cannot decide stays "open"."""

    @property
    def name(self) -> str:
        """As it stands in records."""

    def __call__(self, batch: ExampleBatch) -> StepResult:
        """What it finds."""


@dataclass(frozen=True)
class Round:
    """Steps that a batch goes through together, and how many examples a batch has.

    timed: whether they decide one example after the other in whatever time it has left; others are not begun where, by
        what the examples before took, that time will not do. All break off at the end of that time.
    """

    steps: tuple[VerificationStep, ...]
    size: int
    timed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the steps."""
        return tuple(step.name for step in self.steps)


@dataclass(frozen=True)
class InferenceStep:
    """Plain inference, in the named arithmetic."""

    model: nn.Module
    arithmetic: str
    name: str = INFERENCE

    def __call__(self, batch: ExampleBatch) -> StepResult:
        """As `VerificationStep`."""
        correct = classified(self.model, batch.x, batch.labels, self.arithmetic).tolist()
        return StepResult(["open" if right else "misclassified" for right in correct])


@dataclass(frozen=True)
class AttackStep:
    """The attack, in the named arithmetic."""

    model: nn.Module
    settings: AttackSettings
    arithmetic: str
    name: str = ATTACK

    def __call__(self, batch: ExampleBatch) -> StepResult:
        """As `VerificationStep`."""
        numbers = torch.tensor(batch.numbers)
        about = (batch.x, batch.labels, batch.eps, self.settings, numbers)
        cut: list[bool] = []

        def stop() -> bool:
            cut.extend([True] if batch.budget.over() else [])
            return bool(cut)

        found = search(self.model, *about, arithmetic=self.arithmetic, stop=stop)
        verdicts: list[Verdict] = ["falsified" if falsified else "open" for falsified in found.falsified.tolist()]
        return StepResult(verdicts, None, found.adversarial, complete=not cut)


class BoundStep:
    """A bound method, on examples that are classified correctly; they share the time that they may take."""

    def __init__(
        self, model: nn.Module, method: str, arithmetic: str, settings: BoundSettings = VERDICTS_ALONE, *, alone: bool
    ) -> None:
        self.model, self.name, self.arithmetic = model, method, arithmetic
        self.settings, self.alone = settings, alone
        self.certifier: Certifier | None = None  # made when it is first needed: it holds a copy of the network

    def __call__(self, batch: ExampleBatch) -> StepResult:
        """As `VerificationStep`."""
        deadline = batch.deadline(len(batch.numbers))
        self.certifier = self.certifier or Certifier(
            self.model, self.name, arithmetic=self.arithmetic, settings=self.settings, alone=self.alone
        )
        proved, margins = self.certifier.proved(batch.x, batch.labels, batch.eps, deadline)
        verdicts: list[Verdict] = ["certified" if each else "open" for each in proved.tolist()]
        return StepResult(verdicts, margins, complete=not batch.budget.over())


@torch.no_grad()
def classified(model: nn.Module, x: Tensor, labels: Tensor, arithmetic: str) -> Tensor:
    """Which examples (B,) plain inference in that arithmetic classifies correctly."""
    with running(arithmetic, x.device.type):
        return correct_points(model(x), labels)


def fooled(model: nn.Module, x: Tensor, label: Tensor, arithmetic: str) -> bool:
    """Whether plain inference misclassifies the one input `x` (C, H, W), alone in its batch.

    Sums may be rounded otherwise in a batch of another size.
    """
    return not bool(classified(model, x.unsqueeze(0), label.view(1), arithmetic))
