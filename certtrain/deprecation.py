"""Arguments of the public Python API by other names: old ones, accepted for one more version, and the command's."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str) -> None:
    """Give a DeprecationWarning at the line that called the caller of this function."""
    warnings.warn(f"{old} is now {new}; the next version will not accept the old name", DeprecationWarning, 3)


def renamed_argument(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function accept its argument `new` under the name `old` too."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*values: Any, **named: Any) -> R:
            if old in named:
                warn_renamed(f"the argument {old} of {function.__name__}", new)
                return function(*values, **{new: named.pop(old)}, **named)  # both names at once are a TypeError
            return function(*values, **named)

        return call

    return decorate


# Where the time limits of the command are in Python.
LIMITS_BELONG = {
    "timeout": "limits=certtrain.Limits(timeout=…)",
    "time_budget": "limits=certtrain.Limits(budget=…)",
}


def arguments_elsewhere(**places: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function say where settings belong that the command has as options; it then raises TypeError."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*values: Any, **named: Any) -> R:
            for name in places.keys() & named.keys():
                raise TypeError(f"{call.__name__}() has no argument {name!r}: give it as {places[name]}")
            return function(*values, **named)

        return call

    return decorate
