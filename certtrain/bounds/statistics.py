"""The means and variances that BatchNorm normalises by.

A pass takes them as values and returns them: nothing is updated on the way,
so a pass can be repeated, and its caller decides what the network remembers.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from certtrain.errors import UnsupportedLayer

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class Statistics(NamedTuple):
    """Mean and biased variance (C,) at a BatchNorm layer's input, over `size` values a channel: a number, or (C,)."""

    layer: BatchNorm
    mean: Tensor
    variance: Tensor
    size: int | Tensor


# Where a BatchNorm layer in training gets its statistics, from itself and the values of the batch at its input.
Source = Callable[[BatchNorm, Tensor], Statistics]


def batch_statistics(layer: BatchNorm, points: Tensor) -> Statistics:
    """The statistics of `points` (B, C, …).

    Raises UnsupportedLayer where a channel has one value alone.
    """
    count, mean, variance = _moments(points)
    if count < 2:
        raise UnsupportedLayer(f"{layer} cannot take the variance of one value: use batches of two or more")
    return Statistics(layer, mean, variance, count)


def pooled_statistics(gather: Callable[[Tensor], Tensor]) -> Source:
    """The statistics of a batch that lies in parts, as several processes have it.

    `gather` makes rows (parts, …) of the parts' tensors. There are two parts
    or more, so there is always a variance.
    """

    def source(layer: BatchNorm, points: Tensor) -> Statistics:
        count, mean, variance = _moments(points)
        counts, means, variances = gather(torch.stack([torch.full_like(mean, count), mean, variance])).unbind(1)
        size = counts.sum(0)
        mean = (counts * means).sum(0) / size
        variance = (counts * (variances + (means - mean).square())).sum(0) / size
        return Statistics(layer, mean, variance, size)

    return source


def given_statistics(known: Iterable[Statistics]) -> Source:
    """Statistics that an earlier pass has taken, in its order."""
    ahead = iter(known)
    return lambda layer, points: next(ahead)


def running_statistics(layer: BatchNorm) -> Statistics:
    """What the layer remembers of its training.

    Raises UnsupportedLayer if it remembers nothing.
    """
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedLayer(f"{layer} keeps no running statistics, so its bounds would depend on the batch")
    return Statistics(layer, layer.running_mean, layer.running_var, 0)


@torch.no_grad()
def remember(taken: Iterable[Statistics]) -> None:
    """Take one step of the running statistics, as torch's own BatchNorm does: with the unbiased variance."""
    for layer, mean, variance, size in taken:
        if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
            continue
        layer.num_batches_tracked += 1
        weight = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), weight)
        layer.running_var.lerp_((variance * (size / (size - 1))).to(layer.running_var.dtype), weight)


def _moments(points: Tensor) -> tuple[int, Tensor, Tensor]:
    """Values a channel, and their mean and biased variance (C,)."""
    mean, variance = _Moments.apply(points.float() if points.dtype == torch.bfloat16 else points)
    return points.numel() // points.shape[1], mean, variance


class _Moments(torch.autograd.Function):
    """Mean and biased variance of each channel, by two plain passes.

    torch.var_mean is some ten times slower on a CPU in channels-last memory,
    and autograd's own gradient takes several passes where one will do.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor) -> tuple[Tensor, Tensor]:
        dims = [d for d in range(points.dim()) if d != 1]
        mean = points.mean(dims, keepdim=True)
        ctx.save_for_backward(points, mean)
        return mean.flatten(), (points - mean).square_().mean(dims)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        points, mean = ctx.saved_tensors
        to_mean, to_variance = (gradient.view_as(mean) / (points.numel() // mean.numel()) for gradient in gradients)
        slope = 2 * to_variance
        return torch.addcmul(to_mean - mean * slope, points, slope)
