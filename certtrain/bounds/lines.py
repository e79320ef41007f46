"""Lower and upper lines of a function over an interval, which replace a nonlinear layer in backsubstitution."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class Lines(NamedTuple):
    """lower_slope · x + lower_offset ≤ f(x) ≤ upper_slope · x + upper_offset for every x of a box (B, …).

    An offset is None where it is zero everywhere.
    """

    lower_slope: Tensor
    lower_offset: Tensor | None
    upper_slope: Tensor
    upper_offset: Tensor | None

    def examples(self, chosen: Tensor) -> "Lines":
        """The lines of some examples of the batch."""
        return self._each(lambda part: part[chosen])

    def for_functions(self) -> "Lines":
        """The same lines (B, 1, …) for all functions of an example."""
        return self._each(lambda part: part.unsqueeze(1))

    def of_first_function(self) -> "Lines":
        """The lines (B, …) of the first function, of lines (B, S, …)."""
        return self._each(lambda part: part[:, 0])

    def distance(self, x: Tensor) -> Tensor:
        """How far the upper line is above the lower one at x."""
        lower, upper = self._part(1), self._part(3)
        return (self.upper_slope - self.lower_slope) * x + (upper - lower)

    def where(self, below: Tensor, above: Tensor, others: "Lines") -> "Lines":
        """The lower lines where `below` is true and the upper lines where `above` is, elsewhere those of `others`."""
        places = (below, below, above, above)
        return Lines(*(self._part(n).where(place, others._part(n)) for n, place in enumerate(places)))

    def _part(self, number: int) -> Tensor:
        part = self[number]
        return torch.zeros_like(self.lower_slope) if part is None else part

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Lines":
        lower, below, upper, above = self
        changed = (None if offset is None else change(offset) for offset in (below, above))
        return Lines(change(lower), next(changed), change(upper), next(changed))


class FreeLines(Protocol):
    """Lines over the boxes of a layer (B, …) with a number α to choose for each function and neuron, or several.

    Every α between `least` and `most` (B, 1, …) gives sound lines, rounding included. `first` is where to start.
    """

    @property
    def first(self) -> Tensor:
        """The initial α."""

    @property
    def least(self) -> Tensor:
        """The least α."""

    @property
    def most(self) -> Tensor:
        """The largest α."""

    def examples(self, chosen: Tensor) -> Self:
        """The lines of some examples of the batch."""

    def at(self, alpha: Tensor) -> Lines:
        """The lines (B, S, …) for α (B, S, …), one for each function."""


class _Within(torch.autograd.Function):
    """Slopes within [s, 1] or [1, s], which rounding may have left; with the gradient of the identity.

    The gradient of `clamp` is zero at both ends, where the initial slopes are.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, slopes: Tensor, slope: float) -> Tensor:
        return slopes.clamp(min(slope, 1.0), max(slope, 1.0))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Slopes(NamedTuple):
    """The lines of a rectifier max(x, sx) or min(x, sx), with a choice of the slope of its line through zero.

    This slope is s + (1 − s)α for any α between `least` and `most` (B, 1, …): 0
    and 1 for an unstable neuron, else the same number. `first` is the α of `lines`,
    the initial lines over the box.
    """

    lines: Lines
    slope: float
    least: Tensor
    most: Tensor
    first: Tensor

    def examples(self, chosen: Tensor) -> "Slopes":
        """The slopes of some examples of the batch."""
        parts = (part[chosen] for part in (self.least, self.most, self.first))
        return Slopes(self.lines.examples(chosen), self.slope, *parts)

    def at(self, alpha: Tensor) -> Lines:
        """The lines (B, S, …) for α (B, S, …), one for each function; sound for any α in [0, 1], rounding included."""
        slope = alpha if self.slope == 0 else _Within.apply(alpha + self.slope * (1 - alpha), self.slope)
        if self.slope <= 1:
            return self.lines._replace(lower_slope=slope)
        return self.lines._replace(upper_slope=slope)
