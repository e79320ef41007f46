"""Checks of the arguments before bounds are computed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from certtrain.bounds.graph import LayerGraph
from certtrain.errors import DataError, UnsupportedLayer, is_out_of_memory


@contextmanager
def shape_errors_as_data_errors(x: Tensor) -> Iterator[None]:
    """Turn torch's error about a shape into a DataError that names the shape of the inputs."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise DataError(f"inputs of shape {tuple(x.shape)} do not fit the network: {error}") from error


def check_evaluation_mode(graph: LayerGraph) -> None:
    """Raise UnsupportedLayer if BatchNorm would take its statistics from the batch."""
    for call in graph.calls:
        if isinstance(call.layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and call.layer.training:
            raise UnsupportedLayer(f"layer {call.name!r} is in training mode; call model.eval() first")


def check_not_random(layer: nn.Dropout) -> None:
    """Raise UnsupportedLayer for a Dropout that drops values: its result is not a function of its input."""
    if layer.training and layer.p > 0:
        raise UnsupportedLayer(f"{layer} is random in training; bounds need p = 0 or evaluation mode")


def check_trainable(graph: LayerGraph) -> None:
    """Raise UnsupportedLayer for a network with layers that are random in training, whatever their current mode."""
    for call in graph.calls:
        if isinstance(call.layer, nn.Dropout) and call.layer.p > 0:
            raise UnsupportedLayer(f"layer {call.name!r} is random in training; bounds need a Dropout of p = 0")


def check_tensor(x: Tensor) -> None:
    """Raise DataError unless `x` is a floating-point tensor."""
    if not isinstance(x, Tensor):
        raise DataError(f"inputs are {kind_of(x)}, not a tensor; write torch.as_tensor(x, dtype=torch.float32)")
    if not x.is_floating_point():
        raise DataError(f"inputs are {x.dtype}, not pixels in [0, 1]; for levels from 0 to 255 write x.float() / 255")


def check_input(x: Tensor, clip: tuple[float, float] | None) -> None:
    """Raise DataError unless `x` is a floating-point tensor with every entry finite and inside `clip`."""
    check_tensor(x)
    low, high = clip if clip is not None else (-float("inf"), float("inf"))
    if not bool(((x >= low) & (x <= high) & x.isfinite()).all()):
        raise DataError(
            f"inputs must be finite and in [{low:g}, {high:g}], but run from {x.min():g} to {x.max():g}; "
            "scale pixels to [0, 1] or pass clip=None"
        )


def check_dtype(model: nn.Module, x: Tensor) -> None:
    """Raise DataError unless `x` has the dtype of the network's weights; without weights, float32 or float64."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if own is None and x.dtype not in (torch.float32, torch.float64):
        raise DataError(f"inputs are {x.dtype}; write x.float()")
    if x.dtype != (own or x.dtype):
        instead = ", or model.float()" if own == torch.float64 else ""
        raise DataError(f"inputs are {x.dtype}, but the network's weights are {own}; write x.to({own}){instead}")


def check_labels(labels: Tensor, logits_shape: tuple[int, ...]) -> None:
    """Raise DataError unless `labels` holds one class in 0 … K−1 for each of B logits (B, K)."""
    if len(logits_shape) != 2:
        raise DataError(
            f"the network's logits have shape {tuple(logits_shape)}; labels need one row (K,) for each input"
        )
    batch, classes = logits_shape
    if classes < 2:
        raise DataError("the network has one logit; a margin needs two classes or more")
    if not isinstance(labels, Tensor):
        raise DataError(f"labels are {kind_of(labels)}, not a tensor; write torch.as_tensor(labels)")
    if labels.dtype != torch.int64:
        raise DataError(f"labels are {labels.dtype}; classes must be torch.int64")
    if labels.shape != (batch,):
        raise DataError(f"labels have shape {tuple(labels.shape)}; {batch} inputs need shape ({batch},)")
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise DataError(f"labels run from {labels.min()} to {labels.max()}, outside the {classes} classes")


def kind_of(value: object) -> str:
    """Like "a list" or "a numpy.ndarray"."""
    kind = type(value)
    return f"a {kind.__qualname__ if kind.__module__ == 'builtins' else f'{kind.__module__}.{kind.__qualname__}'}"
