"""VNN-LIB 2.0, read by the package `vnnlib` of its authors, which also checks names, indices and types.

What can be decided is accepted: one network with one input and one output tensor of
float32, float64 or real numbers, and conjunctions and disjunctions of linear
inequalities, equations and their negations. The numbers of a tensor are counted in the
order of memory, as X_0 … and Y_0 … of version 1.0.
"""

import importlib
import json
from collections.abc import Sequence
from math import prod
from types import ModuleType
from typing import Any

from certtrain.errors import MissingExtra, PropertyError
from certtrain.interchange.formulas import Formula, Linear, all_of, any_of, cases_of, inequality, number_of
from certtrain.properties.cases import Property, Variable

ELEMENT_TYPES = {"F32": "float32", "F64": "float64", "Real": "real"}
HINT = 'VNN-LIB 2.0 is read by the package vnnlib: pip install "certtrain[vnnlib]"'


def parse_version_2(text: str) -> Property:
    """The property that `text` describes. Raises PropertyError, and MissingExtra without the package."""
    package = _package()
    try:
        query = package.parse_query_string(text)
    except (package.VNNLibException, ArithmeticError, LookupError, ValueError, RuntimeError) as error:
        raise PropertyError(f"VNN-LIB 2.0: {_explained(str(error))}") from error
    given, made = _variables(query)
    reader = _Reader(given, made)
    formulas = [reader.formula(assertion.expr) for assertion in query.assertions]
    sizes = {"X": prod(given.shape), "Y": prod(made.shape)}
    return Property(sizes["X"], sizes["Y"], cases_of(sizes, formulas), (given, made))


def _package() -> ModuleType:
    try:
        package = importlib.import_module("vnnlib")
    except ImportError as error:
        raise MissingExtra(f"{error}; {HINT}") from error
    if "parse_query_string" not in vars(package):  # versions before 1.0 read version 1.0 of the format
        raise MissingExtra(f"the installed package vnnlib is too old; {HINT}")
    return package


def _explained(message: str) -> str:
    """What the package found, in a line; it lists errors of types and names as JSON."""
    try:
        errors = json.loads(message)["errors"]
    except (ValueError, KeyError, TypeError):
        return message
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"line {first['line']}: {first['message']}: {first['hint']}{more}"


def _variables(query: Any) -> tuple[Variable, Variable]:
    """The input and the output of the one network."""
    if len(query.networks) != 1:
        raise PropertyError(f"it is about {len(query.networks)} networks; properties of one network are decided")
    (network,) = query.networks
    if network.hidden:
        raise PropertyError(
            f"it declares the hidden variable {network.hidden[0].name!r}; only inputs and outputs are read"
        )
    for what, found in (("inputs", network.inputs), ("outputs", network.outputs)):
        if len(found) != 1:
            raise PropertyError(f"its network has {len(found)} {what}; networks with one input and one output are read")
    return _variable(network.inputs[0]), _variable(network.outputs[0])


def _variable(declared: Any) -> Variable:
    written = str(declared).split()[2]  # the package knows "real", but not "Real", which files have too
    kind = ELEMENT_TYPES.get(declared.dtype.name, written.lower())
    if kind not in ELEMENT_TYPES.values():
        raise PropertyError(f"{declared.name!r} is of type {written}; {', '.join(ELEMENT_TYPES.values())} are read")
    return Variable(declared.name, kind, tuple(declared.shape))


class _Reader:
    """Turns the package's expressions into formulas."""

    def __init__(self, given: Variable, made: Variable) -> None:
        self.kinds = {given.name: ("X", given.shape), made.name: ("Y", made.shape)}

    def formula(self, expression: Any) -> Formula:
        kind = type(expression).__name__
        if kind in ("And", "Or"):
            parts = (self.formula(part) for part in expression.args)
            return all_of(parts) if kind == "And" else any_of(parts)
        if kind not in SIGNS:
            raise PropertyError(f"{expression} is not a conjunction, a disjunction or a comparison")
        left, right = self._linear(expression.lhs), self._linear(expression.rhs)
        try:
            found: Formula = SIGNS[kind](left.plus(right, -1), right.plus(left, -1))
            return found
        except ValueError as error:
            raise PropertyError(f"{expression}: {error}") from error

    def _linear(self, term: Any) -> Linear:
        kind = type(term).__name__
        if kind == "Var":
            return Linear({self._name(term): 1.0})
        if kind in ("Float", "Int"):
            try:
                return Linear({}, number_of(term.lexeme))
            except ValueError as error:
                raise PropertyError(str(error)) from error
        if kind == "Negate":
            return self._linear(term.expr).times(Linear({}, -1.0))
        if kind in ("Plus", "Multiply"):
            return self._combined([self._linear(part) for part in term.args], kind, term)
        if kind == "Minus":
            head, rest = self._linear(term.head), [self._linear(part) for part in term.rest]
            return self._combined([head, *(part.times(Linear({}, -1.0)) for part in rest)], "Plus", term)
        raise PropertyError(f"{term} is not a number, a variable, or a sum, difference or product of them")

    def _combined(self, parts: Sequence[Linear], kind: str, term: Any) -> Linear:
        total = parts[0]
        for part in parts[1:]:
            try:
                total = total.plus(part) if kind == "Plus" else total.times(part)
            except ValueError as error:
                raise PropertyError(f"{term}: {error}") from error
        return total

    def _name(self, variable: Any) -> str:
        """The variable as in version 1.0, with its number in the order of memory."""
        letter, shape = self.kinds[variable.name]
        number = 0
        for index, size in zip(variable.indices, shape, strict=True):
            number = number * size + index
        return f"{letter}_{number}"


# Comparison → formula, from left − right and right − left.
SIGNS: dict[str, Any] = {
    "LessEqual": lambda below, above: inequality(below),
    "GreaterEqual": lambda below, above: inequality(above),
    "LessThan": lambda below, above: inequality(below, strict=True),
    "GreaterThan": lambda below, above: inequality(above, strict=True),
    "Equal": lambda below, above: all_of([inequality(below), inequality(above)]),
    "NotEqual": lambda below, above: any_of([inequality(below, strict=True), inequality(above, strict=True)]),
}
