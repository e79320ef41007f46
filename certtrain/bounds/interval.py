"""Interval bound propagation: one pass carries the clean batch and its box together.

A box is kept as centre and radius.

Affine layer: c' = Wc + b, r' = |W| r (Gowal et al. 2018, eq. 6 to 8).
Monotone layer: applied to both ends of the interval.

With a `rounding`, the boxes contain what a network computes in that arithmetic,
and float64's own rounding is added (rounded.py). Without, they are the results of
these rules in the precision of the input.
"""

import copy
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.activations.intervals import monotone_box
from certtrain.bounds.box import Box, containing_exact
from certtrain.bounds.checks import check_not_random
from certtrain.bounds.contract import check_results, result_shape
from certtrain.bounds.graph import Add, LayerCall, LayerGraph, Normalize
from certtrain.bounds.rounded import LayerStep, rounded
from certtrain.bounds.rounding import LAYER_LIMIT, Rounding
from certtrain.bounds.shape_layers import Concat, Pad, Permute, Reshape, Slice
from certtrain.bounds.statistics import (
    BatchNorm,
    Statistics,
    StatisticsByCall,
    StatisticsSource,
    running_statistics,
    statistics_for,
)
from certtrain.errors import UnsupportedLayer


class Place(NamedTuple):
    """Where the needed part of a layer's input lies in Λ.

    size: rows and columns of this part. offset: rows and columns of Λ above it and to the left of it.
    """

    size: tuple[int, int]
    offset: tuple[int, int]


class LayerRecord(NamedTuple):
    """Inputs and result of one layer call in a pass; B is the size of the batch.

    shapes: (B, …), of the inputs. result: (B, …), the shape of the result.
    box: the first input's box, if `boxes_at` named the layer's type. statistics: of a BatchNorm.
    rounding_error: (B, …), in the result's shape, in a pass with rounding and `boxes_at`: a bound of |computed − exact|
        result for every x̂ in the input's box, plus the float64 rounding when linear coefficients Λ of the result are
        propagated back through the layer. A bound of a function with coefficients Λ is reduced by |Λ| · rounding_error.
    places: for each input, where linear bounds put its coefficients; empty unless the record is for a window of the
        images (`windows`).
    """

    call: LayerCall
    shapes: tuple[torch.Size, ...]
    result: torch.Size
    box: Box | None
    statistics: Statistics | None
    rounding_error: Tensor | None = None
    places: tuple[Place, ...] = ()

    @property
    def shape(self) -> torch.Size:
        """The shape of the first input."""
        return self.shapes[0]

    def in_float32(self) -> "LayerRecord":
        """The same in float32, with a copy of the layer, without rounding, normalised by the running statistics."""
        layer = copy.deepcopy(self.call.layer).float()
        statistics = running_statistics(layer) if isinstance(layer, BatchNorm) else None
        call, box = self.call._replace(layer=layer), None if self.box is None else self.box.in_float32()
        return self._replace(call=call, statistics=statistics, box=box, rounding_error=None)

    def examples(self, chosen: slice | Tensor) -> "LayerRecord":
        """The record of some examples of the batch."""
        box = None if self.box is None else self.box.examples(chosen)
        error = self.rounding_error
        if error is not None and len(error) > 1:
            error = error[chosen]
        return self._replace(box=box, rounding_error=error)


# A tighter box for a layer's input, from the layer, the records before it, the network's input box, and the old box.
Tighten = Callable[[nn.Module, list[LayerRecord], Box, Box], Box]
# The box that a layer's first input is replaced by, for this layer alone.
Altered = Callable[[nn.Module, Box], Box]


class IntervalPass(NamedTuple):
    """The result of a pass: the box it started from, those of the output and of the last layer's input, the records."""

    start: Box
    output: Box
    head_input: Box
    records: list[LayerRecord]


class PassOptions(NamedTuple):
    """Options of a pass, as in `interval_pass`."""

    boxes_at: tuple[type[nn.Module], ...]
    statistics: StatisticsSource
    rounding: Rounding | None
    altered: Altered | None


def interval_pass(
    graph: LayerGraph,
    box: Box,
    *,
    boxes_at: tuple[type[nn.Module], ...] = (),
    statistics: StatisticsSource = running_statistics,
    rounding: Rounding | None = None,
    tighten: Tighten | None = None,
    altered: Altered | None = None,
) -> IntervalPass:
    """Propagate `box` through the network. `boxes_at` names the layer types whose input boxes are kept.

    `tighten` replaces each of these boxes, and the pass continues with its result.
    `altered` replaces the box of each layer's first input for that layer alone: for
    losses of training that are no bounds, never with `rounding`.

    With `rounding`, the boxes contain what the network computes in that arithmetic
    from any computed input in the exact box, which may have been rounded on its way
    into `box`. If `boxes_at` names a type, each layer's rounding error is kept as
    well, which costs another product with each weight.

    `statistics` says by what BatchNorm normalises. Training uses `batch_statistics`, of the clean batch in the box, or
    of the centres if there is none. The same statistics normalise centre, radius and clean batch. The modes of the
    modules have no influence, and the running statistics do not change.

    Raises DataError if a layer does not take inputs of the shape that it is given.
    """
    _check_depth(graph, rounding)
    graph.check_input(box.radius.shape)
    options = PassOptions(boxes_at, statistics, rounding, altered)
    if altered is not None and rounding is not None:
        raise ValueError("a pass with rounding gives bounds, so no box can be altered in it")
    start = box if rounding is None else containing_exact(box)
    values: dict[int, Box] = {0: start}
    inputs: tuple[Box, ...] = (start,)
    records: list[LayerRecord] = []
    for number, (call, done) in enumerate(zip(graph.calls, graph.last_uses(), strict=True)):
        if tighten is not None and isinstance(call.layer, boxes_at):
            value = call.inputs[0]
            values[value] = tighten(call.layer, records[:value], start, values[value])
        inputs = tuple(values[i] for i in call.inputs)
        values[number + 1], record = _through(call, inputs, options)
        records.append(record)
        for value in done:
            del values[value]
    return IntervalPass(start, values[len(graph.calls)], inputs[0], records)


def _check_depth(graph: LayerGraph, rounding: Rounding | None) -> None:
    if rounding is not None and len(graph.calls) >= LAYER_LIMIT:
        raise UnsupportedLayer(
            f"rounding is bounded for networks of fewer than {LAYER_LIMIT} layers, not {len(graph.calls)}"
        )


def _through(call: LayerCall, inputs: tuple[Box, ...], options: PassOptions) -> tuple[Box, LayerRecord]:
    """The box of the call's result, and its record."""
    layer, (boxes_at, source, rounding, altered) = call.layer, options
    shapes = tuple(box.radius.shape for box in inputs)
    expected = result_shape(call, shapes)
    kept = inputs[0] if isinstance(layer, boxes_at) else None
    if altered is not None:
        inputs = (altered(layer, inputs[0]), *inputs[1:])
    statistics = statistics_for(call.name, layer, inputs[0].values, source) if isinstance(layer, BatchNorm) else None
    step, error = LayerStep(layer, INTERVAL_RULES[type(layer)], inputs, statistics), None
    if rounding is None:
        result = step.apply(*inputs)
    else:
        result, error = rounded(rounding, step, with_error=bool(boxes_at))
    check_results(call, expected, (*result, error))
    return result, LayerRecord(call, shapes, expected, kept, statistics, error)


def used_statistics(records: Iterable[LayerRecord]) -> StatisticsByCall:
    """The statistics by which each BatchNorm normalised, by the name of its call."""
    return {record.call.name: record.statistics for record in records if record.statistics is not None}


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
    """x ↦ (x − mean) / √(var + e) · weight + bias, with the same statistics for centre, radius and clean batch."""
    scale, shift = scale_and_shift(layer, statistics, box.radius.dim())
    return box.through(lambda values: torch.addcmul(shift, values, scale), lambda radius: radius * scale.abs())


def scale_and_shift(layer: BatchNorm, statistics: Statistics, dim: int) -> tuple[Tensor, Tensor]:
    """BatchNorm as x ↦ scale · x + shift, each of shape (1, C, 1, …) for an `x` of `dim` dimensions."""
    scale = torch.rsqrt(statistics.variance + layer.eps)
    if layer.affine:
        scale = scale * layer.weight
    shift = layer.bias - statistics.mean * scale if layer.affine else -statistics.mean * scale
    shape = (1, -1) + (1,) * (dim - 2)
    return scale.view(shape), shift.view(shape)


def _nonnegative_linear(layer: nn.Module, box: Box) -> Box:
    """Average pooling and layers that only move values: linear, with weights that are not negative, so |W| = W."""
    return box.through(layer, layer)


def _pad(layer: Pad, box: Box) -> Box:
    """The number around the values is a constant, so its radius is 0."""
    return box.through(layer, lambda radius: layer.padded(radius, 0.0))


def _add(layer: Add, left: Box, right: Box) -> Box:
    clean = None if left.clean is None or right.clean is None else left.clean + right.clean
    return Box(left.centre + right.centre, left.radius + right.radius, clean)


def _concat(layer: Concat, left: Box, right: Box) -> Box:
    clean = None if left.clean is None or right.clean is None else layer(left.clean, right.clean)
    return Box(layer(left.centre, right.centre), layer(left.radius, right.radius), clean)


def _dropout(layer: nn.Dropout, box: Box) -> Box:
    check_not_random(layer)
    return box


IntervalRule = Callable[..., Box]

# Layer → rule, by exact type: a subclass may compute something else.
INTERVAL_RULES: dict[type[nn.Module], IntervalRule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Normalize: _normalize,
    nn.AvgPool2d: _nonnegative_linear,
    nn.AdaptiveAvgPool2d: _nonnegative_linear,
    nn.Flatten: _nonnegative_linear,
    nn.Identity: _nonnegative_linear,
    nn.Dropout: _dropout,
    Add: _add,
    Concat: _concat,
    Pad: _pad,
    **dict.fromkeys((Reshape, Permute, Slice), _nonnegative_linear),
    nn.MaxPool2d: monotone_box,
    **{layer: record.interval for layer, record in ACTIVATIONS.items()},
}
