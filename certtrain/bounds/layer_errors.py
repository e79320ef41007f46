"""Descriptions of one layer's rounding error, from which `rounded` computes boxes and bounds of the error."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from certtrain.bounds.box import Box


class AffineError(NamedTuple):
    """The rounding error of an affine layer.

    The network's result is within network_error · (|W||x̂| + constant) of the exact one; it is a number, or one for each
    example, (B, 1, …). Its sums have `length` terms. No number inside the layer is larger than
    (1 + growth)(1 + max|x̂| + offset).
    """

    network_error: float | Tensor
    length: int
    constant: Tensor | None
    growth: Tensor | float
    offset: Tensor | float


class PointwiseError(NamedTuple):
    """The rounding error of a sum, a maximum or an activation.

    network_error: relative to the result. length: the verifier's error is within γ_length of the result.
    image: from the magnitudes of the inputs to a magnitude that bounds the result, and also the sum of the terms of the
        lines that replace the layer.
    exact: whether the layer rounds nothing. can_overflow: whether its result may overflow.
    absolute: from the layer's input box and the box of its rule to a bound (B, …) of the error, of network and verifier
        together, that is not relative to the result.
    """

    network_error: float
    image: Callable[..., Tensor]
    length: int = 0
    exact: bool = False
    can_overflow: bool = False
    absolute: Callable[[Box, Box], Tensor] | None = None


def same_magnitude(size: Tensor) -> Tensor:
    """The `image` of a layer whose results are no larger than its inputs."""
    return size


def magnitude(box: Box) -> Tensor:
    """The largest magnitude in the box, up to float64's rounding, which all constants allow for."""
    return box.centre.abs() + box.radius
