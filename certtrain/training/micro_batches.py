"""The gradient of a whole batch, computed from a part of it at a time, for GPUs with little memory.

The examples of a batch depend on each other in two places only. First, BatchNorm
uses the statistics of the clean batch; so the whole clean batch passes through
the network first, without its box. Second, the regularisers depend on sums over
the batch; so a pass over all parts without gradients computes these next. With
both known, the loss is a sum over the examples, and its gradient is the sum over
the parts. It equals that of the whole batch up to rounding.

Whatever an objective computes from examples and given statistics can be computed
from a part at a time, its attacks too.

Statistics of the boxes' centres cannot be computed this way: the centre of the
bounds is not the output of the input box's centre, so they need all boxes of the
batch at once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.box import Box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import Statistics, StatisticsByCall, StatisticsSource
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.training.loss import LossTerms, Regularizers, combined_terms, has_relus, trace_sums
from certtrain.training.objectives.base import Objective, RobustLosses
from certtrain.training.passes import Clean, Passes, SignedAscent
from certtrain.training.regularizers import regularizer_losses


@dataclass(frozen=True)
class Accumulation:
    """The settings, which stay the same from step to step.

    size: number of examples in a part. statistics: the source of statistics for the pass of the clean batch.
    all_reduce: adds the sums of the other processes. forward: the context of every pass, which sets its arithmetic.
    """

    graph: LayerGraph
    objective: Objective
    size: int
    statistics: StatisticsSource
    all_reduce: Callable[[Tensor], Tensor]
    forward: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class TrainingBatch:
    """One step's examples (B, …) with labels (B,), its ε and loss weights, and its attacks.

    warmup: as in `Passes`. share: this process's share of the examples, by which its loss is weighted.
    """

    x: Tensor
    labels: Tensor
    eps: Tensor
    warmup: Tensor | None
    robust_share: Tensor
    regularizers: Regularizers | None
    share: float
    ascent: SignedAscent


class Accumulated:
    """One batch's clean logits (B, K), statistics and loss terms. Its gradient is added to that of the parameters."""

    def __init__(self, settings: Accumulation, batch: TrainingBatch) -> None:
        self.settings, self.batch = settings, batch
        with settings.forward():
            clean = Clean(*plain_pass(settings.graph, batch.x, statistics=settings.statistics))
            natural = F.cross_entropy(clean.logits, batch.labels)
        self.clean = Clean(clean.logits.detach(), {name: _leaf(taken) for name, taken in clean.statistics.items()})
        self.logits, self.statistics = clean
        found = self._found()
        sums = self._sums(found)
        gradient = self._gradient_of_sums(sums)
        results = [self._add_gradient(rows, each, gradient) for rows, each in found]
        self._add_clean_gradient(natural * (batch.share * (1 - batch.robust_share)))
        self.terms = self._terms(results, sums)

    def _found(self) -> list[tuple[slice, tuple[Tensor, ...]]]:
        """The rows of each part, and what the objective's attacks find for them."""
        objective, ascent = self.settings.objective, self.batch.ascent
        with self.settings.forward():
            return [(rows, objective.prepare(self._passes(rows), ascent.part(rows))) for rows in self._parts()]

    def _parts(self) -> Iterator[slice]:
        size, whole = self.settings.size, len(self.batch.x)
        return (slice(first, min(first + size, whole)) for first in range(0, whole, size))

    def _passes(self, rows: slice) -> Passes:
        batch = self.batch
        return Passes(
            self.settings.graph,
            batch.x[rows],
            batch.labels[rows],
            batch.eps,
            source=self.clean.statistics,
            clean=self.clean.part(rows),
            warmup=batch.warmup,
        )

    def _robust(self, rows: slice, found: tuple[Tensor, ...]) -> RobustLosses:
        with self.settings.forward():
            return self.settings.objective.robust(self._passes(rows), found)

    @torch.no_grad()
    def _sums(self, found: list[tuple[slice, tuple[Tensor, ...]]]) -> Tensor | None:
        """The sums over the whole batch for the regularisers; None without regularisers or without ReLUs."""
        if self.batch.regularizers is None or not any(isinstance(c.layer, nn.ReLU) for c in self.settings.graph.calls):
            return None
        traces = [self._robust(rows, each).traces for rows, each in found]
        if not has_relus(traces[0]):
            return None
        return self.settings.all_reduce(torch.stack([trace_sums(each) for each in traces]).sum(0))

    def _gradient_of_sums(self, sums: Tensor | None) -> Tensor | None:
        """The gradient of the regularisers with respect to these sums."""
        weights = self.batch.regularizers
        if sums is None or weights is None:
            return None
        leaf = sums.detach().requires_grad_()
        tightness, balance, _ = regularizer_losses(leaf, weights.tolerance)
        (gradient,) = torch.autograd.grad(weights.tightness * tightness + weights.relu_balance * balance, leaf)
        return gradient

    def _add_gradient(self, rows: slice, found: tuple[Tensor, ...], gradient: Tensor | None) -> RobustLosses:
        """Add the gradient of one part, and return its results without gradients and traces."""
        robust = self._robust(rows, found)
        share = self.batch.share * len(robust.losses) / len(self.batch.labels) * self.batch.robust_share
        loss = share * robust.losses.mean()
        if gradient is not None:
            with self.settings.forward():
                loss = loss + (trace_sums(robust.traces) * gradient).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        margins = None if robust.margins is None else robust.margins.detach()
        measures = {name: values.detach() for name, values in robust.measures.items()}
        return RobustLosses(robust.losses.detach(), margins, (), measures)

    def _add_clean_gradient(self, natural: Tensor) -> None:
        """Add the gradient by way of the clean batch: of its own loss, and of all parts through the statistics."""
        pairs = zip(_tensors(self.statistics), _tensors(self.clean.statistics), strict=True)
        # Statistics of the network's input have no gradient, nor have those of a layer that nothing depends on.
        used = [(root, leaf.grad) for root, leaf in pairs if root.requires_grad and leaf.grad is not None]
        torch.autograd.backward([natural, *(root for root, _ in used)], [None, *(gradient for _, gradient in used)])

    @torch.no_grad()
    def _terms(self, results: list[RobustLosses], sums: Tensor | None) -> LossTerms:
        batch = self.batch
        with self.settings.forward():
            robust = _joined(results)
            weights = batch.regularizers
            return combined_terms(
                self.logits, robust, sums, batch.labels, robust_share=batch.robust_share, regularizers=weights
            )


def _joined(results: list[RobustLosses]) -> RobustLosses:
    """The results of all parts, as those of the whole batch."""
    losses = torch.cat([each.losses for each in results])
    margins = [each.margins for each in results if each.margins is not None]
    measures = {name: torch.cat([each.measures[name] for each in results]) for name in results[0].measures}
    return RobustLosses(losses, torch.cat(margins) if margins else None, (), measures)


@torch.no_grad()
def traces_in_parts(graph: LayerGraph, box: Box, size: int, *, statistics: StatisticsSource) -> Iterator[BoundTrace]:
    """The traces of `box` (B, …), `size` examples at a time, with the statistics of all; without gradients.

    If there are several parts, they have no clean batch. There is only one part if `box` has no clean batch, since
    statistics of the centres depend on all boxes.
    """
    if size >= len(box.centre) or box.clean is None:
        yield trace_bounds(graph, box, statistics=statistics)
        return
    known = plain_pass(graph, box.clean, statistics=statistics).statistics
    for first in range(0, len(box.centre), size):
        part = box.examples(slice(first, first + size))
        yield trace_bounds(graph, part._replace(clean=None), statistics=known)


def _leaf(statistics: Statistics) -> Statistics:
    mean, variance = (tensor.detach().requires_grad_() for tensor in (statistics.mean, statistics.variance))
    return statistics._replace(mean=mean, variance=variance)


def _tensors(taken: StatisticsByCall) -> list[Tensor]:
    return [tensor for statistics in taken.values() for tensor in (statistics.mean, statistics.variance)]
