"""The shapes of every layer's inputs and result. Each bound rule is checked against them at each call.

A rule that relies on broadcasting, or forgets an axis, could give bounds that
are not sound. So the shape of a layer's result is computed from its description
alone (`certtrain.spec.shapes`), and a rule must give exactly that shape: for the
boxes of the forward pass, and for the coefficients of backsubstitution.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from certtrain.bounds.graph import LayerCall, LayerGraph
from certtrain.errors import DataError, SoundnessError
from certtrain.spec.shapes import SHAPE_OF

FAULT = "do not trust certificates of this network. This is a fault in certtrain; please report it."


def result_shape(call: LayerCall, given: Sequence[torch.Size]) -> torch.Size:
    """The shape (B, …) of the layer's result for inputs of shapes `given` (B, …).

    Raises DataError if the layer does not take these shapes, or if the batches have different sizes.
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


def logits_shape(graph: LayerGraph, shape: Sequence[int]) -> torch.Size:
    """The shape (B, …) of the network's output for inputs of `shape` (B, …). Raises DataError as `result_shape`."""
    shapes = list(graph.walk(torch.Size(shape), lambda call, *given: result_shape(call, given)))
    return shapes[-1]


def check_results(call: LayerCall, expected: torch.Size, parts: Sequence[Tensor | None]) -> None:
    """Raise SoundnessError unless all `parts` of a box have the expected shape, whatever the size of their batch."""
    for part in parts:
        if part is not None and part.shape[1:] != expected[1:]:
            raise _fault(call, "gives", part.shape, expected)


def check_coefficients(
    call: LayerCall, expected: Sequence[Sequence[int]], found: Sequence[Tensor], lead: Sequence[int]
) -> None:
    """Raise SoundnessError unless a linear rule returns coefficients (B, S, …) for each input, in the input's shape."""
    shapes = [torch.Size((*lead, *shape[1:])) for shape in expected]
    if [tensor.shape for tensor in found] != shapes:
        raise _fault(call, "returns", tuple(tuple(t.shape) for t in found), tuple(tuple(s) for s in shapes))


def check_order(lower: Tensor, upper: Tensor, what: str, tolerance: float = 0.0) -> None:
    """Raise SoundnessError if a lower bound is above its upper bound.

    `tolerance` is the gap that rounding may cause, as a share of the largest bound, and of at least 1.
    """
    gap = lower - upper
    if tolerance:
        gap = gap - tolerance * max(1.0, *(float(end.abs().nan_to_num(0.0).max()) for end in (lower, upper)))
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
