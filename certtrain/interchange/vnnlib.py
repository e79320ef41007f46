"""VNN-LIB, the competition's format for properties: version 1.0 is written exactly, and read strictly.

The small part of SMT-LIB that VNN-LIB 1.0 uses is read here, and version 2.0 by the
package of its authors (`vnnlib2`), which only reads that one. A file of version 1.0 has
`declare-const` for X_0 … and Y_0 …, and `assert` for conjunctions and disjunctions
of linear inequalities: between one input and a number, or between outputs. They
describe what must *not* be possible.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from certtrain.errors import PropertyError
from certtrain.interchange.formulas import (
    Atom,
    Formula,
    InputBound,
    Linear,
    OutputRow,
    all_of,
    any_of,
    cases_of,
    inequality,
    number_of,
)
from certtrain.interchange.packed import read_whole
from certtrain.interchange.vnnlib2 import parse_version_2
from certtrain.properties.cases import Property, exact_box

MOST_PROPERTY_BYTES = 2**27
DEEPEST = 100  # nested brackets
TOKEN = re.compile(r";[^\n]*|([()])|([^\s();]+)|(\n)")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
VERSION_2 = re.compile(r"^\s*\(\s*vnnlib-version\s*<2\.", re.MULTILINE)
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

    Raises PropertyError, naming the line, for anything but linear inequalities of this kind, and MissingExtra for
    version 2.0 without the package that reads it.
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
    if VERSION_2.search(text):
        _check_depth(text)
        return parse_version_2(text)
    sizes = {"X": 0, "Y": 0}
    reader, formulas = _Reader(sizes), list[Formula]()
    for command in _lists(text, reader.closed):
        match command.items:
            case [_Word(text="declare-const"), _Word() as variable, _Word(text="Real")]:
                _declare(variable, sizes)
            case [_Word(text="assert"), _List() | InputBound() | OutputRow() as formula]:
                formulas.append(reader.formula(formula))
            case _:
                raise command.error("only (declare-const X_… Real), the same for Y_…, and (assert …) are read")
    if not sizes["X"] or not sizes["Y"]:
        raise PropertyError("it declares no inputs X_… or no outputs Y_…")
    return Property(sizes["X"], sizes["Y"], cases_of(sizes, formulas))


def _check_depth(text: str) -> None:
    """Raise PropertyError if brackets are nested too deeply; the package that reads version 2.0 would crash."""
    depth = 0
    for word in _words(text):
        depth += {"(": 1, ")": -1}.get(word.text, 0)
        if depth > DEEPEST:
            raise word.error(f"more than {DEEPEST} nested brackets")


class _Word(NamedTuple):
    text: str
    line: int

    def error(self, message: str) -> PropertyError:
        return PropertyError(f"line {self.line}: {message}")


class _List(NamedTuple):
    items: list["_Item"]
    line: int

    def error(self, message: str) -> PropertyError:
        return PropertyError(f"line {self.line}: {message}")


_Item = _Word | _List | Atom  # an inequality takes less memory than the list that it was


def _lists(text: str, closed: Callable[[_List], _Item]) -> Iterator[_List]:
    """The lists at the top level; each list in them is replaced by what `closed` makes of it."""
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
                open_lists[-1].items.append(closed(done))
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


class _Reader(NamedTuple):
    """Turns what is asserted about the declared variables into formulas."""

    sizes: dict[str, int]

    def closed(self, found: _List) -> _Item:
        """An inequality in place of its list; another list as it is."""
        match found.items:
            case [_Word(text="<=" | ">=" | "<" | ">" as sign), left, right]:
                small, large = (left, right) if sign[0] == "<" else (right, left)
                below = self._linear(small, found).plus(self._linear(large, found), -1)
                try:
                    return inequality(below, strict=len(sign) == 1)
                except ValueError as error:
                    raise found.error(str(error)) from error
        return found

    def formula(self, item: _Item) -> Formula:
        match item:
            case InputBound() | OutputRow():
                return item
            case _List(items=[_Word(text="and"), _, *_] as items):
                return all_of(self.formula(part) for part in items[1:])
            case _List(items=[_Word(text="or"), _, *_] as items):
                return any_of(self.formula(part) for part in items[1:])
        raise item.error("a formula is (and …), (or …), (<= a b), (>= a b), (< a b) or (> a b)")

    def _linear(self, item: _Item, around: _List) -> Linear:
        match item:
            case _Word():
                return self._word(item)
            case _List(items=[_Word(text="+"), _, *_] as items):
                return self._sum([self._linear(part, item) for part in items[1:]], 1)
            case _List(items=[_Word(text="-"), only]):
                return self._linear(only, item).times(Linear({}, -1.0))
            case _List(items=[_Word(text="-"), _, *_] as items):
                return self._sum([self._linear(part, item) for part in items[1:]], -1)
            case _List(items=[_Word(text="*"), left, right]):
                try:
                    return self._linear(left, item).times(self._linear(right, item))
                except ValueError as error:
                    raise item.error(str(error)) from error
        raise around.error("a term is a number, a variable, or a sum, difference or product of them")

    def _sum(self, terms: Sequence[Linear], sign: int) -> Linear:
        total = terms[0]
        for term in terms[1:]:
            total = total.plus(term, sign)
        return total

    def _word(self, word: _Word) -> Linear:
        if VARIABLE.fullmatch(word.text) and int(word.text[2:]) < self.sizes[word.text[0]]:
            return Linear({word.text: 1.0})
        if not NUMBER.fullmatch(word.text):
            raise word.error(f"{word.text[:40]!r} is neither a number nor a declared variable")
        try:
            return Linear({}, number_of(word.text))
        except ValueError as error:
            raise word.error(str(error)) from error
