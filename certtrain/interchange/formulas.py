"""The formulas of properties: conjunctions and disjunctions of linear inequalities, and the cases that they make.

A formula describes what must *not* be possible. Each clause of its disjunctive normal
form is a case. The clauses are made one after the other while they are read, so that
a property takes no more memory than its formulas, however many cases it has.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import inf, isfinite, prod
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.errors import PropertyError
from certtrain.properties.cases import Case, Strict

MOST_CASES = 10_000_000
MOST_KEPT = 10_000  # cases that are made at once and kept; more are made each time that they are read


Coefficient = float | Fraction  # of a sum or product, exact: large numbers may cancel


class Linear(NamedTuple):
    """A linear expression of the inputs X_0 … and the outputs Y_0 …."""

    factors: dict[str, Coefficient]
    constant: Coefficient = 0.0

    def plus(self, other: "Linear", sign: int = 1) -> "Linear":
        """self + sign · other."""
        factors = self.factors | {
            name: _sum(self.factors.get(name, 0.0), sign * factor) for name, factor in other.factors.items()
        }
        return Linear(factors, _sum(self.constant, sign * other.constant))

    def times(self, other: "Linear") -> "Linear":
        """The product; raises ValueError if both have variables."""
        if self.factors and other.factors:
            raise ValueError("a product of two variables is not linear")
        several, factor = (self, other.constant) if self.factors else (other, self.constant)
        factors = {name: _product(own, factor) for name, own in several.factors.items()}
        return Linear(factors, _product(several.constant, factor))


def _sum(left: Coefficient, right: Coefficient) -> Coefficient:
    return Fraction(left) + Fraction(right) if left and right else left or right or 0.0


def _product(left: Coefficient, right: Coefficient) -> Coefficient:
    if left == 1 or right == 1:  # most, and faster
        return right if left == 1 else left
    return Fraction(left) * Fraction(right) if left and right else 0.0


def number_of(text: str) -> float:
    """The nearest float64 to a decimal number.

    Raises ValueError where it is infinite, or zero or subnormal and the number is not zero: such a float64 may differ
    from the number by any factor, and a product with large numbers would not show that.
    """
    found = float(text)
    if not isfinite(found):
        raise ValueError(f"{text[:40]!r} is too large for a number")
    if abs(found) < sys.float_info.min and any(digit in "123456789" for digit in text.lower().partition("e")[0]):
        raise ValueError(f"{text[:40]!r} is too small for a number other than zero")
    return found or 0.0  # not -0.0


def _rounded(number: Coefficient) -> float:
    """The nearest float64. Raises ValueError where that is infinite, or subnormal or zero for another number."""
    try:
        found = float(number)
    except OverflowError:
        found = inf
    if not isfinite(found) or (number and abs(found) < sys.float_info.min):
        raise ValueError(f"its numbers are too {'small' if isfinite(found) else 'large'}")
    return found


class InputBound(NamedTuple):
    """A lower or upper bound of one input; a strict one excludes the value itself."""

    number: int
    upper: bool
    value: float
    strict: bool


class OutputRow(NamedTuple):
    """A linear function of the outputs that is at most zero, or below zero if it is strict."""

    factors: dict[str, float]
    constant: float
    strict: bool


class AllOf(NamedTuple):
    """A conjunction, in which others are opened."""

    parts: tuple["InputBound | OutputRow | AnyOf", ...]


class AnyOf(NamedTuple):
    """A disjunction of at least two formulas, in which others are opened."""

    parts: tuple["InputBound | OutputRow | AllOf", ...]


Atom = InputBound | OutputRow
Formula = InputBound | OutputRow | AllOf | AnyOf
Clause = list[Atom]  # a conjunction


def inequality(below: Linear, *, strict: bool = False) -> Atom:
    """`below` ≤ 0, or < 0, as a bound of an input or as a function of the outputs. Raises ValueError."""
    factors = {name: _rounded(factor) for name, factor in below.factors.items() if factor}
    constant = _rounded(below.constant)
    kinds = {name[0] for name in factors}
    if kinds == {"Y"}:
        return OutputRow(factors, constant, strict)
    if kinds != {"X"} or len(factors) != 1:
        raise ValueError("an inequality must be between one input and a number, or between outputs and numbers")
    ((name, factor),) = factors.items()
    return InputBound(int(name[2:]), factor > 0, -constant / factor, strict)


def all_of(parts: Iterable[Formula]) -> Formula:
    """The conjunction; a conjunction among the parts is opened."""
    flat = tuple(chain.from_iterable(part.parts if isinstance(part, AllOf) else (part,) for part in parts))
    return flat[0] if len(flat) == 1 else AllOf(flat)


def any_of(parts: Iterable[Formula]) -> Formula:
    """The disjunction of at least one formula; a disjunction among the parts is opened."""
    flat = tuple(chain.from_iterable(part.parts if isinstance(part, AnyOf) else (part,) for part in parts))
    return flat[0] if len(flat) == 1 else AnyOf(flat)


def clauses(formula: Formula) -> Iterator[Clause]:
    """The disjunctive normal form, one clause after the other."""
    match formula:
        case AnyOf(parts):
            for part in parts:
                yield from clauses(part)
        case AllOf(parts):
            several = [part for part in parts if isinstance(part, AnyOf)]
            for chosen in _choices(several):
                left = iter(chosen)
                yield list(
                    chain.from_iterable(
                        [part] if isinstance(part, InputBound | OutputRow) else next(left) for part in parts
                    )
                )
        case _:
            yield [formula]


def clause_count(formula: Formula) -> int:
    """The number of clauses."""
    match formula:
        case AnyOf(parts):
            return sum(map(clause_count, parts))
        case AllOf(parts):
            return prod(map(clause_count, parts))
    return 1


def _choices(several: Sequence[Formula]) -> Iterator[list[Clause]]:
    """Every choice of one clause from each formula."""
    if not several:
        yield []
        return
    for clause in clauses(several[0]):
        for others in _choices(several[1:]):
            yield [clause, *others]


def cases_of(sizes: Mapping[str, int], formulas: Sequence[Formula]) -> Iterable[Case]:
    """The cases of a property that asserts all the formulas, for so many inputs "X" and outputs "Y".

    A tuple, or a `LazyCases` of more than MOST_KEPT. Raises PropertyError.
    """
    found = LazyCases(sizes, formulas)
    return tuple(found) if found.most <= MOST_KEPT else found


class LazyCases:
    """The cases of a property, made whenever they are read. A case whose box is empty holds, and is left out.

    most: how many there are, those with an empty box included.
    """

    def __init__(self, sizes: Mapping[str, int], formulas: Sequence[Formula]) -> None:
        """Raises PropertyError if there are too many, or if the bounds that all of them share exclude every input."""
        self.sizes = sizes
        common: Clause = [atom for formula in formulas if clause_count(formula) == 1 for atom in next(clauses(formula))]
        self.several = [formula for formula in formulas if clause_count(formula) > 1]
        self.rows = [part for part in common if isinstance(part, OutputRow)]
        self.box = _Box.free(sizes["X"]).cut(common)
        self.most = prod(map(clause_count, self.several))
        if self.most > MOST_CASES:
            raise PropertyError(f"it has more than {MOST_CASES:,} cases")
        if (number := self.box.empty()) is not None:
            raise PropertyError(f"X_{number} has a lower bound above its upper one")

    def __iter__(self) -> Iterator[Case]:
        """Raises PropertyError for a case without a condition on the outputs, or with an input without bounds."""
        shared = None if self.box.unbounded() is not None else self.box.ends()  # most have one box for all cases
        for chosen in _choices(self.several):
            clause = list(chain.from_iterable(chosen))
            own = [part for part in clause if isinstance(part, InputBound)]
            box = self.box.cut(own) if own else self.box
            if own and box.empty() is not None:
                continue
            rows = [*self.rows, *(part for part in clause if isinstance(part, OutputRow))]
            yield self._case(shared if shared is not None and not own else box.ends(), rows, box)

    def _case(self, ends: tuple[Tensor, Tensor], rows: Sequence[OutputRow], box: "_Box") -> Case:
        if not rows:
            raise PropertyError("it has no condition on the outputs in one of its cases")
        functions = torch.zeros(len(rows), self.sizes["Y"], dtype=torch.float64)
        for row, linear in enumerate(rows):
            for name, factor in linear.factors.items():
                functions[row, int(name[2:])] = factor
        offsets = torch.tensor([row.constant for row in rows], dtype=torch.float64)
        return Case(*ends, functions, offsets, box.strict([row.strict for row in rows]))


@dataclass(frozen=True)
class _Box:
    """The lower and upper bound of each input, and the inputs whose bounds are strict."""

    lower: list[float]
    upper: list[float]
    open_lower: frozenset[int] = frozenset()
    open_upper: frozenset[int] = frozenset()

    @classmethod
    def free(cls, inputs: int) -> "_Box":
        return cls([-torch.inf] * inputs, [torch.inf] * inputs)

    def cut(self, clause: Iterable[Atom]) -> "_Box":
        """The part of the box where the bounds of the clause hold."""
        ends = {False: self.lower.copy(), True: self.upper.copy()}
        strict = {False: set(self.open_lower), True: set(self.open_upper)}
        for part in clause:
            if isinstance(part, InputBound):
                before = ends[part.upper][part.number]
                if part.value < before if part.upper else part.value > before:
                    ends[part.upper][part.number] = part.value
                    strict[part.upper].discard(part.number)
                if part.strict and part.value == ends[part.upper][part.number]:
                    strict[part.upper].add(part.number)
        return _Box(ends[False], ends[True], frozenset(strict[False]), frozenset(strict[True]))

    def empty(self) -> int | None:
        """The first input that no number satisfies; None if there is none."""
        strict = self.open_lower | self.open_upper
        pairs = enumerate(zip(self.lower, self.upper, strict=True))
        return next((i for i, (low, high) in pairs if low > high or (low == high and i in strict)), None)

    def unbounded(self) -> int | None:
        """The first input without a lower or an upper bound; None if there is none."""
        pairs = enumerate(zip(self.lower, self.upper, strict=True))
        return next((i for i, (low, high) in pairs if not -torch.inf < low <= high < torch.inf), None)

    def ends(self) -> tuple[Tensor, Tensor]:
        if (number := self.unbounded()) is not None:
            raise PropertyError(f"X_{number} has no finite lower and upper bound in one of its cases")
        return torch.tensor(self.lower, dtype=torch.float64), torch.tensor(self.upper, dtype=torch.float64)

    def strict(self, rows: Sequence[bool]) -> Strict | None:
        """Which inequalities of a case are strict; None if none is."""
        if not (any(rows) or self.open_lower or self.open_upper):
            return None
        lower, upper = (torch.zeros(len(self.lower), dtype=torch.bool) for _ in range(2))
        lower[list(self.open_lower)], upper[list(self.open_upper)] = True, True
        return Strict(torch.tensor(rows), lower, upper)
