"""What the rounding error of one layer is made of: descriptions, from which `rounded` computes boxes and slack."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from certtrain.bounds.box import Box


class AffineError(NamedTuple):
    """What the error of an affine layer is made of.

    The network is within deployed · (|W||x̂| + constant) of exact, by sums of
    `length` terms; nothing inside the layer is larger than
    (1 + growth)(1 + max|x̂| + offset).
    """

    deployed: float
    length: int
    constant: Tensor | None
    growth: Tensor | float
    offset: Tensor | float


class PointwiseError(NamedTuple):
    """What the error of a sum, a maximum or an activation is made of.

    The network is within `deployed` of exact, relative to the result, and the
    verifier within γ of `length`. `image` maps the inputs' magnitudes to one
    that bounds the result and, together, the terms of the lines that stand for
    the layer. `exact` layers lose nothing; `growing` ones can overflow.
    `absolute` bounds what is no relative error, the network's and the
    verifier's own together, for every value of the layer's input box (B, …);
    its second argument is the box that the rule gives.
    """

    deployed: float
    image: Callable[..., Tensor]
    length: int = 0
    exact: bool = False
    growing: bool = False
    absolute: Callable[[Box, Box], Tensor] | None = None


def itself(size: Tensor) -> Tensor:
    """The image of a layer whose results are no larger than its inputs."""
    return size


def magnitude(box: Box) -> Tensor:
    """The largest magnitude in the box, but for float64's rounding, for which all constants have room."""
    return box.centre.abs() + box.radius
