"""Linear bounds: backsubstitution of a linear function of some layer's result to the network's input.

The lower bound of Λ·f(x) over the box has the form Λ'·x + d. At an affine layer Λ
is multiplied by the weights' transpose. A nonlinear layer is replaced by its lower
line where Λ is positive, and by its upper line where Λ is negative (Zhang et al.
2018, CROWN, theorem 3.2). The lines come from the boxes that an earlier pass kept
at the nonlinear layers. With the boxes of an interval pass this is CROWN-IBP (Zhang
et al. 2020); with boxes from linear bounds (`crown`) it is CROWN.

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
from certtrain.bounds.rounded import coefficients_underflow
from certtrain.bounds.rounding import Rounding, backsubstitution_error
from certtrain.bounds.shape_layers import Concat, Pad, Permute, Reshape, Slice
from certtrain.bounds.statistics import BatchNorm
from certtrain.bounds.trace import BoundTrace


class Substitution(NamedTuple):
    """One step of backsubstitution: Λ (B, S, …) at each input of a layer, and the added constant (B, S) or None."""

    coefficients: tuple[Tensor, ...]
    constant: Tensor | None = None


class Prefix(NamedTuple):
    """The records from the network's input boxes `start` to the result of the last record."""

    records: list[LayerRecord]
    start: Box

    def used(self) -> list[int]:
        """The numbers of the records that the result of the last one depends on, the last one first."""
        wanted = {len(self.records)}
        for value in range(len(self.records), 0, -1):
            if value in wanted:
                wanted.update(self.records[value - 1].call.inputs)
        return [value - 1 for value in sorted(wanted, reverse=True) if value]

    def in_float32(self) -> "Prefix":
        """The same in float32 and without rounding: for searches, not for proofs."""
        return Prefix([record.in_float32() for record in self.records], self.start.in_float32())

    def examples(self, chosen: slice | Tensor) -> "Prefix":
        """The same prefix for some examples of the batch."""
        return Prefix([record.examples(chosen) for record in self.records], self.start.examples(chosen))


# Lines that replace a record's layer, by the record's number: each of shape (B, 1 or S, …).
LinesOf = Mapping[int, Lines]
# What is added to Λ at the input of a record's layer, by the record's number: each of shape (B, 1 or S, …).
AddedOf = Mapping[int, Tensor]
# From Λ (B, S, …) at a layer's result to what is left of it for the layer, and the rest times linear upper bounds of
# the results: (B, S, …) at the network's input, and a constant (B, S).
PlaneRule = Callable[[Tensor], tuple[Tensor, Substitution]]
# Called with each Λ and the number of its value: 0 for the input, n + 1 for the result of record n.
OnCoefficients = Callable[[int, Tensor], None]
NO_PLANES: Mapping[int, PlaneRule] = {}


def lower_bounds(trace: BoundTrace, functions: Tensor) -> Tensor:
    """Lower bounds (B, S) of `functions` (B, S, K), linear in the logits, over the boxes of `trace`."""
    return backsubstitute(Prefix(trace.records, trace.start), functions, rounding=trace.logits.rounding)


def backsubstitute(
    prefix: Prefix,
    functions: Tensor,
    *,
    lines: LinesOf | None = None,
    added: AddedOf | None = None,
    planes: Mapping[int, PlaneRule] = NO_PLANES,
    rounding: Rounding | None = None,
    on_coefficients: OnCoefficients = lambda value, coefficients: None,
) -> Tensor:
    """Lower bounds (B, S) of `functions` (B, S, …), linear in the last record's result, over the boxes of `prefix`.

    lines: lines that replace layers, instead of the lines over the records' boxes.
    added: coefficients at the inputs z of nonlinear layers; their products with z are added to the functions.
    planes: upper bounds of layers' results that are linear in the network's inputs, by the record's number.
    rounding: the arithmetic of the records' rounding errors. Each of them is subtracted, and with `rounding` so is the
        rounding of this backsubstitution at the input and at what is added.
    on_coefficients: called with Λ at every value.
    """
    records, start = prefix
    pending = {len(records): functions}
    constants = []
    for number in prefix.used():
        record, coefficients = records[number], pending.pop(number + 1)
        check_coefficients(record.call, [record.result], [coefficients], coefficients.shape[:2])
        on_coefficients(number + 1, coefficients)
        whole = coefficients
        if number in planes:
            coefficients, direct = planes[number](coefficients)
            pending[0] = pending[0] + direct.coefficients[0] if 0 in pending else direct.coefficients[0]
            constants += [] if direct.constant is None else [direct.constant]
        given = None if lines is None else lines.get(number)
        step = (
            LINEAR_RULES[type(record.call.layer)](record, coefficients)
            if given is None
            else substitute_lines(given, coefficients)
        )
        check_coefficients(record.call, record.shapes, step.coefficients, coefficients.shape[:2])
        constants += [] if step.constant is None else [step.constant]
        constants += [] if record.rounding_error is None else [-_dot(whole.abs(), record.rounding_error)]
        if added is not None and number in added:
            step = Substitution((step.coefficients[0] + added[number],))
            constants += [] if rounding is None else [-_dot(added[number].abs(), _rounding_per_unit(record))]
        for value, coefficients in zip(record.call.inputs, _at_inputs(record, step.coefficients), strict=True):
            pending[value] = pending[value] + coefficients if value in pending else coefficients
    coefficients, size = pending[0], pending[0].abs()
    check_coefficients(records[0].call, [start.radius.shape], [coefficients], coefficients.shape[:2])
    on_coefficients(0, coefficients)
    if rounding is not None:
        own = backsubstitution_error(start.radius[:1].numel())
        constants.append(-_dot(size, own * (start.centre.abs() + start.radius)) - coefficients_underflow(functions))
    return sum(constants, _dot(coefficients, start.centre) - _dot(size, start.radius))


def _rounding_per_unit(record: LayerRecord) -> Tensor:
    """The rounding error per unit that is added to Λ at the layer's input (B, …), where it joins a sum of Λs."""
    assert record.box is not None  # it is a nonlinear layer
    return backsubstitution_error(record.box.radius[:1].numel()) * (record.box.centre.abs() + record.box.radius)


def _at_inputs(record: LayerRecord, coefficients: tuple[Tensor, ...]) -> Sequence[Tensor]:
    """Λ at each input of a layer, padded or cropped to the part of the images that all layers need together."""
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
    """Λ·v (B, S), of Λ (B, S, …) and values v that broadcast to (B, …), summed in float32 at least."""
    return _sums(coefficients * values.unsqueeze(1))


def _sums(products: Tensor) -> Tensor:
    return products.flatten(2).sum(2, dtype=torch.promote_types(products.dtype, torch.float32))


def _linear(record: LayerRecord, coefficients: Tensor) -> Substitution:
    layer = record.call.layer
    assert isinstance(layer, nn.Linear)
    return Substitution(
        (coefficients @ layer.weight,), None if layer.bias is None else _dot(coefficients, layer.bias.unsqueeze(0))
    )


def _conv2d(record: LayerRecord, coefficients: Tensor) -> Substitution:
    layer, shape = record.call.layer, record.shape
    assert isinstance(layer, nn.Conv2d)
    constant = None if layer.bias is None else _dot(coefficients, layer.bias.view(1, -1, 1, 1))
    padded = F.conv_transpose2d(
        coefficients.flatten(0, 1), layer.weight, None, layer.stride, 0, 0, layer.groups, layer.dilation
    )
    # Cut the padding off; at the end there may be rows and columns that no window reaches.
    place = record.places[0] if record.places else Place((shape[2], shape[3]), padding(layer))
    at_input = placed(padded, place)
    return Substitution((at_input.reshape(*coefficients.shape[:2], *shape[1:]),), constant)


def placed(coefficients: Tensor, place: Place) -> Tensor:
    """Λ (…, h, w), cropped and padded with zeros to its place (…, H, W)."""
    (rows, columns), (top, left), (height, width) = *place, coefficients.shape[-2:]
    # Padded first: where no window reaches the input there may be nothing to crop.
    sides = (max(-left, 0), max(columns + left - width, 0), max(-top, 0), max(rows + top - height, 0))
    padded = F.pad(coefficients, sides) if any(sides) else coefficients
    return padded.narrow(-2, max(top, 0), rows).narrow(-1, max(left, 0), columns)


def padding(layer: nn.Conv2d) -> tuple[int, int]:
    """Rows above and columns to the left."""
    if not isinstance(layer.padding, str):
        return layer.padding[0], layer.padding[1]
    if layer.padding == "valid":
        return 0, 0
    rows, columns = (d * (kernel - 1) // 2 for d, kernel in zip(layer.dilation, layer.kernel_size, strict=True))
    return rows, columns


def _batch_norm(record: LayerRecord, coefficients: Tensor) -> Substitution:
    layer = record.call.layer
    assert isinstance(layer, BatchNorm)
    assert record.statistics is not None  # every pass keeps those of a BatchNorm
    scale, shift = scale_and_shift(layer, record.statistics, len(record.shape))
    return Substitution((coefficients * scale,), _dot(coefficients, shift))


def _normalize(record: LayerRecord, coefficients: Tensor) -> Substitution:
    layer = record.call.layer
    assert isinstance(layer, Normalize)
    scaled = coefficients / layer.std
    return Substitution((scaled,), -_dot(scaled, layer.mean.unsqueeze(0)))


def _by_vjp(record: LayerRecord, coefficients: Tensor) -> Substitution:
    """Any affine layer: Λ times its matrix is a vector-Jacobian product."""
    layer, shape = record.call.layer, record.shape
    zeros = coefficients.new_zeros(coefficients.shape[0] * coefficients.shape[1], *shape[1:])
    transpose = torch.func.vjp(layer, zeros)[1]
    return Substitution((transpose(coefficients.flatten(0, 1))[0].reshape(*coefficients.shape[:2], *shape[1:]),))


def _pad(record: LayerRecord, coefficients: Tensor) -> Substitution:
    """Λ at the original values, and its product with the constant around them."""
    layer = record.call.layer
    assert isinstance(layer, Pad)
    return _by_vjp(record, coefficients)._replace(
        constant=_dot(coefficients, layer.of_zeros(coefficients.new_empty(record.shape)))
    )


def _reshaped(record: LayerRecord, coefficients: Tensor) -> Substitution:
    """Λ in the shape of the layer's input; images in channels-last memory, as in training."""
    at_input = coefficients.reshape(-1, *record.shape[1:])
    if at_input.dim() == 4:
        at_input = at_input.contiguous(memory_format=torch.channels_last)
    return Substitution((at_input.view(*coefficients.shape[:2], *record.shape[1:]),))


def _add(record: LayerRecord, coefficients: Tensor) -> Substitution:
    return Substitution(tuple(_unbroadcast(coefficients, shape) for shape in record.shapes))


def _unbroadcast(coefficients: Tensor, shape: torch.Size) -> Tensor:
    """Λ (B, S, …) at an input of `shape` (B, …): summed over the dimensions of size 1 that the layer broadcasts."""
    sides = [side + 1 for side in range(1, len(shape)) if shape[side] == 1 != coefficients.shape[side + 1]]
    return coefficients.sum(sides, keepdim=True) if sides else coefficients


def _concat(record: LayerRecord, coefficients: Tensor) -> Substitution:
    layer = record.call.layer
    assert isinstance(layer, Concat)
    left, right = record.shapes
    first, last = left[layer.dim], right[layer.dim]
    return Substitution((coefficients.narrow(layer.dim + 1, 0, first), coefficients.narrow(layer.dim + 1, first, last)))


def _activation(record: LayerRecord, coefficients: Tensor) -> Substitution:
    assert record.box is not None  # a trace keeps the boxes at all nonlinear layers
    lines = relaxed(record.call.layer, record.box)
    return substitute_lines(lines.for_functions(), coefficients)


def substitute_lines(lines: Lines, coefficients: Tensor) -> Substitution:
    """Λ (B, S, …) times lines of shape (B, 1 or S, …): the lower line where Λ is positive, the upper where negative."""
    positive, negative = _by_sign(coefficients)
    at_input = positive * lines.lower_slope + negative * lines.upper_slope
    constant = coefficients.new_zeros(())
    for part, offset in ((positive, lines.lower_offset), (negative, lines.upper_offset)):
        constant = constant if offset is None else constant + _sums(part * offset)
    return Substitution((at_input,), constant)


def _by_sign(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The positive and the negative part of `coefficients`; they sum to it."""
    positive = torch.relu(coefficients)
    return positive, coefficients - positive


def _max_pool2d(record: LayerRecord, coefficients: Tensor) -> Substitution:
    """From below, the entry of each window with the largest lower bound; from above, its largest upper bound."""
    layer, box = record.call.layer, record.box
    assert isinstance(layer, nn.MaxPool2d)
    assert box is not None
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    _, chosen = F.max_pool2d(box.lower, *window, return_indices=True)
    positive, negative = _by_sign(coefficients)
    places = chosen.flatten(-2).unsqueeze(1).expand(-1, coefficients.shape[1], *[-1] * (chosen.dim() - 2))
    at_input = coefficients.new_zeros(*coefficients.shape[:2], *record.shape[1:]).flatten(-2)
    at_input = at_input.scatter_add(-1, places, positive.flatten(-2))
    at_input = at_input.reshape(*coefficients.shape[:2], *record.shape[1:])
    return Substitution((at_input,), _dot(negative, F.max_pool2d(box.upper, *window)))


LinearRule = Callable[[LayerRecord, Tensor], Substitution]

# Layer → rule, by exact type, for every layer that has an interval rule.
LINEAR_RULES: dict[type[nn.Module], LinearRule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Normalize: _normalize,
    nn.AvgPool2d: _by_vjp,
    nn.AdaptiveAvgPool2d: _by_vjp,
    nn.Flatten: _reshaped,
    nn.Identity: _reshaped,
    nn.Dropout: _reshaped,
    Add: _add,
    Concat: _concat,
    Reshape: _reshaped,
    Pad: _pad,
    **dict.fromkeys((Permute, Slice), _by_vjp),
    nn.MaxPool2d: _max_pool2d,
    **dict.fromkeys(ACTIVATIONS, _activation),
}
