"""Interval bound propagation: one pass carries the clean batch and its box together.

A box is kept as centre and radius.

Affine layer: c' = Wc + b, r' = |W| r (Gowal et al. 2018, eq. 6 to 8).
Monotone layer: applied to both ends of the interval.

With a `rounding`, the boxes hold what a network computes in that arithmetic,
and float64's own rounding is added (rounded.py); without, they are what these
rules give, in the precision of their input.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.activations.intervals import monotone_box
from certtrain.bounds.box import Box
from certtrain.bounds.contract import check_results, result_shape
from certtrain.bounds.graph import Add, LayerCall, LayerGraph, Normalize
from certtrain.bounds.replay import check_replay
from certtrain.bounds.rounded import LayerStep, rounded
from certtrain.bounds.rounding import LAYERS, Rounding
from certtrain.bounds.shape_layers import Concat, Pad, Permute, Reshape, Slice
from certtrain.bounds.statistics import BatchNorm, Source, Statistics, batch_statistics, running_statistics
from certtrain.bounds.tracing import trace_all
from certtrain.errors import DataError, UnsupportedLayer
from certtrain.spec.shapes import Shape


class Place(NamedTuple):
    """Rows and columns of the part that is needed of a layer's input, and those of Λ before it begins."""

    size: tuple[int, int]
    offset: tuple[int, int]


class LayerRecord(NamedTuple):
    """What one layer met on a pass: the shapes (B, …) of its inputs and its result, its box if it was watched, and
    BatchNorm's statistics.

    `slack` (B, …), of the output's shape, is there on a watched pass with rounding: for every x̂ in
    the input's box, a bound of |computed − exact| result, together with what float64 rounds when a
    linear function Λ of the result is taken back through the layer. Λ's bound loses |Λ| · slack.
    `places` say, for each input, where linear bounds put what they bring back; none unless the record is of a part of
    the images (`windows`).
    """

    call: LayerCall
    shapes: tuple[torch.Size, ...]
    result: torch.Size
    box: Box | None
    statistics: Statistics | None
    slack: Tensor | None = None
    places: tuple[Place, ...] = ()

    @property
    def shape(self) -> torch.Size:
        """Of the first input."""
        return self.shapes[0]

    def examples(self, chosen: slice | Tensor) -> "LayerRecord":
        """The record of some of the batch."""
        box = None if self.box is None else self.box.examples(chosen)
        slack = self.slack if self.slack is None or len(self.slack) == 1 else self.slack[chosen]
        return self._replace(box=box, slack=slack)


# A box for a watched layer's input, from the layer, the records that lead to it, the network's own input, and its box.
Tighten = Callable[[nn.Module, list[LayerRecord], Box, Box], Box]


class Passed(NamedTuple):
    """What a pass leaves behind: the output's box, the head's input, and a record for each call, in order."""

    output: Box
    head_input: Box
    records: list[LayerRecord]


def interval_pass(
    graph: LayerGraph,
    box: Box,
    *,
    watch: tuple[type[nn.Module], ...] = (),
    source: Source = batch_statistics,
    rounding: Rounding | None = None,
    tighten: Tighten | None = None,
) -> Passed:
    """Carry `box` through the network; `watch` names layer types whose input boxes are kept.

    `tighten` replaces each of these boxes; the pass goes on with what it returns.

    With `rounding` the boxes hold what the network computes in that arithmetic
    from any computed input in `box`; if anything is watched, each layer's
    slack is kept as well, which costs another product with each weight.

    In training mode BatchNorm takes one set of statistics for all that the box
    carries: the clean batch's, or the centres' where no clean batch is carried.
    They are kept, and the running statistics are left alone.

    Raises DataError if a layer does not take what it is given.
    """
    if rounding is not None and len(graph.calls) >= LAYERS:
        raise UnsupportedLayer(
            f"rounding is bounded for networks of fewer than {LAYERS} layers, not {len(graph.calls)}"
        )
    graph.check_input(box.radius.shape)
    values = {0: box}
    records: list[LayerRecord] = []
    inputs: tuple[Box, ...] = ()
    for number, (call, done) in enumerate(zip(graph.calls, graph.last_uses(), strict=True)):
        layer = call.layer
        if tighten is not None and isinstance(layer, watch):
            value = call.inputs[0]
            values[value] = tighten(layer, records[:value], box, values[value])
        inputs = tuple(values[i] for i in call.inputs)
        shapes = tuple(box.radius.shape for box in inputs)
        expected = result_shape(call, shapes)
        statistics = box_statistics(layer, inputs[0], source) if isinstance(layer, BatchNorm) else None
        step, slack = LayerStep(layer, INTERVAL_RULES[type(layer)], inputs, statistics), None
        if rounding is None:
            result = step.apply(*inputs)
        else:
            result, slack = rounded(rounding, step, with_slack=bool(watch))
        check_results(call, expected, (*result, slack))
        values[number + 1] = result
        kept = inputs[0] if isinstance(layer, watch) else None
        records.append(LayerRecord(call, shapes, expected, kept, statistics, slack))
        for value in done:
            del values[value]
    return Passed(values[len(graph.calls)], inputs[0], records)


def taken_statistics(records: Iterable[LayerRecord]) -> list[Statistics]:
    """What the BatchNorm layers that are in training have normalised by, in order."""
    return [record.statistics for record in records if record.statistics is not None and record.call.layer.training]


def box_statistics(layer: BatchNorm, box: Box, source: Source = batch_statistics) -> Statistics:
    """What `layer` normalises `box` by: its running statistics in evaluation mode, else those that `source` gives."""
    if not layer.training:
        return running_statistics(layer)
    return source(layer, box.centre if box.clean is None else box.clean)


def checked_graph(model: nn.Module, shape: Shape | None = None) -> LayerGraph:
    """The layers of `model`, each of them known to have a rule, for inputs of `shape` without the batch.

    Where no shape is given, the forward pass must not ask for any. Raises
    UnsupportedLayer that names the first layer without a rule, or what else is
    in the way.
    """
    traced = trace_all(model, shape)
    graph = traced.graph.up_to(traced.result)
    for call in graph.calls:
        _check(call)
    if shape is not None and _takes(graph, shape):
        check_replay(model, traced.graph, traced.result, shape)
    return graph


def _takes(graph: LayerGraph, shape: Shape) -> bool:
    """Whether each layer takes what it is given, by inputs of `shape` without the batch; if not, a pass says why."""
    found = [torch.Size((2, *shape))]
    try:
        for call in graph.calls:
            found.append(result_shape(call, [found[value] for value in call.inputs]))
    except DataError:
        return False
    return True


def _check(call: LayerCall) -> None:
    if type(call.layer) not in INTERVAL_RULES:
        raise UnsupportedLayer(
            f"layer {call.name!r} is a {type(call.layer).__name__}, for which there is no bound rule. "
            f"Layers that can be bounded: {', '.join(sorted(t.__name__ for t in INTERVAL_RULES))}."
        )
    if isinstance(call.layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        _check_batch_norm(call.name, call.layer)
    if isinstance(call.layer, nn.AvgPool2d) and (call.layer.divisor_override or 1) < 0:
        raise UnsupportedLayer(f"layer {call.name!r} has a negative divisor, so it is no average")
    if isinstance(call.layer, nn.Conv2d) and call.layer.padding_mode != "zeros":
        raise UnsupportedLayer(f"layer {call.name!r} pads by {call.layer.padding_mode!r}; only 'zeros' has a rule")
    if isinstance(call.layer, nn.MaxPool2d) and call.layer.return_indices:
        raise UnsupportedLayer(f"layer {call.name!r} returns indices; use return_indices=False")
    if isinstance(call.layer, nn.Flatten) and call.layer.start_dim < 1:
        raise UnsupportedLayer(
            f"layer {call.name!r} flattens from dimension {call.layer.start_dim} on, and so perhaps the batch; "
            "use start_dim=1 or more"
        )
    if isinstance(call.layer, Pad) and not abs(call.layer.value) <= Pad.LARGEST:
        raise UnsupportedLayer(
            f"layer {call.name!r} pads by {call.layer.value:g}; use a finite number that float32 can hold"
        )
    if type(call.layer) in ACTIVATIONS and (reason := ACTIVATIONS[type(call.layer)].refusal(call.layer)):
        raise UnsupportedLayer(f"layer {call.name!r} {reason}")


def _check_batch_norm(name: str, layer: BatchNorm) -> None:
    if layer.affine and layer.bias is None:
        raise UnsupportedLayer(f"layer {name!r} has a weight and no bias; give it both, or neither by affine=False")
    if (layer.running_mean is None) != (layer.running_var is None):
        raise UnsupportedLayer(f"layer {name!r} keeps one of its running statistics alone; let it keep both, or none")


# --- the rules -------------------------------------------------------------------------------------------


def _linear(layer: nn.Linear, box: Box) -> Box:
    weight = layer.weight.abs()
    return box.through_stacked(layer, lambda radius: F.linear(radius, weight))


def _conv2d(layer: nn.Conv2d, box: Box) -> Box:
    def on_radius(radius: Tensor) -> Tensor:
        weight = layer.weight.abs()
        return F.conv2d(radius, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    return box.through(layer, on_radius)


def _normalize(layer: Normalize, box: Box) -> Box:
    return box.through(layer, lambda radius: radius / layer.std.abs())


def _batch_norm(layer: BatchNorm, box: Box, statistics: Statistics) -> Box:
    """x ↦ (x − mean) / √(var + e) · weight + bias, with the same statistics for all that the box carries."""
    scale, shift = scale_and_shift(layer, statistics, box.radius.dim())
    return box.through(lambda points: torch.addcmul(shift, points, scale), lambda radius: radius * scale.abs())


def scale_and_shift(layer: BatchNorm, statistics: Statistics, dim: int) -> tuple[Tensor, Tensor]:
    """BatchNorm as x ↦ scale · x + shift, each of shape (1, C, 1, …) for an `x` of so many dimensions."""
    scale = torch.rsqrt(statistics.variance + layer.eps)
    if layer.affine:
        scale = scale * layer.weight
    shift = layer.bias - statistics.mean * scale if layer.affine else -statistics.mean * scale
    shape = (1, -1) + (1,) * (dim - 2)
    return scale.view(shape), shift.view(shape)


def _averaging(layer: nn.Module, box: Box) -> Box:
    """A linear layer whose weights are not negative, so that |W| is W."""
    return box.through(layer, layer)


def _pad(layer: Pad, box: Box) -> Box:
    """The number around the values is certain: its radius is 0."""
    return box.through(layer, lambda radius: layer.padded(radius, 0.0))


def _add(layer: Add, left: Box, right: Box) -> Box:
    clean = None if left.clean is None or right.clean is None else left.clean + right.clean
    return Box(left.centre + right.centre, left.radius + right.radius, clean)


def _concat(layer: Concat, left: Box, right: Box) -> Box:
    clean = None if left.clean is None or right.clean is None else layer(left.clean, right.clean)
    return Box(layer(left.centre, right.centre), layer(left.radius, right.radius), clean)


def _dropout(layer: nn.Dropout, box: Box) -> Box:
    if layer.training and layer.p > 0:
        raise UnsupportedLayer(f"{layer} is random in training; bounds need p = 0 or evaluation mode")
    return box


IntervalRule = Callable[..., Box]

# Layer → rule, by exact type: a subclass may compute something else.
INTERVAL_RULES: dict[type[nn.Module], IntervalRule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Normalize: _normalize,
    nn.AvgPool2d: _averaging,
    nn.AdaptiveAvgPool2d: _averaging,
    nn.Flatten: _averaging,
    nn.Identity: _averaging,
    nn.Dropout: _dropout,
    Add: _add,
    Concat: _concat,
    Pad: _pad,
    **dict.fromkeys((Reshape, Permute, Slice), _averaging),
    nn.MaxPool2d: monotone_box,
    **{layer: record.interval for layer, record in ACTIVATIONS.items()},
}
