"""The steps of the cascade: each takes a batch of open examples, and returns verdicts, margins and counterexamples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from certtrain.attack import AttackSettings
from certtrain.attack import attack as search
from certtrain.attack.criterion import computing_in
from certtrain.bounds.settings import VERDICT_SETTINGS, OnDomains, ignore_domains
from certtrain.bounds.settings import Settings as BoundSettings
from certtrain.runtime.deadline import NEVER, Deadline
from certtrain.verdicts import Verdict, correct_examples
from certtrain.verification.certificate import Certifier

INFERENCE, ATTACK = "inference", "attack"


class ExampleBatch(NamedTuple):
    """Examples of a set: their numbers, pixels (B, C, H, W) in [0, 1], labels (B,), and the radius of their boxes.

    budget: the deadline of the whole verification. seconds: the time of each example in a slow step. on_domains: called
    by a search, as in the settings of bounds.
    """

    numbers: Sequence[int]
    x: Tensor
    labels: Tensor
    eps: float
    budget: Deadline = NEVER
    seconds: float = math.inf
    on_domains: OnDomains = ignore_domains

    def deadline(self, examples: int = 1) -> Deadline:
        """The deadline of a step that starts now with `examples` examples together."""
        return self.budget.earlier(Deadline.after(self.seconds * examples))


class StepResult(NamedTuple):
    """The results of a step for the examples of a batch.

    margins: (B,) lower bounds of the smallest margins, if the step has any.
    counterexamples: (B, C, H, W), valid where the verdict is "falsified".
    trees: of each example, if the method has trees, as in `ExampleResult`.
    complete: False if the budget of the whole verification ended the step: then open examples do not count as tried.
    cut: which examples' own time ended the step for them; none if not given. With more time it may decide them.
    """

    verdicts: Sequence[Verdict]
    margins: Tensor | None = None
    counterexamples: Tensor | None = None
    trees: Sequence[Mapping[int, str]] | None = None
    complete: bool = True
    cut: Sequence[bool] | None = None


class VerificationStep(Protocol):
    """A way to decide examples. An example that it cannot decide stays "open"."""

    @property
    def name(self) -> str:
        """The name in records."""

    def __call__(self, batch: ExampleBatch) -> StepResult:
        """The results for a batch."""


@dataclass(frozen=True)
class Round:
    """Steps that a batch goes through one after the other, and the batch size.

    timed: whether the steps decide one example at a time and use all of its remaining time. Other rounds are skipped
        for an example whose remaining time is shorter than the mean so far. All stop when the time is over.
    """

    steps: tuple[VerificationStep, ...]
    size: int
    timed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the steps."""
        return tuple(step.name for step in self.steps)


@dataclass(frozen=True)
class InferenceStep:
    """Plain inference, in the named arithmetic."""

    model: nn.Module
    arithmetic: str
    name: str = INFERENCE

    def __call__(self, batch: ExampleBatch) -> StepResult:
        """As `VerificationStep`."""
        correct = correctly_classified(self.model, batch.x, batch.labels, self.arithmetic).tolist()
        return StepResult(["open" if is_correct else "misclassified" for is_correct in correct])


@dataclass(frozen=True)
class AttackStep:
    """The attack, in the named arithmetic. timed: whether it counts towards the time of each example."""

    model: nn.Module
    settings: AttackSettings
    arithmetic: str
    name: str = ATTACK
    timed: bool = False

    def __call__(self, batch: ExampleBatch) -> StepResult:
        """As `VerificationStep`."""
        numbers = torch.tensor(batch.numbers)
        about = (batch.x, batch.labels, batch.eps, self.settings, numbers)
        deadline = batch.deadline(len(batch.numbers)) if self.timed else batch.budget
        stopped: list[bool] = []

        def stop() -> bool:
            stopped.extend([True] if deadline.over() else [])
            return bool(stopped)

        found = search(self.model, *about, arithmetic=self.arithmetic, stop=stop)
        verdicts: list[Verdict] = ["falsified" if falsified else "open" for falsified in found.falsified.tolist()]
        by_budget = bool(stopped) and batch.budget.over()
        cut = [bool(stopped) and not by_budget] * len(verdicts)
        return StepResult(verdicts, None, found.adversarial, complete=not by_budget, cut=cut)


class BoundStep:
    """A bound method, on examples that are classified correctly and share their time."""

    def __init__(
        self,
        model: nn.Module,
        method: str,
        arithmetic: str,
        settings: BoundSettings = VERDICT_SETTINGS,
        *,
        skip_faster: bool,
    ) -> None:
        self.model, self.name, self.arithmetic = model, method, arithmetic
        self.settings, self.skip_faster = settings, skip_faster
        self.certifier: Certifier | None = None  # made when it is first needed: it holds a copy of the network

    def __call__(self, batch: ExampleBatch) -> StepResult:
        """As `VerificationStep`."""
        deadline = batch.deadline(len(batch.numbers))
        self.certifier = self.certifier or Certifier(
            self.model, self.name, arithmetic=self.arithmetic, settings=self.settings, skip_faster=self.skip_faster
        )
        proved, margins = self.certifier.proved(batch.x, batch.labels, batch.eps, deadline)
        verdicts: list[Verdict] = ["certified" if each else "open" for each in proved.tolist()]
        in_budget = not batch.budget.over()
        cut = [deadline.over() and in_budget] * len(verdicts)
        return StepResult(verdicts, margins, complete=in_budget, cut=cut)


@torch.no_grad()
def correctly_classified(model: nn.Module, x: Tensor, labels: Tensor, arithmetic: str) -> Tensor:
    """Which examples (B,) plain inference in that arithmetic classifies correctly."""
    with computing_in(arithmetic, x.device.type):
        return correct_examples(model(x), labels)


def misclassified_in_batch_of_one(model: nn.Module, x: Tensor, label: Tensor, arithmetic: str) -> bool:
    """Whether plain inference misclassifies the input `x` (C, H, W) in a batch of one.

    In a batch of another size, sums may be rounded differently.
    """
    return not bool(correctly_classified(model, x.unsqueeze(0), label.view(1), arithmetic))
