"""The means and variances that BatchNorm normalises by.

A pass gets a source of statistics and returns the statistics that it used. It
updates nothing, so it can be repeated, and its caller decides whether the running
statistics are updated. The source alone decides between training and evaluation:
no module's mode is changed.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from certtrain.errors import UnsupportedLayer

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class Statistics(NamedTuple):
    """Mean and biased variance (C,) at a BatchNorm layer's input.

    size: the number of values per channel, as a number or (C,); None for the running statistics.
    """

    layer: BatchNorm
    mean: Tensor
    variance: Tensor
    size: int | Tensor | None


# From a BatchNorm layer and the values (B, C, …) at its input to the statistics.
StatisticsFunction = Callable[[BatchNorm, Tensor], Statistics]
# The statistics of a pass, by the names of the calls. Another pass, of the network or of a part of it, can use them.
StatisticsByCall = Mapping[str, Statistics]
StatisticsSource = StatisticsFunction | StatisticsByCall


def batch_statistics(layer: BatchNorm, values: Tensor) -> Statistics:
    """The statistics of `values` (B, C, …), as in training.

    Raises UnsupportedLayer where a channel has only one value.
    """
    count, mean, variance = _moments(values)
    if count < 2:
        raise UnsupportedLayer(f"{layer} cannot take the variance of one value: use batches of two or more")
    return Statistics(layer, mean, variance, count)


def running_statistics(layer: BatchNorm, values: Tensor | None = None) -> Statistics:
    """The layer's running statistics, as in evaluation.

    Raises UnsupportedLayer if it keeps none.
    """
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedLayer(f"{layer} keeps no running statistics, so its bounds would depend on the batch")
    return Statistics(layer, layer.running_mean, layer.running_var, None)


def statistics_by_mode(layer: BatchNorm, values: Tensor) -> Statistics:
    """The statistics that torch would use, by `layer.training`, for networks whose mode the user chooses."""
    return batch_statistics(layer, values) if layer.training else running_statistics(layer)


def statistics_for(name: str, layer: BatchNorm, values: Tensor, source: StatisticsSource) -> Statistics:
    """The statistics for the call `name` of `layer`, with `values` (B, C, …) at its input."""
    return source[name] if isinstance(source, Mapping) else source(layer, values)


def pooled_statistics(gather: Callable[[Tensor], Tensor]) -> StatisticsFunction:
    """The statistics of a batch that is distributed over several processes.

    `gather` stacks the tensors of the parts to (parts, …). There are at least two
    parts, so there is always a variance.
    """

    def source(layer: BatchNorm, values: Tensor) -> Statistics:
        count, mean, variance = _moments(values)
        parts = gather(torch.stack([torch.full_like(mean, count), mean, variance])).unbind(1)
        return Statistics(layer, *pooled_moments(*parts))

    return source


def pooled_moments(counts: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number (C,) of all values together, from those (P, C) of P parts of them.

    By the law of total variance: the mean of the parts' variances, plus the variance of their means.
    """
    size = counts.sum(0)
    mean = (counts * means).sum(0) / size
    variance = (counts * (variances + (means - mean).square())).sum(0) / size
    return mean, variance, size


@torch.no_grad()
def update_running_statistics(taken: StatisticsByCall) -> None:
    """Update the running statistics as torch's BatchNorm does, with the unbiased variance.

    Statistics that are themselves running statistics change nothing.
    """
    for layer, mean, variance, size in taken.values():
        if size is None or layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
            continue
        layer.num_batches_tracked += 1
        weight = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), weight)
        layer.running_var.lerp_((variance * (size / (size - 1))).to(layer.running_var.dtype), weight)


def _moments(values: Tensor) -> tuple[int, Tensor, Tensor]:
    """The number of values per channel, and their mean and biased variance (C,)."""
    mean, variance = _Moments.apply(values.float() if values.dtype == torch.bfloat16 else values)
    return values.numel() // values.shape[1], mean, variance


class _Moments(torch.autograd.Function):
    """Mean and biased variance of each channel, in two passes over the values.

    torch.var_mean is about ten times slower on a CPU in channels-last memory, and
    autograd's gradient takes several passes where one is enough.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        dims = [d for d in range(values.dim()) if d != 1]
        mean = values.mean(dims, keepdim=True)
        ctx.save_for_backward(values, mean)
        return mean.flatten(), (values - mean).square_().mean(dims)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        values, mean = ctx.saved_tensors
        to_mean, to_variance = (gradient.view_as(mean) / (values.numel() // mean.numel()) for gradient in gradients)
        slope = 2 * to_variance
        return torch.addcmul(to_mean - mean * slope, values, slope)
