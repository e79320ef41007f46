"""Names of the public Python API as an earlier version had them: taken for one version more, with a warning."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str) -> None:
    """A DeprecationWarning at the place from which the caller of this was called."""
    warnings.warn(f"{old} is now {new}; the next version no longer takes the old name", DeprecationWarning, 3)


def renamed_argument(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take its argument `new` by the name `old` as well."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*values: Any, **named: Any) -> R:
            if old in named:
                warn_renamed(f"the argument {old} of {function.__name__}", new)
                return function(*values, **{new: named.pop(old)}, **named)  # both names at once are a TypeError
            return function(*values, **named)

        return call

    return decorate
