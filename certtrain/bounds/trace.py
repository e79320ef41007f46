"""What one interval pass found: the output's bounds, margins, and the boxes on the way there."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.graph import LayerGraph, Normalize
from certtrain.bounds.interval import RULES, Box, input_box, interval_pass
from certtrain.bounds.statistics import Source, Statistics, batch_statistics

Clip = tuple[float, float] | None


class Interval(NamedTuple):
    """Bounds at one layer's input: its name, lower and upper (B, …)."""

    name: str
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Logits:
    """The box of the logits, and the last layer with its input's box, from which margins come.

    `head` is the last layer where it is linear, else None.
    """

    box: Box
    head: nn.Linear | None
    head_input: Box

    def margins(self, labels: Tensor) -> Tensor:
        """Lower bounds (B, K) of logit[y] − logit[j]; column y is 0.

        A linear last layer is elided (Gowal et al. 2018, section 3): the
        difference of two of its rows is bounded, not each logit apart.
        """
        column = labels.unsqueeze(1)
        if self.head is None:
            gap = self.box.lower.gather(1, column) - self.box.upper
            return gap.scatter(1, column, 0.0)
        centre, weight = self.box.centre, self.head.weight
        spread = (weight[labels].unsqueeze(1) - weight).abs()  # (B, K, features)
        radius = torch.einsum("bkf,bf->bk", spread, self.head_input.radius)
        return centre.gather(1, column) - centre - radius


@dataclass(frozen=True)
class BoundTrace:
    """One pass of a batch and its boxes.

    `clean` are the logits (B, K) of the clean batch, None where it was not
    carried; `input` is the box that the normalisation layer hands on,
    `relu_boxes` the box at each ReLU's input in the order of the forward pass,
    `statistics` what BatchNorm layers in training normalised by.
    """

    clean: Tensor | None
    input: Box
    relu_boxes: list[tuple[str, Box]]
    logits: Logits
    statistics: list[Statistics] = field(default_factory=list)

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
    x: Tensor,
    eps: float | Tensor,
    clip: Clip,
    *,
    with_clean: bool = True,
    source: Source = batch_statistics,
) -> BoundTrace:
    """Carry the boxes around `x` (B, …), and the clean batch with them, through the network in one pass."""
    box = input_box(x, eps, clip, with_clean=with_clean)
    passed = interval_pass(graph, box, watch=(nn.ReLU,), source=source)
    logits = Logits(passed.output, graph.head, passed.head_input)
    return BoundTrace(passed.output.clean, _normalized(graph, box), passed.watched, logits, passed.statistics)


def bound_logits(graph: LayerGraph, x: Tensor, eps: float | Tensor, clip: Clip) -> Logits:
    """Carry only the boxes through the network: no clean batch, nothing kept on the way."""
    passed = interval_pass(graph, input_box(x, eps, clip, with_clean=False))
    return Logits(passed.output, graph.head, passed.head_input)


def _normalized(graph: LayerGraph, box: Box) -> Box:
    first = graph.calls[0].layer
    return RULES[Normalize](first, box) if isinstance(first, Normalize) else box
