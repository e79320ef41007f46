"""Complete verification as a step of the cascade."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from certtrain.bounds.checks import shape_errors_as_data_errors
from certtrain.bounds.settings import VERDICT_SETTINGS, Settings
from certtrain.branching.examples import BoxedExample, CompleteResult, check_trees, decide_example
from certtrain.runtime.deadline import Deadline
from certtrain.verdicts import Verdict
from certtrain.verification.certificate import Certifier
from certtrain.verification.steps import ExampleBatch, StepResult, correctly_classified

COMPLETE = "complete"
UNREACHED = 1e-3  # share of a tree's margin that a search on another machine may miss


class CompleteStep:
    """Branch and bound, one example after the other."""

    name = COMPLETE

    def __init__(self, model: nn.Module, arithmetic: str, settings: Settings = VERDICT_SETTINGS) -> None:
        self.model, self.arithmetic, self.settings = model, arithmetic, settings
        self.certifier: Certifier | None = None  # made when it is first needed: it holds a copy of the network

    def __call__(self, batch: ExampleBatch) -> StepResult:
        """As `VerificationStep`."""
        correct = correctly_classified(self.model, batch.x, batch.labels, self.arithmetic).tolist()
        found, cut = list[CompleteResult | None](), list[bool]()
        for row, is_correct in enumerate(correct):
            deadline = batch.deadline()
            found.append(self._decided(batch, row, deadline) if is_correct else None)
            cut.append(deadline.over() and not batch.budget.over())
        inputs = [None if result is None else result.counterexample for result in found]
        return StepResult(
            [_verdict(result) for result in found],
            torch.tensor([_margin(result) for result in found], dtype=torch.float64),
            torch.cat([x if c is None else c for c, x in zip(inputs, torch.split(batch.x, 1), strict=True)]),
            [{} if result is None else result.trees for result in found],
            complete=not batch.budget.over(),
            cut=cut,
        )

    def recheck(self, batch: ExampleBatch, row: int, trees: Mapping[int, str], margin: float) -> str | None:
        """The reason why the trees of an example do not prove `margin`; None if they prove it again."""
        least = margin * (1 - UNREACHED)
        try:
            classes, settings = self._classes(batch, row), self.prepared().settings
            wrong = check_trees(self.example(batch, row), classes, trees, least, settings)
        except ValueError as error:
            return f"one of its trees is not a tree: {error}"
        if wrong is None:
            self._guard(batch, row, least)
        return wrong

    def example(self, batch: ExampleBatch, row: int) -> BoxedExample:
        """One example of the batch."""
        x, label = batch.x[row : row + 1].contiguous(), batch.labels[row : row + 1]
        return BoxedExample(self.model, self.prepared().graph, x, label, batch.eps, self.arithmetic)

    def prepared(self) -> Certifier:
        """The certifier, which holds the float64 copy of the network. Raises MethodError or UnsupportedLayer."""
        if self.certifier is None:
            self.certifier = Certifier(self.model, arithmetic=self.arithmetic, settings=self.settings)
        return self.certifier

    def _decided(self, batch: ExampleBatch, row: int, deadline: Deadline) -> CompleteResult:
        settings = replace(self.prepared().settings, deadline=deadline, on_domains=batch.on_domains)
        with shape_errors_as_data_errors(batch.x):
            result = decide_example(self.example(batch, row), self._classes(batch, row), settings)
        if result.margin is not None:
            self._guard(batch, row, result.margin)
        return result

    @torch.no_grad()
    def _guard(self, batch: ExampleBatch, row: int, margin: float) -> None:
        """Raise SoundnessError if inference contradicts the proof that no margin is below `margin`."""
        x, label = batch.x[row : row + 1], batch.labels[row : row + 1]
        self.prepared().guard(x, label, batch.eps, torch.full((1, 1), margin, dtype=torch.float64, device=x.device))

    @torch.no_grad()
    def _classes(self, batch: ExampleBatch, row: int) -> int:
        logits: Tensor = self.model(batch.x[row : row + 1])
        return logits.shape[1]


def _verdict(result: CompleteResult | None) -> Verdict:
    if result is None:
        return "misclassified"
    if result.proved:
        return "certified"
    return "open" if result.counterexample is None else "falsified"


def _margin(result: CompleteResult | None) -> float:
    return math.nan if result is None or result.margin is None else result.margin
