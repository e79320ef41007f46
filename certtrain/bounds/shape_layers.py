"""Layers that only move values: reshape, permute, pad, slice and concatenate them.

Dimension 0 is the batch, and stays as it is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Reshape(nn.Module):
    """Values (B, …) in the shape (B, *shape), in the same order in memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


class Permute(nn.Module):
    """The dimensions in another order: dimension i of the result is dimension dims[i − 1] of x, the batch first."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, *self.dims)


class Pad(nn.Module):
    """The constant `value`, of magnitude `LARGEST` at most, before and after the values along dimension `dim`."""

    LARGEST = torch.finfo(torch.float32).max

    def __init__(self, dim: int, before: int, after: int, value: float = 0.0) -> None:
        super().__init__()
        self.dim, self.before, self.after, self.value = dim, before, after, value

    def forward(self, x: Tensor) -> Tensor:
        return self.padded(x, self.value)

    def padded(self, x: Tensor, value: float) -> Tensor:
        """`x` padded with another constant."""
        return F.pad(x, [0, 0] * (x.dim() - 1 - self.dim) + [self.before, self.after], value=value)

    def of_zeros(self, x: Tensor) -> Tensor:
        """The result (1, …) for zeros in the shape of `x` (B, …): the constant that the layer adds."""
        return self.forward(x.new_zeros(1, *x.shape[1:]))


class Slice(nn.Module):
    """Along dimension `dim`, every `step`-th value from `start` to before `stop`."""

    def __init__(self, dim: int, start: int, stop: int, step: int = 1) -> None:
        super().__init__()
        self.dim, self.start, self.stop, self.step = dim, start, stop, step

    def forward(self, x: Tensor) -> Tensor:
        return x[(slice(None),) * self.dim + (slice(self.start, self.stop, self.step),)]


class Concat(nn.Module):
    """x and then y along dimension `dim`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], self.dim)


REARRANGING = (Reshape, Permute, Pad, Slice, Concat)
