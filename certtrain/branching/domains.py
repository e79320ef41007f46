"""Domains: parts of a box in which the signs of some units' inputs are fixed, and what is known of each."""

from typing import NamedTuple, Self

import torch
from torch import Tensor


class Domains(NamedTuple):
    """D domains of one problem.

    signs: (D, T) of int8: 1 or −1 where a unit's input is not below or not above zero, 0 where it is not split.
    alphas, betas: (D, T), the best slopes and multipliers found.
    bounds: (D,), the largest of the functions' lower bounds: above zero it closes the domain, for one of them is
        above zero all over it.
    nodes: (D,), their numbers in the tree.
    """

    signs: Tensor
    alphas: Tensor
    betas: Tensor
    bounds: Tensor
    nodes: Tensor

    @property
    def total(self) -> int:
        """D."""
        return len(self.nodes)

    def take(self, chosen: Tensor | slice) -> Self:
        """Some of them."""
        return type(self)(*(part[chosen] for part in self))

    @property
    def bytes(self) -> int:
        """Of memory."""
        return sum(part.numel() * part.element_size() for part in self)


def concatenated(parts: list[Domains]) -> Domains:
    """All domains of the parts, in their order."""
    return parts[0] if len(parts) == 1 else Domains(*(torch.cat(each) for each in zip(*parts, strict=True)))
