"""The gradient of a whole batch, computed from a part of it at a time, for GPUs with little memory.

The examples of a batch depend on each other in two places only. First, BatchNorm
uses the statistics of the clean batch; so the whole clean batch passes through
the network first, without its box. Second, the regularisers depend on sums over
the batch; so a pass over all parts without gradients computes these next. With
both known, the loss is a sum over the examples, and its gradient is the sum over
the parts. It equals that of the whole batch up to rounding.

The objective decides how examples are bounded: whatever it computes from
examples and given statistics can be computed from a part at a time.

Statistics of the boxes' centres cannot be computed this way: the centre of the
bounds is not the output of the input box's centre, so they need all boxes of the
batch at once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.box import Box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import Statistics, StatisticsByCall, StatisticsSource
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.training.objective import LossTerms, Regularizers, certified_cross_entropy, combined_terms, trace_sums
from certtrain.training.regularizers import regularizer_losses


class Bounded(NamedTuple):
    """Lower bounds (b, K) of the margins of some examples, and the trace for the regularisers."""

    margins: Tensor
    trace: BoundTrace


# Computes the bounds of some examples (b, …) with labels (b,), with the given statistics in BatchNorm.
BoundExamples = Callable[[Tensor, Tensor, StatisticsByCall], Bounded]


@dataclass(frozen=True)
class Accumulation:
    """The settings, which stay the same from step to step.

    size: number of examples in a part. statistics: the source of statistics for the pass of the clean batch.
    all_reduce: adds the sums of the other processes. forward: the context of every pass, which sets its arithmetic.
    """

    graph: LayerGraph
    size: int
    statistics: StatisticsSource
    all_reduce: Callable[[Tensor], Tensor]
    forward: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class TrainingBatch:
    """One step's examples (B, …) with labels (B,), the function that bounds them, and the step's loss weights.

    share: this process's share of the examples, by which its loss is weighted.
    """

    x: Tensor
    labels: Tensor
    bound: BoundExamples
    certified: Tensor
    regularizers: Regularizers | None
    share: float


class Accumulated:
    """One batch's clean logits (B, K), statistics and loss terms. Its gradient is added to that of the parameters."""

    def __init__(self, settings: Accumulation, batch: TrainingBatch) -> None:
        self.settings, self.batch = settings, batch
        with settings.forward():
            self.logits, self.statistics = plain_pass(settings.graph, batch.x, statistics=settings.statistics)
            natural = F.cross_entropy(self.logits, batch.labels)
        self.leaves = {name: _leaf(statistics) for name, statistics in self.statistics.items()}
        sums = self._sums()
        slope = self._slope(sums)
        margins = torch.cat([self._add_gradient(x, labels, slope) for x, labels in self._parts()])
        self._add_clean_gradient(natural * (batch.share * (1 - batch.certified)))
        self.terms = self._terms(margins, sums)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.settings.size
        return zip(torch.split(self.batch.x, size), torch.split(self.batch.labels, size), strict=True)

    @torch.no_grad()
    def _sums(self) -> Tensor | None:
        """The sums over the whole batch for the regularisers; None without regularisers or without ReLUs."""
        if self.batch.regularizers is None or not any(isinstance(c.layer, nn.ReLU) for c in self.settings.graph.calls):
            return None
        with self.settings.forward():
            parts = [trace_sums(self.batch.bound(x, labels, self.leaves).trace) for x, labels in self._parts()]
        return self.settings.all_reduce(torch.stack(parts).sum(0))

    def _slope(self, sums: Tensor | None) -> Tensor | None:
        """The gradient of the regularisers with respect to these sums."""
        weights = self.batch.regularizers
        if sums is None or weights is None:
            return None
        leaf = sums.detach().requires_grad_()
        tightness, balance, _ = regularizer_losses(leaf, weights.tolerance)
        (slope,) = torch.autograd.grad(weights.tightness * tightness + weights.relu_balance * balance, leaf)
        return slope

    def _add_gradient(self, x: Tensor, labels: Tensor, slope: Tensor | None) -> Tensor:
        """Add the gradient of one part, and return its margins."""
        weight = self.batch.share * len(labels) / len(self.batch.labels) * self.batch.certified
        with self.settings.forward():
            margins, trace = self.batch.bound(x, labels, self.leaves)
            loss = weight * certified_cross_entropy(margins, labels)
            if slope is not None:
                loss = loss + (trace_sums(trace) * slope).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return margins.detach()

    def _add_clean_gradient(self, natural: Tensor) -> None:
        """Add the gradient by way of the clean batch: of its own loss, and of all parts through the statistics."""
        pairs = zip(_tensors(self.statistics), _tensors(self.leaves), strict=True)
        # Statistics of the network's input have no gradient, nor have those of a layer that nothing depends on.
        used = [(root, leaf.grad) for root, leaf in pairs if root.requires_grad and leaf.grad is not None]
        torch.autograd.backward([natural, *(root for root, _ in used)], [None, *(slope for _, slope in used)])

    @torch.no_grad()
    def _terms(self, margins: Tensor, sums: Tensor | None) -> LossTerms:
        batch = self.batch
        with self.settings.forward():
            robust = certified_cross_entropy(margins, batch.labels)
            weights = batch.regularizers
            return combined_terms(
                self.logits, robust, margins, sums, batch.labels, certified=batch.certified, regularizers=weights
            )


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
