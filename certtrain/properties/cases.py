"""Properties: whether any input in a box has outputs that it must not have."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from certtrain.bounds.rounding import arithmetic_named
from certtrain.errors import PropertyError

REAL = arithmetic_named("real")  # the arithmetic of properties
EXACT_PIXEL_RANGE = (Fraction(0), Fraction(1))


class Strict(NamedTuple):
    """Which inequalities of a case are strict: of its functions (S,), and at both ends of its box (N,)."""

    functions: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True, eq=False)
class Case:
    """One way to violate a property: an input in the box where no entry of functions · y + offsets is above zero.

    lower, upper: (N,) float64, the ends of the box, in the order of memory,
        channels first. functions: (S, K), offsets: (S,), float64, of the outputs
        y (K,). strict: the inequalities that a counterexample must satisfy strictly,
        or None; for a proof they count as if they were not strict.
    """

    lower: Tensor
    upper: Tensor
    functions: Tensor
    offsets: Tensor
    strict: Strict | None = None

    def values(self, outputs: Tensor) -> Tensor:
        """functions · y + offsets, (B, S) in float64, of outputs (B, K)."""
        return outputs.double() @ self.functions.T + self.offsets

    def violated_by(self, outputs: Tensor) -> Tensor:
        """Which of the outputs (B, K) violate the property in this way; NaN never does."""
        values = self.values(outputs)
        reached = values <= 0 if self.strict is None else (values < 0) | ((values == 0) & ~self.strict.functions)
        return reached.all(dim=1)

    def nearest(self, point: Tensor) -> Tensor | None:
        """The input (N,) of the box nearest to `point` (N,), float64; None if strict bounds leave no float64."""
        lower, upper = self.lower, self.upper
        if self.strict is not None:
            infinity = torch.full_like(lower, torch.inf)
            lower = torch.where(self.strict.lower, lower.nextafter(infinity), lower)
            upper = torch.where(self.strict.upper, upper.nextafter(-infinity), upper)
            if bool((lower > upper).any()):
                return None
        return torch.clamp(point.double(), lower, upper)


class StackedCases(NamedTuple):
    """N cases, padded: functions (N, S, K), offsets (N, S), and which of the S functions each case has (N, S)."""

    functions: Tensor
    offsets: Tensor
    present: Tensor

    def largest(self, outputs: Tensor, numbers: Tensor) -> Tensor:
        """The largest function (B,) of the cases with these numbers (B,), each at its own outputs (B, K)."""
        values = torch.einsum("bsk,bk->bs", self.functions[numbers], outputs.double()) + self.offsets[numbers]
        return values.masked_fill(~self.present[numbers], -torch.inf).amax(1)


def stacked(cases: Sequence[Case]) -> StackedCases:
    """The cases stacked, in their order."""
    functions, offsets = [case.functions for case in cases], [case.offsets for case in cases]
    present = [torch.ones_like(each, dtype=torch.bool) for each in offsets]
    return StackedCases(*(pad_sequence(part, batch_first=True) for part in (functions, offsets, present)))


class Variable(NamedTuple):
    """A tensor as VNN-LIB 2.0 declares it: its name, its type as a word, and its shape."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Property:
    """A property of a network: violated ("sat") if a case has a counterexample, and true ("unsat") if none has.

    cases: a tuple, or, where there are very many, something that makes them whenever it is read. variables: the names
    of input and output in a file of VNN-LIB 2.0.
    """

    inputs: int
    outputs: int
    cases: Iterable[Case]
    variables: tuple[Variable, Variable] | None = None

    def __post_init__(self) -> None:
        """Raises PropertyError for an iterator: where it was read before, no case would be left to decide."""
        if isinstance(self.cases, Iterator):
            raise PropertyError("its cases are an iterator, which can be read only once; give a tuple")


def exact_box(x: Tensor, eps: float) -> list[tuple[Fraction, Fraction]]:
    """Both ends of [x − ε, x + ε] ∩ [0, 1] for each entry of `x` (…), without rounding."""
    radius, (least, most) = Fraction(eps), EXACT_PIXEL_RANGE
    values = map(Fraction, x.flatten().tolist())
    return [(max(value - radius, least), min(value + radius, most)) for value in values]


def robustness(x: Tensor, label: int, eps: float, classes: int) -> Property:
    """The property that no input within `eps` of the pixels `x` (C, H, W) has another class than `label`, or a tie.

    The box is the one that `certify` bounds: x − ε and x + ε in float64, cut to [0, 1].
    """
    lower, upper = ((x.double().flatten() + change).clamp(0.0, 1.0) for change in (-eps, eps))
    each = torch.eye(classes, dtype=torch.float64)
    others = [j for j in range(classes) if j != label]
    zero = torch.zeros(1, dtype=torch.float64)
    cases = tuple(Case(lower, upper, (each[label] - each[j]).unsqueeze(0), zero) for j in others)
    return Property(x.numel(), classes, cases)
