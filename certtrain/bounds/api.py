"""Bounds of any network of supported layers, with their arguments checked."""

from typing import Literal, get_args

from torch import Tensor, nn

from certtrain.bounds.interval import boundable
from certtrain.bounds.trace import BoundTrace, Clip, Logits, bound_logits, trace_bounds
from certtrain.epsilon import parse_eps
from certtrain.errors import DataError, MethodError, UnsupportedLayer

Method = Literal["ibp"]
METHODS: tuple[str, ...] = get_args(Method)


def propagate(model: nn.Module, x: Tensor, eps: float, *, clip: Clip = (0.0, 1.0)) -> BoundTrace:
    """Carry the clean batch `x` (B, …) and its L∞ boxes of radius `eps` through `model` in one pass.

    In training mode BatchNorm takes the clean batch's mean and biased variance
    for both, and its running statistics are updated once. `clip` cuts the boxes
    to the range that inputs can have; None leaves them whole.

    Raises UnsupportedLayer, EpsilonError (ε outside [0, 1]), or DataError if
    `x` lies outside `clip` or does not fit the network.
    """
    check_input(x, clip)
    return trace_bounds(boundable(model), x, parse_eps(eps), clip)


def output_bounds(
    model: nn.Module, x: Tensor, eps: float, *, method: str = "ibp", clip: Clip = (0.0, 1.0)
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds (B, K) of the logits over the box of radius `eps` around each of `x` (B, …).

    Needs evaluation mode where BatchNorm is used, so that a bound does not
    depend on the rest of the batch. Raises as `propagate`.
    """
    box = _logits(model, x, eps, method, clip).box
    return box.lower, box.upper


def margin_bounds(
    model: nn.Module, x: Tensor, labels: Tensor, eps: float, *, method: str = "ibp", clip: Clip = (0.0, 1.0)
) -> Tensor:
    """Lower bounds (B, K) of logit[y] − logit[j] over each box; column y is 0.

    `labels` (B,) are the classes y. The point is certified if all other
    columns are finite and above zero. Raises as `output_bounds`, and DataError
    for a label outside the classes.
    """
    logits = _logits(model, x, eps, method, clip)
    check_labels(labels, logits.box.radius.shape)
    return logits.margins(labels)


def _logits(model: nn.Module, x: Tensor, eps: float, method: str, clip: Clip) -> Logits:
    if method not in METHODS:
        raise MethodError(f"bound method {method!r} is not known; choose from: {', '.join(METHODS)}")
    check_input(x, clip)
    graph = boundable(model)
    for call in graph.calls:
        if isinstance(call.layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and call.layer.training:
            raise UnsupportedLayer(f"layer {call.name!r} is in training mode; call model.eval() first")
    return bound_logits(graph, x, parse_eps(eps), clip)


def check_input(x: Tensor, clip: Clip) -> None:
    """Raise DataError unless every entry of `x` is finite and inside `clip`."""
    low, high = clip if clip is not None else (-float("inf"), float("inf"))
    if not bool(((x >= low) & (x <= high) & x.isfinite()).all()):
        raise DataError(
            f"inputs must be finite and in [{low:g}, {high:g}], but run from {x.min():g} to {x.max():g}; "
            "scale pixels to [0, 1] or pass clip=None"
        )


def check_labels(labels: Tensor, logits_shape: tuple[int, ...]) -> None:
    """Raise DataError unless `labels` holds one class in 0 … K−1 for each of B logits (B, K)."""
    batch, classes = logits_shape
    if labels.shape != (batch,):
        raise DataError(f"labels have shape {tuple(labels.shape)}; {batch} inputs need shape ({batch},)")
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise DataError(f"labels run from {labels.min()} to {labels.max()}, outside the {classes} classes")
