"""Domains: parts of a box in which the signs of some neurons' inputs are fixed, with their bounds."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor


class Domains(NamedTuple):
    """D domains of one problem.

    signs: (D, T) of int8: 1 where a neuron's input is ≥ 0, −1 where it is ≤ 0, and 0 where it is not split.
    alphas: (D, A), the best α found. betas: (D, T), the best multipliers. weights: (D, S), not negative, those of the
        functions in the sum that is bounded; only their proportions count.
    shares: (D, J, K), the best shares of the upper planes of J neurons; J is 0 where chords are used alone.
    bounds: (D,), the lower bounds of these sums. One above zero closes the domain: everywhere in it, some function is
        above zero.
    lower, upper: (D, T) of float32, bounds of the neurons' inputs where clipping made them tighter; else infinite.
    thresholds: (D,), what a bound must exceed: zero, or the margin c up to which `lower` and `upper` hold. Above it,
        the bound holds for the inputs with smaller margins only, so there are none, and c is a bound for all.
    nodes: (D,), the domains' numbers in the tree.
    """

    signs: Tensor
    alphas: Tensor
    betas: Tensor
    weights: Tensor
    shares: Tensor
    bounds: Tensor
    lower: Tensor
    upper: Tensor
    thresholds: Tensor
    nodes: Tensor

    @classmethod
    def of(cls, signs: Tensor, alphas: Tensor, betas: Tensor, weights: Tensor) -> "Domains":
        """Domains that are not bounded yet, without clipped ends, all at node 0."""
        zeros = weights.new_zeros(len(signs), dtype=torch.float64)
        none = torch.full_like(signs, -torch.inf, dtype=torch.float32)
        no_shares = alphas.new_zeros(len(signs), 0, 0)
        ends = (none, -none, zeros)
        return cls(signs.to(torch.int8), alphas, betas, weights, no_shares, zeros - torch.inf, *ends, zeros.long())

    @property
    def variables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the bounds are optimised over: alphas, betas, weights and shares."""
        return self.alphas, self.betas, self.weights, self.shares

    @property
    def closed(self) -> Tensor:
        """Which domains (D,) are proved; NaN and infinity prove none."""
        return (self.bounds > self.thresholds) & self.bounds.isfinite()

    @property
    def proved(self) -> Tensor:
        """The lower bounds (D,) that closed domains have proved for all their inputs."""
        return torch.where(self.thresholds > 0, self.thresholds, self.bounds)

    @property
    def total(self) -> int:
        """The number of domains, D."""
        return len(self.nodes)

    def take(self, chosen: Tensor | slice) -> Self:
        """Some of the domains."""
        return type(self)(*(part[chosen] for part in self))

    def unclipped(self) -> Self:
        """The domains without what clipping found."""
        lower, upper = torch.full_like(self.lower, -torch.inf), torch.full_like(self.upper, torch.inf)
        return self._replace(lower=lower, upper=upper, thresholds=torch.zeros_like(self.thresholds))

    @property
    def bytes(self) -> int:
        """The memory that the domains take."""
        return sum(part.numel() * part.element_size() for part in self)


class AnyDomains(Protocol):
    """Domains of any kind."""

    @property
    def total(self) -> int:
        """The number of domains."""

    def take(self, chosen: slice, /) -> Self:
        """Some of the domains."""


D = TypeVar("D", bound=AnyDomains)


def newest(waiting: list[D], most: int) -> Iterator[D]:
    """At most so many of the newest domains, taken off `waiting`; those with the lowest bounds are last in a part."""
    while waiting and most > 0:
        part = waiting.pop()
        kept = max(0, part.total - most)
        if kept:
            waiting.append(part.take(slice(0, kept)))
        yield part.take(slice(kept, None))
        most -= part.total - kept


def concatenated(parts: list[Domains]) -> Domains:
    """All domains of the parts, in their order."""
    return parts[0] if len(parts) == 1 else Domains(*(torch.cat(each) for each in zip(*parts, strict=True)))


def replaced(domains: Domains, rows: Tensor, others: Domains) -> Domains:
    """The domains with others at some rows."""
    return Domains(*(part.index_copy(0, rows, new.to(part)) for part, new in zip(domains, others, strict=True)))
