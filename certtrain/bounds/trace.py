"""The trace of one interval pass: bounds of the output, margins, and the boxes at the nonlinear layers."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.box import Box
from certtrain.bounds.graph import LayerGraph, Normalize
from certtrain.bounds.interval import (
    INTERVAL_RULES,
    Altered,
    IntervalPass,
    LayerRecord,
    Tighten,
    interval_pass,
    used_statistics,
)
from certtrain.bounds.rounded import coefficients_underflow, logit_errors
from certtrain.bounds.rounding import Rounding, backsubstitution_error
from certtrain.bounds.statistics import StatisticsByCall, StatisticsSource, running_statistics
from certtrain.deprecation import warn_renamed
from certtrain.formats import count_of

# Layers whose input boxes a trace keeps, since linear bounds must relax them.
NONLINEAR: tuple[type[nn.Module], ...] = (*ACTIVATIONS, nn.MaxPool2d)


class Interval(NamedTuple):
    """Bounds at one layer's input: its name, lower and upper (B, …)."""

    name: str
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Logits:
    """The box of the logits, and the last layer with the box of its input, for the bounds of margins.

    `head` is the last layer if it is linear, else None. With `rounding` the boxes
    contain the computed values, and ends and margins are bounds of these.
    """

    box: Box
    head: nn.Linear | None
    head_input: Box
    rounding: Rounding | None = None

    @property
    def shape(self) -> torch.Size:
        """(B, K)."""
        return self.box.radius.shape

    def ends(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds (B, K) of the logits."""
        if self.rounding is None:
            return self.box.lower, self.box.upper
        error = logit_errors(self.rounding, None, self.head_input, self.box)
        return self.box.lower - error, self.box.upper + error

    def margins(self, labels: Tensor) -> Tensor:
        """Lower bounds (B, K) of logit[y] − logit[j]; column y is 0."""
        box, column = self.margin_box(labels), labels.unsqueeze(1)
        if self.rounding is None:
            return box.lower
        error = logit_errors(self.rounding, self.head, self.head_input, self.box)
        radius = box.radius + (error.gather(1, column) + error)
        return (box.centre - radius).scatter(1, column, 0.0)

    def lower_bounds_of(self, functions: Tensor) -> Tensor:
        """Lower bounds (B, S) of `functions` (B, S, K), linear in the logits, with the head elided."""
        centre = torch.einsum("bsk,bk->bs", functions, self.box.centre)
        if self.head is None:
            radius = torch.einsum("bsk,bk->bs", functions.abs(), self.box.radius)
        else:
            radius = torch.einsum("bsf,bf->bs", (functions @ self.head.weight).abs(), self.head_input.radius)
        return centre - radius if self.rounding is None else centre - radius - self._lost(functions)

    def _lost(self, functions: Tensor) -> Tensor:
        """The error (B, S) of `functions` (B, S, K) of the logits, from the logits' rounding and the sums here."""
        assert self.rounding is not None
        size, length = self.box.centre.abs() + self.box.radius, functions.shape[2]
        if self.head is not None:
            input_size = self.head_input.centre.abs() + self.head_input.radius
            size = size + F.linear(input_size, self.head.weight.abs())
            length += self.head.in_features
        error = (
            logit_errors(self.rounding, self.head, self.head_input, self.box) + backsubstitution_error(length) * size
        )
        lost = torch.einsum("bsk,bk->bs", functions.abs(), error) * (1 + backsubstitution_error(length))
        return lost + coefficients_underflow(functions)

    def margin_box(self, labels: Tensor) -> Box:
        """The box of logit[y] − logit[j], (B, K); column y is 0.

        A linear last layer is elided (Gowal et al. 2018, section 3): the
        difference of two of its rows is bounded, not each logit separately.
        """
        column, (centre, radius, _) = labels.unsqueeze(1), self.box
        gap = centre.gather(1, column) - centre
        if self.head is None:
            return Box(gap, (radius.gather(1, column) + radius).scatter(1, column, 0.0))
        difference = (rows_of(self.head.weight, labels).unsqueeze(1) - self.head.weight).abs()  # (B, K, features)
        return Box(gap, torch.einsum("bkf,bf->bk", difference, self.head_input.radius))


def rows_of(weight: Tensor, labels: Tensor) -> Tensor:
    """weight[labels], (B, features), with a gradient that has the same bits in every run.

    On a CPU the threads add the gradient of an index in the order in which they come to it.
    """
    chosen = labels.unsqueeze(1) == torch.arange(len(weight), device=labels.device)
    return torch.where(chosen.unsqueeze(2), weight, 0.0).sum(1)


@dataclass(frozen=True, repr=False)
class BoundTrace:
    """One pass of a batch and its boxes.

    start: the box of the network's inputs, which contains the exact one in a pass with rounding. input: the box after
        the normalisation layer.
    records: of all calls, in order, with the boxes at the nonlinear layers. logits: the bounds of the output.
    """

    start: Box
    input: Box
    records: list[LayerRecord]
    logits: Logits

    def __repr__(self) -> str:
        """The size of the batch, without its numbers."""
        examples, logits = self.logits.shape
        return f"<BoundTrace: {count_of(examples, 'example')}, {logits:,} logits>"

    @property
    def output(self) -> Box:
        """The box of the network's output, (B, …)."""
        return self.logits.box

    @property
    def clean(self) -> Tensor | None:
        """The logits (B, K) of the clean batch, None without one."""
        return self.logits.box.clean

    @property
    def relu_boxes(self) -> list[tuple[str, Box]]:
        """The box at each ReLU's input, in the order of the forward pass."""
        found = [(record.call, record.box) for record in self.records]
        return [(call.name, box) for call, box in found if isinstance(call.layer, nn.ReLU) and box is not None]

    @property
    def statistics(self) -> StatisticsByCall:
        """The statistics of each BatchNorm, by the name of its call."""
        return used_statistics(self.records)

    @property
    def lower(self) -> Tensor:
        """Lower bounds (B, K) of the logits."""
        return self.logits.box.lower

    @property
    def upper(self) -> Tensor:
        """Upper bounds (B, K) of the logits."""
        return self.logits.box.upper

    @property
    def relu_inputs(self) -> list[Interval]:
        """Bounds (B, …) at each ReLU's input, in the order of the forward pass."""
        return [Interval(name, box.lower, box.upper) for name, box in self.relu_boxes]

    @property
    def visits(self) -> list[LayerRecord]:
        """The old name of `records`."""
        warn_renamed("BoundTrace.visits", "BoundTrace.records")
        return self.records

    def margins(self, labels: Tensor) -> Tensor:
        """Lower bounds (B, K) of logit[y] − logit[j]; column y is 0."""
        return self.logits.margins(labels)


def trace_bounds(
    graph: LayerGraph,
    box: Box,
    *,
    statistics: StatisticsSource = running_statistics,
    rounding: Rounding | None = None,
    tighten: Tighten | None = None,
    altered: Altered | None = None,
) -> BoundTrace:
    """Propagate the boxes (B, …), and their clean batch if there is one, through the network in one pass.

    `box` comes from `input_box` around inputs, from `box_between` two ends, or from a pass through earlier layers.
    `statistics`, `tighten` and `altered` are as in `interval_pass`; the boxes at nonlinear layers are kept.
    """
    passed = interval_pass(
        graph, box, boxes_at=NONLINEAR, statistics=statistics, rounding=rounding, tighten=tighten, altered=altered
    )
    return BoundTrace(passed.start, _normalized(graph, passed.start), passed.records, _logits(graph, passed, rounding))


def bound_logits(
    graph: LayerGraph,
    box: Box,
    *,
    statistics: StatisticsSource = running_statistics,
    rounding: Rounding | None = None,
) -> Logits:
    """Propagate the boxes (B, …) through the network, and keep only the bounds of the logits."""
    return _logits(graph, interval_pass(graph, box, statistics=statistics, rounding=rounding), rounding)


def _logits(graph: LayerGraph, passed: IntervalPass, rounding: Rounding | None) -> Logits:
    return Logits(passed.output, graph.head, passed.head_input, rounding)


def _normalized(graph: LayerGraph, box: Box) -> Box:
    first = graph.calls[0].layer
    return INTERVAL_RULES[Normalize](first, box) if isinstance(first, Normalize) else box
