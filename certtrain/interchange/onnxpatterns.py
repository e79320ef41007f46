"""Activations that exporters write as several operators.

- GELU: x · (1 + erf(x/√2)) / 2, its factors in any order.
- SiLU: x · sigmoid(x).
- Softplus with its threshold: x where βx is above it, else softplus(βx) / β.

An Erf or a Greater is not a layer by itself. Its result is a value that is pending until
the pattern is complete; any other use of it is an error.
"""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.interchange.onnxbuilder import ActivationLayer, Builder
from certtrain.interchange.onnxshaping import materialized
from certtrain.interchange.onnxvalues import Node, OnnxValue, Pending

ONE, ZERO = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)


def erf(builder: Builder, node: Node) -> OnnxValue:
    """A factor of GELU."""
    return _pending(node, Pending("Erf", node.value()))


def greater(builder: Builder, node: Node) -> OnnxValue:
    """The condition of a Softplus."""
    limit = node.weights(1)
    if limit.numel() != 1:
        raise node.error("it must compare with one number")
    return _pending(node, Pending("Greater", node.value(), float(limit)))


def _pending(node: Node, pending: Pending) -> OnnxValue:
    if pending.given.pending is not None:
        raise node.error(f"it is given the result of {pending.given.pending.kind} itself, which is not read")
    return pending.given.layer_result()._replace(pending=pending)


def product(builder: Builder, node: Node, left: OnnxValue, right: OnnxValue) -> OnnxValue:
    """The product of two values, if it is a GELU or a SiLU. Raises UnsupportedLayer otherwise."""
    for value, factor in ((left, right), (right, left)):
        found = _gelu(builder, node, value, factor) or _silu(builder, node, value, factor)
        if found is not None:
            return found
    raise node.error("the product of two layers' results is read only as x · sigmoid(x) and x · (1 + erf(x/√2))")


def _gelu(builder: Builder, node: Node, value: OnnxValue, factor: OnnxValue) -> OnnxValue | None:
    """m·z · s(1 + erf(z/√2)) as 2ms · GELU(z); None if the factor is not an erf."""
    if factor.pending is None or factor.pending.kind != "Erf" or value.pending is not None:
        return None
    scale, tolerance = _scale(factor), _Tolerance.of(builder)
    z = tolerance.simplest(_times(factor.pending.given, sqrt(2)), value)
    multiple = tolerance.multiple(value, z)
    if multiple is None or not tolerance.equal(scale, _shift(factor)):
        raise node.error("an erf is read only as a part of x · (1 + erf(x/√2)), which this is not")
    return add_activation(builder, node, "GELU", z).affine(2 * multiple * scale, ZERO)


def _silu(builder: Builder, node: Node, value: OnnxValue, factor: OnnxValue) -> OnnxValue | None:
    """m·z · s·sigmoid(z) as ms · SiLU(z); None if it is not such a product."""
    made = builder.activated.get(factor.layer)
    if made is None or made.kind != "Sigmoid" or factor.pending is not None or value.pending is not None:
        return None
    multiple = _Tolerance.of(builder).multiple(value, made.given)
    if multiple is None or not _alike(factor, value) or bool(_shift(factor).any()):
        return None
    return add_activation(builder, node, "SiLU", made.given).affine(multiple * _scale(factor), ZERO)


def where(builder: Builder, node: Node) -> OnnxValue:
    """Softplus: the condition, x, and softplus(βx) / β."""
    condition, value, smooth = (node.value(place) for place in (0, 1, 2))
    made = builder.activated.get(smooth.layer)
    if condition.pending is None or condition.pending.kind != "Greater" or made is None or made.kind != "Softplus":
        raise node.error("it is read only as torch writes Softplus with its threshold")
    tolerance, (_, compared, limit) = _Tolerance.of(builder), condition.pending
    beta, same = tolerance.multiple(made.given, value), tolerance.multiple(compared, made.given)
    if beta is None or same is None or same < 0 or not _is_part(smooth, value, 1 / beta, tolerance):
        raise node.error("it is read only as torch writes Softplus, x where βx is above a limit, else softplus(βx) / β")
    return add_activation(builder, node, "Softplus", value, beta=beta, threshold=limit / same)


def add_activation(builder: Builder, node: Node, kind: str, value: OnnxValue, **arguments: float) -> OnnxValue:
    """Append an activation of that kind."""
    made = builder.add(node, kind, [materialized(builder, value, node)], {}, **arguments)
    builder.activated[made.layer] = ActivationLayer(kind, value)
    return made


# --- values compared -------------------------------------------------------------------------------------


def _scale(value: OnnxValue) -> Tensor:
    return torch.ones(value.shape, dtype=torch.float64) if value.scale is None else value.scale


def _shift(value: OnnxValue) -> Tensor:
    return torch.zeros(value.shape, dtype=torch.float64) if value.shift is None else value.shift


def _is_part(factor: OnnxValue, value: OnnxValue, scale: float, tolerance: "_Tolerance") -> bool:
    """Whether the factor of a pattern is `scale` times its layer's result, in the shape of the value."""
    exactly = tolerance.equal(_scale(factor), torch.tensor(scale)) and not bool(_shift(factor).any())
    return exactly and _alike(factor, value)


def _alike(value: OnnxValue, other: OnnxValue) -> bool:
    return (value.shape, value.unbatched) == (other.shape, other.unbatched)


def _times(value: OnnxValue, number: float) -> OnnxValue:
    return value.affine(torch.tensor(number, dtype=torch.float64), ZERO)


class _Tolerance(NamedTuple):
    """A relative tolerance for comparisons, for the rounding of a few constants."""

    share: float

    @classmethod
    def of(cls, builder: Builder) -> "_Tolerance":
        return cls(4 * torch.finfo(builder.dtype).eps)

    def equal(self, left: Tensor, right: Tensor) -> bool:
        """Whether all numbers are equal within the tolerance; NaN never is."""
        return bool(((left - right).abs() <= self.share * torch.maximum(left.abs(), right.abs())).all())

    def multiple(self, value: OnnxValue, other: OnnxValue) -> float | None:
        """The number m with value = m · other, if there is one."""
        if value.layer != other.layer or not _alike(value, other):
            return None
        ratio = (_scale(value) / _scale(other)).flatten()
        multiple = 1.0 if self.equal(ratio, ONE) else float(ratio[0])
        fits = self.equal(ratio, torch.tensor(multiple)) and self.equal(_shift(value), multiple * _shift(other))
        return multiple if fits and multiple else None

    def simplest(self, value: OnnxValue, *others: OnnxValue) -> OnnxValue:
        """The layer's result or the first of `others` that equals the value; else the value itself."""
        return next((other for other in (value.layer_result(), *others) if self.multiple(value, other) == 1), value)
