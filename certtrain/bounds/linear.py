"""Linear bounds: a linear function of some layer's result, taken back through the network: backsubstitution.

Λ·f(x) is bounded from below by Λ'·x + d over the box: an affine layer takes Λ
to its own transpose's image, a nonlinear one is replaced by a line below it
where Λ is positive and by one above where it is negative (Zhang et al. 2018,
CROWN, theorem 3.2). The lines come from the boxes that an earlier pass has left
at the nonlinear layers: with an interval pass's own this is CROWN-IBP (Zhang et
al. 2020); with boxes from linear bounds (`crown`) it is CROWN.

Λ has shape (B, S, …): S functions for each of B examples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.box import Box
from certtrain.bounds.contract import check_coefficients
from certtrain.bounds.graph import Add, Normalize
from certtrain.bounds.interval import LayerRecord, Place, scale_and_shift
from certtrain.bounds.lines import Lines
from certtrain.bounds.relaxation import relaxed
from certtrain.bounds.rounding import Rounding, of_line
from certtrain.bounds.shape_layers import Concat, Pad, Permute, Reshape, Slice
from certtrain.bounds.statistics import BatchNorm
from certtrain.bounds.trace import BoundTrace


class Back(NamedTuple):
    """Λ (B, S, …) at each of a layer's inputs, and the constant (B, S) that the layer adds; None for none."""

    coefficients: tuple[Tensor, ...]
    constant: Tensor | None = None


class Prefix(NamedTuple):
    """The records on the way from the network's input boxes to the result of the last of them."""

    records: list[LayerRecord]
    start: Box

    def used(self) -> list[int]:
        """The numbers of the records that the result of the last one depends on, the last one first."""
        wanted = {len(self.records)}
        for value in range(len(self.records), 0, -1):
            if value in wanted:
                wanted.update(self.records[value - 1].call.inputs)
        return [value - 1 for value in sorted(wanted, reverse=True) if value]

    def examples(self, chosen: slice | Tensor) -> "Prefix":
        """The same way for some of the batch."""
        return Prefix([record.examples(chosen) for record in self.records], self.start.examples(chosen))


# Lines to put in the place of a record's layer, by the record's number: each of shape (B, 1 or S, …).
LinesOf = Mapping[int, Lines]
# What is added to Λ at the input of a record's layer, by the record's number: each of shape (B, 1 or S, …).
AddedOf = Mapping[int, Tensor]
# Called with each Λ on the way: whose value it is, 0 for the input and n + 1 for the result of record n, and Λ.
OnCoefficients = Callable[[int, Tensor], None]


def lower_bounds(trace: BoundTrace, functions: Tensor) -> Tensor:
    """Lower bounds (B, S) of `functions` (B, S, K), linear in the logits, over the boxes of `trace`."""
    return backsubstitute(Prefix(trace.records, trace.start), functions, rounding=trace.logits.rounding)


def backsubstitute(
    prefix: Prefix,
    functions: Tensor,
    *,
    lines: LinesOf | None = None,
    added: AddedOf | None = None,
    rounding: Rounding | None = None,
    on_coefficients: OnCoefficients = lambda value, coefficients: None,
) -> Tensor:
    """Lower bounds (B, S) of `functions` (B, S, …), linear in the last record's result, over the boxes of `prefix`.

    `lines` stand for layers instead of those that their boxes give. `added` at
    the inputs z of nonlinear layers adds its product with z to the function
    that is bounded. Each record's slack is taken off, and with `rounding`, the
    arithmetic that the records have it from, what this pass itself rounds off at
    the input and where something is added.
    """
    records, start = prefix
    pending = {len(records): functions}
    constants = []
    for number in prefix.used():
        record, coefficients = records[number], pending.pop(number + 1)
        check_coefficients(record.call, [record.result], [coefficients], coefficients.shape[:2])
        on_coefficients(number + 1, coefficients)
        given = None if lines is None else lines.get(number)
        back = (
            LINEAR_RULES[type(record.call.layer)](record, coefficients)
            if given is None
            else between(given, coefficients)
        )
        check_coefficients(record.call, record.shapes, back.coefficients, coefficients.shape[:2])
        constants += [] if back.constant is None else [back.constant]
        constants += [] if record.slack is None else [-_dot(coefficients.abs(), record.slack)]
        if added is not None and number in added:
            back = Back((back.coefficients[0] + added[number],))
            constants += [] if rounding is None else [-_dot(added[number].abs(), _unsure(record))]
        for value, coefficients in zip(record.call.inputs, _at_inputs(record, back.coefficients), strict=True):
            pending[value] = pending[value] + coefficients if value in pending else coefficients
    coefficients, size = pending[0], pending[0].abs()
    check_coefficients(records[0].call, [start.radius.shape], [coefficients], coefficients.shape[:2])
    on_coefficients(0, coefficients)
    if rounding is not None:
        own = of_line(start.radius[:1].numel())
        constants.append(-_dot(size, own * (start.centre.abs() + start.radius)))
    return sum(constants, _dot(coefficients, start.centre) - _dot(size, start.radius))


def _unsure(record: LayerRecord) -> Tensor:
    """What rounds off per unit that is added to Λ at the layer's input (B, …): it joins a sum, as a reader's Λ does."""
    assert record.box is not None  # it is a nonlinear layer
    return of_line(record.box.radius[:1].numel()) * (record.box.centre.abs() + record.box.radius)


def _at_inputs(record: LayerRecord, coefficients: tuple[Tensor, ...]) -> Sequence[Tensor]:
    """What a layer brings back to each of its inputs, of which other layers may need larger parts."""
    if not record.places or isinstance(record.call.layer, nn.Conv2d):
        return coefficients
    return [placed(part, place) for part, place in zip(coefficients, record.places, strict=True)]


def margin_functions(trace: BoundTrace, labels: Tensor) -> Tensor:
    """logit[y] − logit[j] as functions (B, K, K) of the logits, for the classes y in `labels` (B,)."""
    each = _identity(trace)
    return each[labels].unsqueeze(1) - each


def logit_functions(trace: BoundTrace) -> Tensor:
    """Each logit as a function (B, K, K) of the logits."""
    return _identity(trace).expand(len(trace.start.radius), -1, -1)


def margins(trace: BoundTrace, labels: Tensor) -> Tensor:
    """Lower bounds (B, K) of logit[y] − logit[j] for the classes y in `labels` (B,); column y is 0."""
    return lower_bounds(trace, margin_functions(trace, labels))


def _identity(trace: BoundTrace) -> Tensor:
    radius = trace.start.radius
    return torch.eye(trace.logits.shape[1], dtype=radius.dtype, device=radius.device)


# --- the rules -------------------------------------------------------------------------------------------


def _dot(coefficients: Tensor, values: Tensor) -> Tensor:
    """Λ·v (B, S), of Λ (B, S, …) and values (B, …) or fewer, summed in float32 at least."""
    return _sums(coefficients * values.unsqueeze(1))


def _sums(products: Tensor) -> Tensor:
    return products.flatten(2).sum(2, dtype=torch.promote_types(products.dtype, torch.float32))


def _linear(record: LayerRecord, coefficients: Tensor) -> Back:
    layer = record.call.layer
    assert isinstance(layer, nn.Linear)
    return Back(
        (coefficients @ layer.weight,), None if layer.bias is None else _dot(coefficients, layer.bias.unsqueeze(0))
    )


def _conv2d(record: LayerRecord, coefficients: Tensor) -> Back:
    layer, shape = record.call.layer, record.shape
    assert isinstance(layer, nn.Conv2d)
    constant = None if layer.bias is None else _dot(coefficients, layer.bias.view(1, -1, 1, 1))
    padded = F.conv_transpose2d(
        coefficients.flatten(0, 1), layer.weight, None, layer.stride, 0, 0, layer.groups, layer.dilation
    )
    # Cut the padding off; at the far end there may be rows and columns that no window reaches.
    place = record.places[0] if record.places else Place((shape[2], shape[3]), padding(layer))
    back = placed(padded, place)
    return Back((back.reshape(*coefficients.shape[:2], *shape[1:]),), constant)


def placed(coefficients: Tensor, place: Place) -> Tensor:
    """Λ (…, h, w) cut, and filled up with zeros, to its place (…, H, W)."""
    (rows, columns), (top, left), (height, width) = *place, coefficients.shape[-2:]
    # Filled up first: where no window reaches the input there may be nothing to cut.
    sides = (max(-left, 0), max(columns + left - width, 0), max(-top, 0), max(rows + top - height, 0))
    whole = F.pad(coefficients, sides) if any(sides) else coefficients
    return whole.narrow(-2, max(top, 0), rows).narrow(-1, max(left, 0), columns)


def padding(layer: nn.Conv2d) -> tuple[int, int]:
    """Rows above and columns to the left."""
    if not isinstance(layer.padding, str):
        return layer.padding[0], layer.padding[1]
    if layer.padding == "valid":
        return 0, 0
    rows, columns = (d * (kernel - 1) // 2 for d, kernel in zip(layer.dilation, layer.kernel_size, strict=True))
    return rows, columns


def _batch_norm(record: LayerRecord, coefficients: Tensor) -> Back:
    layer = record.call.layer
    assert isinstance(layer, BatchNorm)
    assert record.statistics is not None  # which every pass gives a BatchNorm
    scale, shift = scale_and_shift(layer, record.statistics, len(record.shape))
    return Back((coefficients * scale,), _dot(coefficients, shift))


def _normalize(record: LayerRecord, coefficients: Tensor) -> Back:
    layer = record.call.layer
    assert isinstance(layer, Normalize)
    scaled = coefficients / layer.std
    return Back((scaled,), -_dot(scaled, layer.mean.unsqueeze(0)))


def _averaging(record: LayerRecord, coefficients: Tensor) -> Back:
    """A layer that is linear but for a constant: its transpose is its gradient."""
    layer, shape = record.call.layer, record.shape
    some = coefficients.new_zeros(coefficients.shape[0] * coefficients.shape[1], *shape[1:])
    transpose = torch.func.vjp(layer, some)[1]
    return Back((transpose(coefficients.flatten(0, 1))[0].reshape(*coefficients.shape[:2], *shape[1:]),))


def _pad(record: LayerRecord, coefficients: Tensor) -> Back:
    """Λ without the places that were added, and its product with the number in them."""
    layer = record.call.layer
    assert isinstance(layer, Pad)
    return _averaging(record, coefficients)._replace(
        constant=_dot(coefficients, layer.of_zeros(coefficients.new_empty(record.shape)))
    )


def _reshaped(record: LayerRecord, coefficients: Tensor) -> Back:
    """Λ in its earlier shape; images in channels-last memory, as training has them."""
    back = coefficients.reshape(-1, *record.shape[1:])
    if back.dim() == 4:
        back = back.contiguous(memory_format=torch.channels_last)
    return Back((back.view(*coefficients.shape[:2], *record.shape[1:]),))


def _add(record: LayerRecord, coefficients: Tensor) -> Back:
    return Back(tuple(_unstretched(coefficients, shape) for shape in record.shapes))


def _unstretched(coefficients: Tensor, shape: torch.Size) -> Tensor:
    """Λ (B, S, …) at an input of `shape` (B, …): summed over the sides of 1 that the layer has stretched."""
    sides = [side + 1 for side in range(1, len(shape)) if shape[side] == 1 != coefficients.shape[side + 1]]
    return coefficients.sum(sides, keepdim=True) if sides else coefficients


def _concat(record: LayerRecord, coefficients: Tensor) -> Back:
    layer = record.call.layer
    assert isinstance(layer, Concat)
    left, right = record.shapes
    first, last = left[layer.dim], right[layer.dim]
    return Back((coefficients.narrow(layer.dim + 1, 0, first), coefficients.narrow(layer.dim + 1, first, last)))


def _activation(record: LayerRecord, coefficients: Tensor) -> Back:
    assert record.box is not None  # a trace keeps the boxes of all nonlinear layers
    lines = relaxed(record.call.layer, record.box)
    return between(lines.for_functions(), coefficients)


def between(lines: Lines, coefficients: Tensor) -> Back:
    """Λ (B, S, …) taken through lines of shape (B, 1 or S, …): the lower where it is positive, else the upper."""
    positive, negative = _by_sign(coefficients)
    back = positive * lines.lower_slope + negative * lines.upper_slope
    constant = coefficients.new_zeros(())
    for part, offset in ((positive, lines.lower_offset), (negative, lines.upper_offset)):
        constant = constant if offset is None else constant + _sums(part * offset)
    return Back((back,), constant)


def _by_sign(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The positive and the negative part, which add up to `coefficients`."""
    positive = torch.relu(coefficients)
    return positive, coefficients - positive


def _max_pool2d(record: LayerRecord, coefficients: Tensor) -> Back:
    """From below, the entry of each window whose lower bound is largest; from above, its largest upper bound."""
    layer, box = record.call.layer, record.box
    assert isinstance(layer, nn.MaxPool2d)
    assert box is not None
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    _, chosen = F.max_pool2d(box.lower, *window, return_indices=True)
    positive, negative = _by_sign(coefficients)
    places = chosen.flatten(-2).unsqueeze(1).expand(-1, coefficients.shape[1], *[-1] * (chosen.dim() - 2))
    back = coefficients.new_zeros(*coefficients.shape[:2], *record.shape[1:]).flatten(-2)
    back = back.scatter_add(-1, places, positive.flatten(-2))
    back = back.reshape(*coefficients.shape[:2], *record.shape[1:])
    return Back((back,), _dot(negative, F.max_pool2d(box.upper, *window)))


LinearRule = Callable[[LayerRecord, Tensor], Back]

# Layer → rule, by exact type, for every layer that has a rule for intervals.
LINEAR_RULES: dict[type[nn.Module], LinearRule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Normalize: _normalize,
    nn.AvgPool2d: _averaging,
    nn.AdaptiveAvgPool2d: _averaging,
    nn.Flatten: _reshaped,
    nn.Identity: _reshaped,
    nn.Dropout: _reshaped,
    Add: _add,
    Concat: _concat,
    Reshape: _reshaped,
    Pad: _pad,
    **dict.fromkeys((Permute, Slice), _averaging),
    nn.MaxPool2d: _max_pool2d,
    **dict.fromkeys(ACTIVATIONS, _activation),
}
