"""Complete verification as a step of a cascade."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from certtrain.bounds.checks import shape_errors_as_data_errors
from certtrain.bounds.settings import Settings
from certtrain.branching.examples import Boxed, Decided, check_point, decide_point
from certtrain.verdicts import Verdict
from certtrain.verification.certificate import VERDICTS_ALONE, Certifier
from certtrain.verification.steps import Batch, Found, classified

COMPLETE = "complete"
RELATIVE = 1e-3  # of a margin that a tree proved, which another machine's search may not reach


class CompleteStep:
    """Branch and bound, one point after the other."""

    name = COMPLETE

    def __init__(self, model: nn.Module, arithmetic: str, settings: Settings = VERDICTS_ALONE) -> None:
        self.model, self.arithmetic, self.settings = model, arithmetic, settings
        self.certifier: Certifier | None = None  # made when it is first needed: it holds a copy of the network

    def __call__(self, batch: Batch) -> Found:
        """As `Step`."""
        correct = classified(self.model, batch.x, batch.labels, self.arithmetic).tolist()
        found = [self._decided(batch, row) if right else None for row, right in enumerate(correct)]
        verdicts = [_verdict(decided) for decided in found]
        hits = [None if decided is None else decided.counterexample for decided in found]
        return Found(
            verdicts,
            torch.tensor([_margin(decided) for decided in found], dtype=torch.float64),
            torch.cat([x if hit is None else hit for hit, x in zip(hits, torch.split(batch.x, 1), strict=True)]),
            [{} if decided is None else decided.trees for decided in found],
            complete=not batch.budget.over(),
        )

    def recheck(self, batch: Batch, row: int, trees: Mapping[int, str], margin: float) -> str | None:
        """What is wrong with the trees of a point that should prove `margin`; None if they prove it again."""
        least = margin * (1 - RELATIVE)
        try:
            wrong = check_point(self.boxed(batch, row), self._classes(batch, row), trees, least, self.ready().settings)
        except ValueError as error:
            return f"one of its trees is none: {error}"
        if wrong is None:
            self._guard(batch, row, least)
        return wrong

    def boxed(self, batch: Batch, row: int) -> Boxed:
        """One point of the batch."""
        x, label = batch.x[row : row + 1].contiguous(), batch.labels[row : row + 1]
        return Boxed(self.model, self.ready().graph, x, label, batch.eps, self.arithmetic)

    def ready(self) -> Certifier:
        """What holds the float64 copy of the network. Raises MethodError or UnsupportedLayer."""
        if self.certifier is None:
            self.certifier = Certifier(self.model, arithmetic=self.arithmetic, settings=self.settings)
        return self.certifier

    def _decided(self, batch: Batch, row: int) -> Decided:
        deadline = batch.deadline()
        settings = replace(self.ready().settings, deadline=deadline)
        with shape_errors_as_data_errors(batch.x):
            decided = decide_point(self.boxed(batch, row), self._classes(batch, row), settings)
        if decided.margin is not None:
            self._guard(batch, row, decided.margin)
        return decided

    @torch.no_grad()
    def _guard(self, batch: Batch, row: int, margin: float) -> None:
        """Raise SoundnessError if inference contradicts the proof that no margin is below `margin`."""
        x, label = batch.x[row : row + 1], batch.labels[row : row + 1]
        self.ready().guard(x, label, batch.eps, torch.full((1, 1), margin, dtype=torch.float64, device=x.device))

    @torch.no_grad()
    def _classes(self, batch: Batch, row: int) -> int:
        logits: Tensor = self.model(batch.x[row : row + 1])
        return logits.shape[1]


def _verdict(decided: Decided | None) -> Verdict:
    if decided is None:
        return "misclassified"
    if decided.proved:
        return "certified"
    return "open" if decided.counterexample is None else "falsified"


def _margin(decided: Decided | None) -> float:
    return math.nan if decided is None or decided.margin is None else decided.margin
