"""The shapes that every layer takes and gives: each rule is held to them at each call.

A rule that relied on broadcasting, or forgot an axis, could give bounds that
do not hold. So what a layer gives is known from its description alone
(`certtrain.spec.shapes`), and what a rule makes must have just that shape: boxes on
their way forward, and coefficients on their way back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from certtrain.bounds.graph import LayerCall
from certtrain.errors import DataError, SoundnessError
from certtrain.spec.shapes import SHAPE_OF

FAULT = "do not trust certificates of this network. This is a fault in certtrain; please report it."


def result_shape(call: LayerCall, given: Sequence[torch.Size]) -> torch.Size:
    """The shape (B, …) of what the layer gives for inputs of shapes `given` (B, …).

    Raises DataError if the layer does not take them, or if they are of batches of different sizes.
    """
    try:
        if not all(given) or len({shape[0] for shape in given}) != 1:
            raise ValueError("all need one batch dimension, of the same size")
        return torch.Size((given[0][0], *SHAPE_OF[type(call.layer).__name__](call.layer, *(s[1:] for s in given))))
    except ValueError as error:
        values = " and ".join(str(tuple(shape)) for shape in given)
        raise DataError(
            f"inputs do not fit the network: layer {call.name!r} is given values of shape {values}, but {error}"
        ) from error


def check_results(call: LayerCall, expected: torch.Size, parts: Sequence[Tensor | None]) -> None:
    """Raise SoundnessError unless all `parts` of a box have the expected shape; a clean batch may have another size."""
    for part in parts:
        if part is not None and part.shape[1:] != expected[1:]:
            raise _fault(call, "gives", part.shape, expected)


def check_coefficients(
    call: LayerCall, expected: Sequence[Sequence[int]], found: Sequence[Tensor], lead: Sequence[int]
) -> None:
    """Raise SoundnessError unless a linear rule hands back coefficients (B, S, …) for each input, in its shape."""
    shapes = [torch.Size((*lead, *shape[1:])) for shape in expected]
    if [tensor.shape for tensor in found] != shapes:
        raise _fault(call, "hands back", tuple(tuple(t.shape) for t in found), tuple(tuple(s) for s in shapes))


def check_order(lower: Tensor, upper: Tensor, what: str, slack: float = 0.0) -> None:
    """Raise SoundnessError if a lower bound is above its upper one.

    `slack` is what rounding may make of it, as a share of the largest bound, and of 1 at least.
    """
    gap = lower - upper
    if slack:
        gap = gap - slack * max(1.0, *(float(end.abs().nan_to_num(0.0).max()) for end in (lower, upper)))
    crossed = gap > 0
    if bool(crossed.any()):
        raise SoundnessError(
            f"{int(crossed.sum())} lower bounds of {what} are above the upper ones, by up to "
            f"{float((lower - upper)[crossed].max()):g}: {FAULT}"
        )


def _fault(call: LayerCall, does: str, found: object, expected: object) -> SoundnessError:
    return SoundnessError(
        f"the bound rule of layer {call.name!r} ({type(call.layer).__name__}) {does} values of shape {found}, "
        f"not {expected}: {FAULT}"
    )
