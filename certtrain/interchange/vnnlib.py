"""VNN-LIB 1.0, the competition's format for properties: written exactly, and read strictly.

From version 1.0 on, the package `vnnlib` only reads version 2.0 of the format. So
the small part of SMT-LIB that VNN-LIB 1.0 uses is read here. A file has
`declare-const` for X_0 … and Y_0 …, and `assert` for conjunctions and disjunctions
of linear inequalities: between one input and a number, or between outputs. They
describe what must *not* be possible.
"""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.errors import PropertyError
from certtrain.interchange.packed import read_whole
from certtrain.properties.cases import Case, Property, exact_box

MOST_CASES = 10_000  # of the disjunctive normal form
MOST_PROPERTY_BYTES = 2**27
DEEPEST = 100  # nested brackets
TOKEN = re.compile(r";[^\n]*|([()])|([^\s();]+)|(\n)")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
VARIABLE = re.compile(r"[XY]_(0|[1-9]\d{0,7})")


# --- writing ---------------------------------------------------------------------------------------------


def robustness_text(x: Tensor, label: int, eps: float, classes: int, comment: str) -> str:
    """The property that pixels `x` (C, H, W) keep the class `label` within `eps`, as VNN-LIB 1.0.

    The ends of the box are exact decimals: a tool with exact numbers reads
    [x − ε, x + ε] ∩ [0, 1], and one that rounds to float64 reads the box that
    certtrain bounds. `comment` comes first, as comment lines.
    """
    box = exact_box(x, eps)
    lines = [f"; {line}" for line in comment.splitlines()]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(box))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    for i, (lower, upper) in enumerate(box):
        lines += [f"(assert (<= X_{i} {decimal(upper)}))", f"(assert (>= X_{i} {decimal(lower)}))"]
    others = (f"    (and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label)
    return "\n".join([*lines, "(assert (or", *others, "))"]) + "\n"


def decimal(value: Fraction) -> str:
    """A fraction, whose denominator must be a power of two, as an exact decimal number."""
    places = value.denominator.bit_length() - 1
    digits = str(abs(value.numerator) * 5**places).rjust(places + 1, "0")
    cut = len(digits) - places
    return ("-" if value < 0 else "") + digits[:cut] + "." + (digits[cut:] or "0")


# --- reading ---------------------------------------------------------------------------------------------


def read_property(path: Path) -> Property:
    """The property in that file, which may be gzipped.

    Raises PropertyError, naming the line, for anything but VNN-LIB 1.0 of this kind.
    """
    try:
        text = read_whole(path, MOST_PROPERTY_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise PropertyError(f"the property {path} cannot be read: {error}") from error
    try:
        return parse_property(text)
    except PropertyError as error:
        raise PropertyError(f"{path}: {error}") from error


def parse_property(text: str) -> Property:
    """The property that `text` describes. Raises PropertyError."""
    sizes = {"X": 0, "Y": 0}
    formulas: list[_List] = []
    for command in _lists(text):
        match command.items:
            case [_Word(text="declare-const"), _Word() as variable, _Word(text="Real")]:
                _declare(variable, sizes)
            case [_Word(text="assert"), _List() as formula]:
                formulas.append(formula)
            case [_Word(text="vnnlib-version"), *_]:
                raise command.error("this is VNN-LIB 2.0; only version 1.0 is read, with X_0 … and Y_0 …")
            case _:
                raise command.error("only (declare-const X_… Real), the same for Y_…, and (assert …) are read")
    if not sizes["X"] or not sizes["Y"]:
        raise PropertyError("it declares no inputs X_… or no outputs Y_…")
    return Property(sizes["X"], sizes["Y"], tuple(_Reader(sizes).cases(formulas)))


class _Word(NamedTuple):
    text: str
    line: int

    def error(self, message: str) -> PropertyError:
        return PropertyError(f"line {self.line}: {message}")


class _List(NamedTuple):
    items: list["_Word | _List"]
    line: int

    def error(self, message: str) -> PropertyError:
        return PropertyError(f"line {self.line}: {message}")


def _lists(text: str) -> Iterator[_List]:
    """The lists at the top level."""
    open_lists: list[_List] = []
    for word in _words(text):
        if word.text == "(":
            if len(open_lists) == DEEPEST:
                raise word.error(f"more than {DEEPEST} nested brackets")
            open_lists.append(_List([], word.line))
        elif not open_lists:
            raise word.error(f"{word.text!r} stands outside brackets")
        elif word.text != ")":
            open_lists[-1].items.append(word)
        else:
            done = open_lists.pop()
            if open_lists:
                open_lists[-1].items.append(done)
            else:
                yield done
    if open_lists:
        raise open_lists[-1].error("this bracket is never closed")


def _words(text: str) -> Iterator[_Word]:
    line = 1
    for found in TOKEN.finditer(text):
        if found[3]:
            line += 1
        elif word := found[1] or found[2]:
            yield _Word(word, line)


def _declare(variable: _Word, sizes: dict[str, int]) -> None:
    kind = variable.text[:1]
    if not VARIABLE.fullmatch(variable.text) or variable.text != f"{kind}_{sizes[kind]}":
        wanted = " or ".join(f"{kind}_{size}" for kind, size in sizes.items())
        raise variable.error(f"{variable.text!r} is declared where {wanted} is next")
    sizes[kind] += 1


class _Linear(NamedTuple):
    """A linear expression."""

    factors: dict[str, float]
    constant: float = 0.0

    def plus(self, other: "_Linear", sign: float = 1.0) -> "_Linear":
        factors = self.factors | {
            name: self.factors.get(name, 0.0) + sign * factor for name, factor in other.factors.items()
        }
        return _Linear(factors, self.constant + sign * other.constant)

    def times(self, factor: float) -> "_Linear":
        return _Linear({name: factor * own for name, own in self.factors.items()}, factor * self.constant)


class _Bound(NamedTuple):
    """A lower or upper bound of one input."""

    number: int
    upper: bool
    value: float


Clause = list[_Bound | _Linear]  # a conjunction: of bounds, and of linear functions of the outputs that are ≤ 0


class _Reader:
    """Turns formulas over the declared variables into cases."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes

    def cases(self, formulas: Sequence[_List]) -> Iterator[Case]:
        common: Clause = []
        several: list[list[Clause]] = []
        for formula in formulas:
            clauses = self._clauses(formula)
            if len(clauses) == 1:
                common += clauses[0]
            else:
                several.append(clauses)
        rows = [part for part in common if isinstance(part, _Linear)]
        box = _Box([-torch.inf] * self.sizes["X"], [torch.inf] * self.sizes["X"]).cut(common)
        shared = box.tensors()  # most properties have one box for all their cases
        for clause in _product(several, formulas[-1] if formulas else None):
            own = any(isinstance(part, _Bound) for part in clause)
            ends = box.cut(clause).tensors() if own else shared
            yield self._case(*ends, [*rows, *(part for part in clause if isinstance(part, _Linear))])

    def _clauses(self, formula: "_Word | _List") -> list[Clause]:
        """The disjunctive normal form of a formula."""
        match formula:
            case _List(items=[_Word(text="and"), _, *_] as items):
                return _product([self._clauses(item) for item in items[1:]], formula)
            case _List(items=[_Word(text="or"), _, *_] as items):
                return _limited(list(chain.from_iterable(self._clauses(item) for item in items[1:])), formula)
            case _List(items=[_Word(text="<=" | ">=" as sign), left, right]):
                small, large = (left, right) if sign == "<=" else (right, left)
                return [[self._atom(self._linear(small).plus(self._linear(large), -1.0), formula)]]
        raise formula.error("a formula is (and …), (or …), (<= a b) or (>= a b)")

    def _atom(self, below: _Linear, formula: _List) -> _Bound | _Linear:
        """`below` ≤ 0 as a bound of an input, or as a linear function of the outputs."""
        factors = {name: factor for name, factor in below.factors.items() if factor}
        kinds = {name[0] for name in factors}
        if kinds == {"Y"}:
            return _Linear(factors, below.constant)
        if kinds != {"X"} or len(factors) != 1:
            raise formula.error("an inequality must be between one input and a number, or between outputs and numbers")
        ((name, factor),) = factors.items()
        return _Bound(int(name[2:]), factor > 0, -below.constant / factor)

    def _linear(self, term: "_Word | _List") -> _Linear:
        match term:
            case _Word():
                return self._word(term)
            case _List(items=[_Word(text="+"), _, *_] as items):
                return self._sum([self._linear(item) for item in items[1:]], 1.0)
            case _List(items=[_Word(text="-"), only]):
                return self._linear(only).times(-1.0)
            case _List(items=[_Word(text="-"), _, *_] as items):
                return self._sum([self._linear(item) for item in items[1:]], -1.0)
            case _List(items=[_Word(text="*"), left, right]):
                one, other = self._linear(left), self._linear(right)
                if one.factors and other.factors:
                    raise term.error("a product of two variables is not linear")
                return one.times(other.constant) if one.factors else other.times(one.constant)
        raise term.error("a term is a number, a variable, or a sum, difference or product of them")

    def _sum(self, terms: Sequence[_Linear], sign: float) -> _Linear:
        total = terms[0]
        for term in terms[1:]:
            total = total.plus(term, sign)
        return total

    def _word(self, word: _Word) -> _Linear:
        if VARIABLE.fullmatch(word.text) and int(word.text[2:]) < self.sizes[word.text[0]]:
            return _Linear({word.text: 1.0})
        if not NUMBER.fullmatch(word.text):
            raise word.error(f"{word.text[:40]!r} is neither a number nor a declared variable")
        if abs(value := float(word.text)) == torch.inf:
            raise word.error(f"{word.text[:40]!r} is too large for a number")
        return _Linear({}, float(word.text) if value else 0.0)

    def _case(self, lower: Tensor, upper: Tensor, rows: Sequence[_Linear]) -> Case:
        _check(lower, upper, rows)
        functions = torch.zeros(len(rows), self.sizes["Y"], dtype=torch.float64)
        for row, linear in enumerate(rows):
            for name, factor in linear.factors.items():
                functions[row, int(name[2:])] = factor
        return Case(lower, upper, functions, torch.tensor([row.constant for row in rows], dtype=torch.float64))


class _Box(NamedTuple):
    """The lower and upper bound of each input."""

    lower: list[float]
    upper: list[float]

    def cut(self, clause: Clause) -> "_Box":
        box = _Box(self.lower.copy(), self.upper.copy())
        for part in clause:
            if isinstance(part, _Bound):
                end, better = (box.upper, min) if part.upper else (box.lower, max)
                end[part.number] = better(end[part.number], part.value)
        return box

    def tensors(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.lower, dtype=torch.float64), torch.tensor(self.upper, dtype=torch.float64)


def _check(lower: Tensor, upper: Tensor, rows: Sequence[_Linear]) -> None:
    if not rows:
        raise PropertyError("it has no condition on the outputs in one of its cases")
    if free := (~(lower.isfinite() & upper.isfinite())).nonzero().flatten().tolist():
        raise PropertyError(f"X_{free[0]} has no finite lower and upper bound in one of its cases")
    if empty := (lower > upper).nonzero().flatten().tolist():
        raise PropertyError(f"X_{empty[0]} has a lower bound above its upper one in one of its cases")


def _product(parts: Sequence[list[Clause]], formula: _List | None) -> list[Clause]:
    """Every choice of one clause from each part."""
    product: list[Clause] = [[]]
    for clauses in parts:
        pairs = ([*left, *right] for left in product for right in clauses)
        product = _limited(list(islice(pairs, MOST_CASES + 1)), formula)
    return product


def _limited(clauses: list[Clause], formula: _List | None) -> list[Clause]:
    if len(clauses) > MOST_CASES and formula is not None:
        raise formula.error(f"it has more than {MOST_CASES:,} cases")
    return clauses
