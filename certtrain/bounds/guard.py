"""A check of every proof by plain inference: no observed value may lie below its proved bound.

A fault in a bound rule does not change the network's own output at an input of
the box. So each proof is checked at the centre of its box, at the corner towards
which the value nearest to its bound decreases fastest, by its gradient, and at a
random corner. This proves nothing and costs little; a value below its bound is a
fault in certtrain.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from certtrain.bounds.box import box_ends
from certtrain.bounds.contract import FAULT
from certtrain.errors import SoundnessError

Infer = Callable[[Tensor], Tensor]
ValuesOf = Callable[[Tensor], Tensor]


class Claims(NamedTuple):
    """Claims about N boxes: no value is below its bound anywhere in its box.

    centre, lower, upper: (N, …), inputs in the boxes, of the dtype that the network takes.
    values: from outputs (N, K) to the values (N, S) that were bounded.
    bounds: (N, S); one that is not finite claims nothing.
    """

    centre: Tensor
    lower: Tensor
    upper: Tensor
    values: ValuesOf
    bounds: Tensor


def check_margins(
    infer: Infer, x: Tensor, labels: Tensor, eps: float, bounds: Tensor, *, tolerance: float = 0.0
) -> None:
    """Raise SoundnessError if inference finds a margin below its bound in a box of radius `eps` around `x` (N, …).

    `infer` gives logits (N, K). `bounds` are for all margins (N, K), or for the smallest margin only (N, 1).
    `tolerance` is the rounding error that an observed value may have, as a share of its size.
    """
    if len(x):
        values, bounds = _claimed(labels, bounds)
        check_claims(infer, Claims(x, *box_ends(x, eps), values, bounds), tolerance=tolerance)


def check_centres(logits: Tensor, labels: Tensor, bounds: Tensor, *, tolerance: float = 0.0) -> None:
    """As `check_margins`, only at the centres, whose logits (N, K) are given."""
    values, bounds = _claimed(labels, bounds)
    _compare(values(logits), bounds, tolerance, "the centre")


def check_claims(infer: Infer, claims: Claims, *, tolerance: float = 0.0) -> None:
    """Raise SoundnessError if inference finds a value below its bound."""
    if bool(claims.bounds.isfinite().any()):
        for place, inputs in _probes(infer, claims):
            _compare(claims.values(infer(inputs.clone())), claims.bounds, tolerance, place)


def _probes(infer: Infer, claims: Claims) -> Iterator[tuple[str, Tensor]]:
    yield "the centre", claims.centre
    yield "a corner", torch.where(_gradient(infer, claims) > 0, claims.lower, claims.upper)
    share = torch.rand(claims.centre.shape, generator=Generator().manual_seed(0)).to(claims.centre)
    yield "a corner", torch.where(share < 0.5, claims.lower, claims.upper)


def _gradient(infer: Infer, claims: Claims) -> Tensor:
    """The gradient at the centre of the value that is nearest to its bound."""
    try:
        return _gradient_at_centre(infer, claims)
    except RuntimeError:  # the network overwrites, in place, values that the gradient needs
        with torch.autograd.graph.allow_mutation_on_saved_tensors():  # which loads torch's compiler
            return _gradient_at_centre(infer, claims)


def _gradient_at_centre(infer: Infer, claims: Claims) -> Tensor:
    with torch.enable_grad():
        inputs = claims.centre.detach().clone().requires_grad_()
        gap = claims.values(infer(inputs.clone())) - claims.bounds
        nearest = torch.where(claims.bounds.isfinite(), gap, torch.inf).amin(1)
        total = nearest.where(nearest.isfinite(), 0.0).sum()
        if not total.requires_grad:  # the forward pass switches gradients off
            return torch.zeros_like(inputs)
        (gradient,) = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    return gradient


def _compare(values: Tensor, bounds: Tensor, tolerance: float, place: str) -> None:
    known = bounds.isfinite()
    least = bounds - tolerance * values.abs().clamp(min=1) if tolerance else bounds
    below = ~(values >= least) & known
    if bool(below.any()):
        row, column = below.nonzero()[0].tolist()
        raise SoundnessError(
            f"inference gives {float(values[row, column]):g} at {place} of a box, where {float(bounds[row, column]):g} "
            f"was proved to be a lower bound; a network whose results change from call to call cannot be certified, "
            f"and otherwise {FAULT}"
        )


def _claimed(labels: Tensor, bounds: Tensor) -> tuple[ValuesOf, Tensor]:
    """The bounded values and their bounds: all margins (N, K) but the label's own, or the smallest (N, 1)."""
    column = labels.unsqueeze(1)
    if bounds.shape[1] == 1:
        return lambda logits: _margins(logits, column).scatter(1, column, torch.inf).amin(1, keepdim=True), bounds
    return lambda logits: _margins(logits, column), bounds.scatter(1, column, -torch.inf)


def _margins(logits: Tensor, column: Tensor) -> Tensor:
    """logit[y] − logit[j] (N, K) for the classes y in `column` (N, 1), in float64: exact for float32 logits."""
    exact = logits.double()
    return exact.gather(1, column) - exact
