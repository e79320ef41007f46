"""What is asked of the arguments before bounds are computed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from certtrain.bounds.graph import LayerGraph
from certtrain.errors import DataError, UnsupportedLayer


@contextmanager
def fitting(x: Tensor) -> Iterator[None]:
    """Turn torch's complaint about a shape into a DataError that names the inputs' shape."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise DataError(f"inputs of shape {tuple(x.shape)} do not fit the network: {error}") from error


def check_evaluation_mode(graph: LayerGraph) -> None:
    """Raise UnsupportedLayer if BatchNorm would take its statistics from the batch."""
    for call in graph.calls:
        if isinstance(call.layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and call.layer.training:
            raise UnsupportedLayer(f"layer {call.name!r} is in training mode; call model.eval() first")


def check_input(x: Tensor, clip: tuple[float, float] | None) -> None:
    """Raise DataError unless every entry of `x` is finite and inside `clip`."""
    low, high = clip if clip is not None else (-float("inf"), float("inf"))
    if not bool(((x >= low) & (x <= high) & x.isfinite()).all()):
        raise DataError(
            f"inputs must be finite and in [{low:g}, {high:g}], but run from {x.min():g} to {x.max():g}; "
            "scale pixels to [0, 1] or pass clip=None"
        )


def check_labels(labels: Tensor, logits_shape: tuple[int, ...]) -> None:
    """Raise DataError unless `labels` holds one class in 0 … K−1 for each of B logits (B, K)."""
    if len(logits_shape) != 2:
        raise DataError(f"the network's logits have shape {tuple(logits_shape)}; labels need one row (K,) an input")
    batch, classes = logits_shape
    if classes < 2:
        raise DataError("the network has one logit; a margin needs two classes or more")
    if labels.dtype != torch.int64:
        raise DataError(f"labels are {labels.dtype}; classes are counted in torch.int64")
    if labels.shape != (batch,):
        raise DataError(f"labels have shape {tuple(labels.shape)}; {batch} inputs need shape ({batch},)")
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise DataError(f"labels run from {labels.min()} to {labels.max()}, outside the {classes} classes")
