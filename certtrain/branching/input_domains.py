"""Problems that are proved by splits of inputs, and the boxes of inputs that are left to prove."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.rounding import Rounding

Ends = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class InputProblem:
    """To prove: over one box, in each case, the largest of its linear functions of the logits is above zero.

    graph: the network in float64. lower, upper: (1, …), the ends of the box. functions: (F, K), offsets: (F,), those of
    all cases. cases: (C, S), which functions each case has; a case with fewer than S repeats one.
    """

    graph: LayerGraph
    lower: Tensor
    upper: Tensor
    functions: Tensor
    offsets: Tensor
    cases: Tensor
    rounding: Rounding

    @classmethod
    def of(
        cls,
        graph: LayerGraph,
        lower: Tensor,
        upper: Tensor,
        cases: Sequence[tuple[Tensor, Tensor]],
        rounding: Rounding,
    ) -> "InputProblem":
        """The problem of several cases, each given by its functions (S, K) and offsets (S,)."""
        counts = [len(offsets) for _, offsets in cases]
        starts = torch.tensor([0, *counts[:-1]]).cumsum(0)
        places = torch.arange(max(counts)).expand(len(counts), -1)
        index = starts.unsqueeze(1) + torch.minimum(places, torch.tensor(counts).unsqueeze(1) - 1)
        functions, offsets = (torch.cat(parts) for parts in zip(*cases, strict=True))
        return cls(graph, lower, upper, functions, offsets, index.to(functions.device), rounding)

    @property
    def free_inputs(self) -> int:
        """How many inputs can vary within the box."""
        return int((self.lower < self.upper).sum())


class InputDomains(NamedTuple):
    """D boxes of inputs.

    lower, upper: (D, N), their ends. boxes: the ends (D, …) of the boxes at the nonlinear layers, in their order, from
    the domains that these are parts of. cases: (D, C), which cases are not excluded. bounds: (D,), by which domains are
    sorted. nodes: (D,), the domains' numbers in the tree.
    """

    lower: Tensor
    upper: Tensor
    boxes: tuple[Ends, ...]
    cases: Tensor
    bounds: Tensor
    nodes: Tensor

    @property
    def total(self) -> int:
        """The number of domains, D."""
        return len(self.nodes)

    def take(self, chosen: Tensor | slice) -> Self:
        """Some of the domains."""
        boxes = tuple((lower[chosen], upper[chosen]) for lower, upper in self.boxes)
        return type(self)(self.lower[chosen], self.upper[chosen], boxes, *(part[chosen] for part in self[3:]))

    @property
    def bytes(self) -> int:
        """The memory that the domains take."""
        parts = [*self[:2], *(end for ends in self.boxes for end in ends), *self[3:]]
        return sum(part.numel() * part.element_size() for part in parts)


def joined(parts: Sequence[InputDomains]) -> InputDomains:
    """All domains of the parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    boxes = tuple(
        (torch.cat([lower for lower, _ in each]), torch.cat([upper for _, upper in each]))
        for each in zip(*(part.boxes for part in parts), strict=True)
    )
    return InputDomains(
        torch.cat([part.lower for part in parts]),
        torch.cat([part.upper for part in parts]),
        boxes,
        *(torch.cat(each) for each in zip(*(part[3:] for part in parts), strict=True)),
    )
