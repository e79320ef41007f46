"""A check of every proof by plain inference: no observed value may lie below its proved bound.

Whatever a bound rule gets wrong, a network's own output at a point of the box
still is what it is. Each proof is held against the centre of its box, the
corner where the gradient says that the value nearest to its bound falls
fastest, and a random corner. That proves nothing, and costs next to nothing;
a value below its bound is a fault in certtrain.
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
    """What is claimed of N boxes: that no value is below its bound anywhere in them.

    centre, lower, upper: (N, …), points of the boxes, of the type that the network takes.
    values: from outputs (N, K) to the values (N, S) that were bounded.
    bounds: (N, S); what is not finite bounds nothing.
    """

    centre: Tensor
    lower: Tensor
    upper: Tensor
    values: ValuesOf
    bounds: Tensor


def check_margins(infer: Infer, x: Tensor, labels: Tensor, eps: float, bounds: Tensor, *, slack: float = 0.0) -> None:
    """Raise SoundnessError if a margin is seen below its bound in a box of radius `eps` around one of `x` (N, …).

    `infer` gives logits (N, K). `bounds` are of the margins to each class (N, K), or of the smallest alone (N, 1).
    `slack` is what rounding may take from an observed value, as a share of its size.
    """
    if len(x):
        values, bounds = _claimed(labels, bounds)
        check_claims(infer, Claims(x, *box_ends(x, eps), values, bounds), slack=slack)


def check_centres(logits: Tensor, labels: Tensor, bounds: Tensor, *, slack: float = 0.0) -> None:
    """As `check_margins`, where the logits (N, K) at the centres are known already."""
    values, bounds = _claimed(labels, bounds)
    _compare(values(logits), bounds, slack, "the centre")


def check_claims(infer: Infer, claims: Claims, *, slack: float = 0.0) -> None:
    """Raise SoundnessError if a value is seen below its bound."""
    if bool(claims.bounds.isfinite().any()):
        for place, points in _probes(infer, claims):
            _compare(claims.values(infer(points.clone())), claims.bounds, slack, place)


def _probes(infer: Infer, claims: Claims) -> Iterator[tuple[str, Tensor]]:
    yield "the centre", claims.centre
    yield "a corner", torch.where(_gradient(infer, claims) > 0, claims.lower, claims.upper)
    share = torch.rand(claims.centre.shape, generator=Generator().manual_seed(0)).to(claims.centre)
    yield "a corner", torch.where(share < 0.5, claims.lower, claims.upper)


def _gradient(infer: Infer, claims: Claims) -> Tensor:
    """At the centre, of the value that is nearest to its bound."""
    # A network may work in place where a gradient would need what was there.
    with torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
        points = claims.centre.detach().clone().requires_grad_()
        gap = claims.values(infer(points.clone())) - claims.bounds
        nearest = torch.where(claims.bounds.isfinite(), gap, torch.inf).amin(1)
        total = nearest.where(nearest.isfinite(), 0.0).sum()
        (gradient,) = torch.autograd.grad(total, points, allow_unused=True, materialize_grads=True)
    return gradient


def _compare(values: Tensor, bounds: Tensor, slack: float, place: str) -> None:
    known = bounds.isfinite()
    least = bounds - slack * values.abs().clamp(min=1) if slack else bounds
    below = ~(values >= least) & known
    if bool(below.any()):
        row, column = below.nonzero()[0].tolist()
        raise SoundnessError(
            f"inference gives {float(values[row, column]):g} at {place} of a box, where {float(bounds[row, column]):g} "
            f"was proved to be a lower bound; a network that computes otherwise from call to call cannot be certified, "
            f"and else {FAULT}"
        )


def _claimed(labels: Tensor, bounds: Tensor) -> tuple[ValuesOf, Tensor]:
    """What was bounded, and the bounds: of all margins (N, K), of which a class has none to itself, or the smallest."""
    column = labels.unsqueeze(1)
    if bounds.shape[1] == 1:
        return lambda logits: _margins(logits, column).scatter(1, column, torch.inf).amin(1, keepdim=True), bounds
    return lambda logits: _margins(logits, column), bounds.scatter(1, column, -torch.inf)


def _margins(logits: Tensor, column: Tensor) -> Tensor:
    """logit[y] − logit[j] (N, K) for the classes y in `column` (N, 1); float64 takes it without error from float32."""
    exact = logits.double()
    return exact.gather(1, column) - exact
