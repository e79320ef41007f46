"""A whole batch's bounds, a part of it at a time: for cards with little memory.

The examples of a batch meet in two places alone. BatchNorm takes the clean
batch's statistics; so the clean batch goes through the network first, whole, but
as one stream where a full pass carries three. And the regularisers depend on
sums over the batch; so a sweep without gradients collects these before. With
both known, the loss is a sum over the examples, and its gradient adds up over
the parts. It is that of the whole batch, to rounding.

Statistics of the boxes' centres cannot be had so: the centre of a box's image is
not the image of its centre, so they need all boxes of the batch at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.box import Box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.interval import interval_pass, taken_statistics
from certtrain.bounds.statistics import Source, Statistics, given_statistics
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.training.objective import LossTerms, Regularizers, certified_cross_entropy, combined_terms, trace_sums
from certtrain.training.regularizers import regularizer_losses
from certtrain.verification.certificate import CLIP


@dataclass(frozen=True)
class Accumulation:
    """What stays the same from step to step.

    size: examples that go through the bounds at a time.
    source: takes BatchNorm's statistics. pool: adds the other processes' sums.
    forward: the context of every pass, which chooses its arithmetic.
    """

    graph: LayerGraph
    size: int
    source: Source
    pool: Callable[[Tensor], Tensor]
    forward: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class TrainingBatch:
    """One step's examples (B, …) with their labels (B,), and what the schedules say of them.

    share: this process's part of the examples, by which its loss is weighted.
    """

    x: Tensor
    labels: Tensor
    eps: Tensor
    certified: Tensor
    regularizers: Regularizers | None
    share: float


class Accumulated:
    """One batch's clean logits (B, K), statistics and loss terms; its gradient is added to the parameters' own."""

    def __init__(self, settings: Accumulation, batch: TrainingBatch) -> None:
        self.settings, self.batch = settings, batch
        with settings.forward():
            self.logits, self.statistics = clean_pass(settings.graph, batch.x, settings.source)
            natural = F.cross_entropy(self.logits, batch.labels)
        self.leaves = [_leaf(statistics) for statistics in self.statistics]
        sums = self._sums()
        slope = self._slope(sums)
        margins = torch.cat([self._add_gradient(x, labels, slope) for x, labels in self._parts()])
        self._add_clean_gradient(natural * (batch.share * (1 - batch.certified)))
        self.terms = self._terms(margins, sums)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.settings.size
        return zip(torch.split(self.batch.x, size), torch.split(self.batch.labels, size), strict=True)

    def _trace(self, x: Tensor) -> BoundTrace:
        source = given_statistics(self.leaves)
        return trace_bounds(self.settings.graph, x, self.batch.eps, CLIP, with_clean=False, source=source)

    @torch.no_grad()
    def _sums(self) -> Tensor | None:
        """What the regularisers depend on, over the whole batch; None without them, or without ReLUs."""
        if self.batch.regularizers is None or not any(isinstance(c.layer, nn.ReLU) for c in self.settings.graph.calls):
            return None
        with self.settings.forward():
            parts = [trace_sums(self._trace(x)) for x, _ in self._parts()]
        return self.settings.pool(torch.stack(parts).sum(0))

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
        """Take in one part; its margins."""
        weight = self.batch.share * len(labels) / len(self.batch.labels) * self.batch.certified
        with self.settings.forward():
            trace = self._trace(x)
            margins = trace.margins(labels)
            loss = weight * certified_cross_entropy(margins, labels)
            if slope is not None:
                loss = loss + (trace_sums(trace) * slope).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return margins.detach()

    def _add_clean_gradient(self, natural: Tensor) -> None:
        """Take in what the clean batch contributes: by itself, and through the statistics of all parts."""
        taken = zip(_tensors(self.statistics), _tensors(self.leaves), strict=True)
        # Statistics of the inputs themselves have no gradient to pass on, nor have those of a layer that nothing reads.
        found = [(root, leaf.grad) for root, leaf in taken if root.requires_grad and leaf.grad is not None]
        torch.autograd.backward([natural, *(root for root, _ in found)], [None, *(slope for _, slope in found)])

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
def traces_in_parts(
    graph: LayerGraph, x: Tensor, eps: float | Tensor, size: int, *, with_clean: bool, source: Source
) -> Iterator[BoundTrace]:
    """The traces of `x` (B, …), `size` examples at a time, under the statistics of all; without gradients.

    Several parts carry no clean batch; there is one part alone if the statistics are of the centres.
    """
    if size >= len(x) or not with_clean:
        yield trace_bounds(graph, x, eps, CLIP, with_clean=with_clean, source=source)
        return
    _, statistics = clean_pass(graph, x, source)
    for part in torch.split(x, size):
        yield trace_bounds(graph, part, eps, CLIP, with_clean=False, source=given_statistics(statistics))


def clean_pass(graph: LayerGraph, x: Tensor, source: Source) -> tuple[Tensor, list[Statistics]]:
    """Carry the batch `x` (B, …) beside no boxes: its logits (B, K), and what BatchNorm normalised by."""
    passed = interval_pass(graph, Box(x[:0], x[:0], x), source=source)
    assert passed.output.clean is not None  # what goes in with a clean batch comes out with one
    return passed.output.clean, taken_statistics(passed.records)


def _leaf(statistics: Statistics) -> Statistics:
    mean, variance = (tensor.detach().requires_grad_() for tensor in (statistics.mean, statistics.variance))
    return statistics._replace(mean=mean, variance=variance)


def _tensors(taken: Sequence[Statistics]) -> list[Tensor]:
    return [tensor for statistics in taken for tensor in (statistics.mean, statistics.variance)]
