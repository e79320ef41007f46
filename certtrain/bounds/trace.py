"""What one interval pass found: the output's bounds, margins, and the boxes on the way there."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.box import Box
from certtrain.bounds.graph import LayerGraph, Normalize
from certtrain.bounds.interval import INTERVAL_RULES, LayerRecord, Passed, Tighten, interval_pass, taken_statistics
from certtrain.bounds.rounded import logit_errors
from certtrain.bounds.rounding import Rounding, of_line
from certtrain.bounds.statistics import StatisticsSource, TakenStatistics, running_statistics

# Layers whose input boxes a trace keeps: those that linear bounds must relax.
NONLINEAR: tuple[type[nn.Module], ...] = (*ACTIVATIONS, nn.MaxPool2d)


class Interval(NamedTuple):
    """Bounds at one layer's input: its name, lower and upper (B, …)."""

    name: str
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Logits:
    """The box of the logits, and the last layer with its input's box, from which margins come.

    `head` is the last layer where it is linear, else None. With `rounding` the
    boxes hold computed values, and so are the ends and margins bounds of them.
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

    def below(self, functions: Tensor) -> Tensor:
        """Lower bounds (B, S) of `functions` (B, S, K), linear in the logits, the head elided."""
        centre = torch.einsum("bsk,bk->bs", functions, self.box.centre)
        if self.head is None:
            radius = torch.einsum("bsk,bk->bs", functions.abs(), self.box.radius)
        else:
            radius = torch.einsum("bsf,bf->bs", (functions @ self.head.weight).abs(), self.head_input.radius)
        return centre - radius if self.rounding is None else centre - radius - self._lost(functions)

    def _lost(self, functions: Tensor) -> Tensor:
        """(B, S) what the logits' own errors, and what is summed here, may take from `functions` (B, S, K) of them."""
        assert self.rounding is not None
        size, length = self.box.centre.abs() + self.box.radius, functions.shape[2]
        if self.head is not None:
            reach = self.head_input.centre.abs() + self.head_input.radius
            size = size + F.linear(reach, self.head.weight.abs())
            length += self.head.in_features
        error = logit_errors(self.rounding, self.head, self.head_input, self.box) + of_line(length) * size
        return torch.einsum("bsk,bk->bs", functions.abs(), error) * (1 + of_line(length))

    def margin_box(self, labels: Tensor) -> Box:
        """The box of logit[y] − logit[j], (B, K); column y is 0.

        A linear last layer is elided (Gowal et al. 2018, section 3): the
        difference of two of its rows is bounded, not each logit apart.
        """
        column, (centre, radius, _) = labels.unsqueeze(1), self.box
        gap = centre.gather(1, column) - centre
        if self.head is None:
            return Box(gap, (radius.gather(1, column) + radius).scatter(1, column, 0.0))
        spread = (self.head.weight[labels].unsqueeze(1) - self.head.weight).abs()  # (B, K, features)
        return Box(gap, torch.einsum("bkf,bf->bk", spread, self.head_input.radius))


@dataclass(frozen=True)
class BoundTrace:
    """One pass of a batch and its boxes.

    start: the box of the network's own inputs. input: the one that the normalisation layer gives.
    records: of all layers' calls, in order, with the boxes at the nonlinear ones. logits: the bounds of the output.
    """

    start: Box
    input: Box
    records: list[LayerRecord]
    logits: Logits

    @property
    def output(self) -> Box:
        """The box of the network's output, (B, …)."""
        return self.logits.box

    @property
    def clean(self) -> Tensor | None:
        """The logits (B, K) of the clean batch, None where it was not carried."""
        return self.logits.box.clean

    @property
    def relu_boxes(self) -> list[tuple[str, Box]]:
        """The box at each ReLU's input, in the order of the forward pass."""
        found = [(record.call, record.box) for record in self.records]
        return [(call.name, box) for call, box in found if isinstance(call.layer, nn.ReLU) and box is not None]

    @property
    def statistics(self) -> TakenStatistics:
        """What each BatchNorm normalised by, by its call's name."""
        return taken_statistics(self.records)

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
) -> BoundTrace:
    """Carry the boxes (B, …), and the clean batch that they hold, through the network in one pass.

    `box` comes from `input_box` around inputs, from `box_between` of its ends, or from a pass through the layers before
    these. `statistics` and `tighten` are as in `interval_pass`; nonlinear layers are watched.
    """
    passed = interval_pass(graph, box, watch=NONLINEAR, statistics=statistics, rounding=rounding, tighten=tighten)
    return BoundTrace(box, _normalized(graph, box), passed.records, _logits(graph, passed, rounding))


def bound_logits(
    graph: LayerGraph,
    box: Box,
    *,
    statistics: StatisticsSource = running_statistics,
    rounding: Rounding | None = None,
) -> Logits:
    """Carry the boxes (B, …) through the network, and keep nothing on the way."""
    return _logits(graph, interval_pass(graph, box, statistics=statistics, rounding=rounding), rounding)


def _logits(graph: LayerGraph, passed: Passed, rounding: Rounding | None) -> Logits:
    return Logits(passed.output, graph.head, passed.head_input, rounding)


def _normalized(graph: LayerGraph, box: Box) -> Box:
    first = graph.calls[0].layer
    return INTERVAL_RULES[Normalize](first, box) if isinstance(first, Normalize) else box
