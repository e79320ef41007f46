"""Gradient ascent by Adam (Kingma and Ba 2015), for the slopes and multipliers that bounds are optimised over."""

from collections.abc import Sequence

import torch
from torch import Tensor

BETAS = (0.9, 0.999)


class Ascent:
    """Moves `values` (B, …) along their gradients. The first steps have length `rates`; they shrink by `decay`.

    torch.optim's Adam cannot drop some of the rows.
    """

    def __init__(self, values: Sequence[Tensor], rates: Sequence[float], decay: float) -> None:
        self.values, self.rates, self.decay = list(values), list(rates), decay
        self.moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in values]
        self.steps = 0

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move the values in place."""
        length = self.decay**self.steps
        self.steps += 1
        each = zip(self.values, gradients, self.moments, self.rates, strict=True)
        for value, gradient, (first, second), rate in each:
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            unbiased = second.div(1 - BETAS[1] ** self.steps).sqrt_().add_(torch.finfo(value.dtype).tiny)
            value.addcdiv_(first, unbiased, value=rate * length / (1 - BETAS[0] ** self.steps))

    def keep(self, rows: Tensor) -> None:
        """Keep only some of the rows."""
        self.values = [value[rows] for value in self.values]
        self.moments = [(first[rows], second[rows]) for first, second in self.moments]
