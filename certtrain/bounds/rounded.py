"""Boxes that contain what a deployed network computes: the interval rules, with rounding errors added.

Each layer takes the computed values x̂ of the layers before it, and adds its own
rounding error. So the rule is applied to a box that contains x̂, and the radius of
its result grows by a bound of this error and of the rule's own float64 rounding:

- affine layers: κ(|W|(|c| + r) + |b|). The first part is |W| times the larger radius r + κ(|c| + r), so it needs no
  further product; the second part is a constant. For linear and convolutional layers κ counts only inputs that are not
  zero in the whole box: after a ReLU the others are many.
- sums and activations: κ times the result's largest magnitude, and the absolute error of an activation's record.
- exact layers, ReLU and maximum: the verifier's rounding between centre and radius and the ends of the box.

A value below the smallest normal number may underflow on its way into a layer.
The boxes do not include this; every layer that is not exact adds it for its inputs.
Where the network might overflow, the radius is NaN, and stays NaN in later layers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.box import Box
from certtrain.bounds.graph import Add, Normalize
from certtrain.bounds.layer_errors import AffineError, PointwiseError, magnitude
from certtrain.bounds.rounding import (
    COEFFICIENTS_UNDERFLOW,
    Error,
    Rounding,
    backsubstitution_error,
    interval_error,
)
from certtrain.bounds.shape_layers import REARRANGING, Pad
from certtrain.bounds.statistics import BatchNorm, Statistics

SMALLEST_VARIANCE = 2.0**-100  # of a BatchNorm's variance + e: below it float32 has no relative accuracy
UNDERFLOWS = 8  # one operation loses at most this many times the smallest normal number, its operands included


class LayerStep(NamedTuple):
    """One layer with its interval rule, its input boxes, and the statistics of a BatchNorm."""

    layer: nn.Module
    rule: Callable[..., Box]
    inputs: tuple[Box, ...]
    statistics: Statistics | None

    def apply(self, *inputs: Box) -> Box:
        """The box of the rule, without rounding."""
        return self.rule(self.layer, *inputs, *(() if self.statistics is None else (self.statistics,)))


def rounded(rounding: Rounding, step: LayerStep, *, with_error: bool) -> tuple[Box, Tensor | None]:
    """The box (B, …) of one layer's computed results, and their error (B, …) or None.

    The error bounds |computed − exact| at every x̂ of the input boxes, plus the
    verifier's rounding in the backsubstitution of a linear function through the
    layer. Backsubstitution must subtract |Λ| · error.
    """
    assert all(box.radius.dtype == torch.float64 for box in step.inputs), "rounding is bounded in float64"
    kind = type(step.layer)
    if kind in RESHAPING:
        return _reshaping(rounding, step, with_error)
    if kind in AFFINE_ERRORS:
        return _affine(rounding, step, AFFINE_ERRORS[kind](rounding, step), with_error)
    return _pointwise(rounding, step, POINTWISE_ERRORS[kind](rounding, step.layer), with_error)


def logit_errors(rounding: Rounding, head: nn.Linear | None, head_input: Box, logits: Box) -> Tensor:
    """The error (B, K) that each logit adds to the radius of a difference of two logits in exact arithmetic.

    With a linear `head` it is κ(|W|(|c| + r) + |b|), beside the exact radius
    |W_y − W_j| r. Without one the boxes of `logits` contain the computed values, and
    only the verifier rounds.
    """
    if head is None:
        return magnitude(logits) * interval_error(0.0, 0) + UNDERFLOWS * rounding.tiny
    size = magnitude(head_input)
    terms = _counted(rounding, head, size)
    total = F.linear(size, head.weight.abs(), terms.constant)
    return total * interval_error(terms.network_error, terms.length) + _underflow(rounding, size, terms)


def coefficients_underflow(functions: Tensor) -> Tensor:
    """What the bounds (B, S) of linear `functions` (B, S, …) may be too high since coefficients underflow."""
    return (functions != 0).flatten(2).any(2).double() * COEFFICIENTS_UNDERFLOW


def _affine(rounding: Rounding, step: LayerStep, terms: AffineError, with_error: bool) -> tuple[Box, Tensor | None]:
    box, size = step.inputs[0], magnitude(step.inputs[0])
    kappa = interval_error(terms.network_error, terms.length)
    added = underflow = _underflow(rounding, size, terms)
    if terms.constant is not None:
        added = underflow + kappa * terms.constant
    if not with_error:
        out = step.apply(box._replace(radius=_plus(box.radius, size, kappa)))
        return out._replace(radius=out.radius + added), None
    out, weighted = step.apply(box), step.apply(type(box)(size[:0], size)).radius
    radius = _plus(out.radius, weighted, kappa) + added
    total = weighted if terms.constant is None else weighted + terms.constant
    return out._replace(radius=radius), total * _error_factor(terms.network_error, out, terms.length) + underflow


def _plus(radius: Tensor, size: Tensor, kappa: float | Tensor) -> Tensor:
    """radius + κ·size; κ may be a number for each example."""
    if isinstance(kappa, Tensor):
        return torch.addcmul(radius, size, kappa)
    return torch.add(radius, size, alpha=kappa)


def _pointwise(
    rounding: Rounding, step: LayerStep, terms: PointwiseError, with_error: bool
) -> tuple[Box, Tensor | None]:
    out = step.apply(*step.inputs)
    size, underflow = magnitude(out), UNDERFLOWS * rounding.tiny
    radius = torch.add(out.radius, size, alpha=interval_error(terms.network_error, terms.length))
    if terms.exact and not with_error:
        return out._replace(radius=radius), None
    image = terms.image(*(magnitude(box) for box in step.inputs))
    lost = _underflow(rounding, image, AffineError(0.0, 0, None, 0.0, 0.0)) if terms.can_overflow else underflow
    lost = lost if terms.absolute is None else lost + terms.absolute(step.inputs[0], out)
    error = torch.add(image * _error_factor(0.0, out, terms.length), size, alpha=terms.network_error * 1.001) + lost
    return out._replace(radius=radius if terms.exact else radius + lost), error if with_error else None


def _reshaping(rounding: Rounding, step: LayerStep, with_error: bool) -> tuple[Box, Tensor | None]:
    out, layer = step.apply(*step.inputs), step.layer
    error = magnitude(out) * _error_factor(0.0, out, 0) if with_error else None
    if isinstance(layer, Pad) and layer.value != 0:
        stored = layer.of_zeros(out.radius.new_empty(step.inputs[0].radius.shape)).abs() * _stored(rounding, layer)
        return out._replace(radius=out.radius + stored), None if error is None else error + stored
    return out, error


def _stored(rounding: Rounding, layer: Pad) -> float:
    """κ of the constant of a Pad: the network stores it in its own dtype, and the verifier rounds the box's ends."""
    if abs(layer.value) >= rounding.largest and rounding.results:  # float32 can hold it, but a smaller dtype may not
        return math.nan
    return interval_error(rounding.steps(1), 0)


def _error_factor(network_error: Error, out: Box, length: int) -> Error:
    """κ of the error; the factor 1.001 covers the rounding of the sum |Λ| · error."""
    return (network_error + backsubstitution_error(out.radius[:1].numel() + length)) * 1.001


def _underflow(rounding: Rounding, size: Tensor, terms: AffineError) -> Tensor:
    """What may underflow in each example's results (B, 1, …); NaN where something might overflow."""
    total = (1 + terms.growth) * (1 + size.flatten(1).amax(1) + terms.offset)
    lost = total * (UNDERFLOWS * rounding.tiny * (terms.length + 4))
    return torch.where(total < rounding.largest, lost, torch.nan).view(-1, *[1] * (size.dim() - 1))


# --- affine layers ---------------------------------------------------------------------------------------


def _product(rounding: Rounding, layer: nn.Module) -> AffineError:
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    rows = layer.weight.flatten(1)
    length = rows.shape[1]
    network_error, growth = rounding.products(length), torch.linalg.vector_norm(rows, 1, dim=1).amax()
    if layer.bias is None:
        return AffineError(network_error, length, None, growth, 0.0)
    bias = layer.bias.abs()
    constant = bias.view(1, -1, 1, 1) if isinstance(layer, nn.Conv2d) else bias
    return AffineError(network_error, length, constant, growth, bias.amax())


def _counted(rounding: Rounding, layer: nn.Module, size: Tensor) -> AffineError:
    """As `_product`, for inputs of magnitude `size` (B, …), with an error for each example."""
    terms = _product(rounding, layer)
    if not rounding.zeros_are_exact:
        return terms
    counts = _most_products(layer, size).clamp(max=terms.length)
    errors = size.new_tensor([rounding.products(count) for count in counts.tolist()])
    return terms._replace(network_error=errors.view(-1, *[1] * (size.dim() - 1)))


def _most_products(layer: nn.Module, size: Tensor) -> Tensor:
    """The largest number (B,) of inputs in any sum of each example that are not zero in its box, or more."""
    used = size != 0  # NaN is not zero either
    if isinstance(layer, nn.Linear):
        return used.sum(-1).view(len(size), -1).amax(1)
    assert isinstance(layer, nn.Conv2d)  # which pads by zeros, or has no rule
    window = size.new_ones(1, 1, *layer.kernel_size)
    counts = used.sum(1, keepdim=True).to(size.dtype)  # of all groups
    sums = F.conv2d(counts, window, None, layer.stride, layer.padding, layer.dilation)
    return sums.flatten(1).amax(1).round().long()


def _normalize(rounding: Rounding, step: LayerStep) -> AffineError:
    """(x − mean) / std: a difference and a quotient, or a product with the inverse."""
    layer = step.layer
    assert isinstance(layer, Normalize)
    mean, inverse = layer.mean.abs(), 1 / layer.std.abs()
    return AffineError(rounding.steps(8), 0, mean * inverse, inverse.amax(), mean.amax())


def _batch_norm(rounding: Rounding, step: LayerStep) -> AffineError:
    """x·α + β with α = weight/√(var + e) and β = bias − mean·α, or step by step: fewer than 16 roundings in both."""
    layer, statistics = step.layer, step.statistics
    assert isinstance(layer, BatchNorm)
    assert statistics is not None  # every pass gives a BatchNorm its statistics
    variance, mean = statistics.variance, statistics.mean.abs()
    inverse = torch.rsqrt(variance + layer.eps)
    weight = layer.weight.abs() if layer.affine else torch.ones_like(inverse)
    bias = layer.bias.abs() if layer.affine else torch.zeros_like(inverse)
    accurate = ((variance >= 0) & (variance + layer.eps >= SMALLEST_VARIANCE)).all()
    growth = torch.where(accurate, (1 + inverse.amax()) * (1 + weight.amax()), math.inf)
    constant = (weight * inverse * mean + bias).view(1, -1, *[1] * (step.inputs[0].radius.dim() - 2))
    return AffineError(rounding.steps(16), 0, constant, growth, mean.amax() + bias.amax())


def _average(rounding: Rounding, step: LayerStep) -> AffineError:
    """A sum of at most all values of a window, then a quotient."""
    layer, shape = step.layer, step.inputs[0].radius.shape
    if isinstance(layer, nn.AvgPool2d):
        size = layer.kernel_size
        length = size * size if isinstance(size, int) else math.prod(size)
    else:
        length = math.prod(shape[-2:])
    return AffineError(rounding.steps(length + 2), length, None, float(length), 0.0)


# --- sums, maxima and activations ------------------------------------------------------------------------


def _add(rounding: Rounding, layer: nn.Module) -> PointwiseError:
    return PointwiseError(rounding.steps(1), torch.add, can_overflow=True)


def _max_pool(rounding: Rounding, layer: nn.Module) -> PointwiseError:
    return PointwiseError(0.0, layer, exact=True)


# Layer → its rounding error, by exact type. This table and the two below have every layer with an interval rule.
AFFINE_ERRORS: dict[type[nn.Module], Callable[[Rounding, LayerStep], AffineError]] = {
    nn.Linear: lambda rounding, step: _counted(rounding, step.layer, magnitude(step.inputs[0])),
    nn.Conv2d: lambda rounding, step: _counted(rounding, step.layer, magnitude(step.inputs[0])),
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Normalize: _normalize,
    nn.AvgPool2d: _average,
    nn.AdaptiveAvgPool2d: _average,
}
POINTWISE_ERRORS: dict[type[nn.Module], Callable[[Rounding, nn.Module], PointwiseError]] = {
    Add: _add,
    nn.MaxPool2d: _max_pool,
    **{layer: record.rounding for layer, record in ACTIVATIONS.items()},
}
RESHAPING = frozenset({nn.Flatten, nn.Identity, nn.Dropout, *REARRANGING})
