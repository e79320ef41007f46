"""The space of a search: which fields of a preset vary, and between which values; without torch and Optuna."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from certtrain.errors import PresetError, reason
from certtrain.spec.preset import load_preset

RANGE_KEYS = {"low", "high", "log", "step"}
HELP = "write a list of values, like [32, 64], or a range, like { low = 1e-4, high = 1e-2, log = true }"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if both are. `log`: drawn on a logarithmic scale."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The smallest and the largest value."""
        return self.low, self.high

    @property
    def kept(self) -> Sequence[Any] | None:
        """All values, as a database keeps them; None if there are too many to tell one trial from another."""
        if self.whole:
            return range(int(self.low), int(self.high) + 1, int(self.step or 1))
        if self.step is None:
            return None
        return [self.low + number * self.step for number in range(int((self.high - self.low) / self.step + 1e-9) + 1)]

    def holds(self, value: Any) -> bool:
        """Whether the value is in the range."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choices:
    """Any of some values."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """All of them."""
        return self.values

    @property
    def names(self) -> dict[str, Any]:
        """Each value by its text as JSON, as a database keeps it."""
        return {json.dumps(value): value for value in self.values}

    @property
    def kept(self) -> Sequence[Any]:
        """All values, as a database keeps them."""
        return list(self.names)

    def holds(self, value: Any) -> bool:
        """Whether the value is one of them."""
        return json.dumps(value) in self.names


Space = dict[str, Range | Choices]


def read_space(path: Path) -> Space:
    """The space in a TOML file: fields by dotted path or in sections, each with a list of values or a range.

    Raises PresetError, which names the field that is wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise PresetError(f"the space {path} cannot be read: {reason(error)}") from error
    space = {field: _dimension(path, field, value) for field, value in _fields(values)}
    if not space:
        raise PresetError(f"the space {path} names no field; for train.learning_rate and others {HELP}")
    return space


def check_space(space: Space, preset: str, overrides: Mapping[str, Any]) -> None:
    """Raise PresetError unless each value at the end of a range, and each choice, makes a valid preset by itself."""
    for field, dimension in space.items():
        for value in dimension.ends:
            load_preset(preset, {**overrides, field: value})


def distinct_settings(space: Space) -> int | None:
    """The number of different settings in the space; None if a field has a range of real numbers without a step."""
    counts = [None if dimension.kept is None else len(dimension.kept) for dimension in space.values()]
    return None if None in counts else prod(count for count in counts if count is not None)


def limited_trials(space: Space, trials: int) -> int:
    """The number of trials: no more than there are different settings."""
    distinct = distinct_settings(space)
    return trials if distinct is None else min(trials, distinct)


def all_settings(space: Space) -> Iterator[dict[str, Any]]:
    """All settings of a space in which they can be counted, with values as a database keeps them."""
    for values in product(*(dimension.kept or () for dimension in space.values())):
        yield dict(zip(space, values, strict=True))


def described_space(space: Space) -> dict[str, Any]:
    """The space as plain values, the same for the same space."""
    return {
        field: list(dimension.values) if isinstance(dimension, Choices) else vars(dimension)
        for field, dimension in sorted(space.items())
    }


def _fields(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        path = f"{section}{name}"
        if isinstance(value, dict) and not RANGE_KEYS & value.keys():
            yield from _fields(value, f"{path}.")
        else:
            yield path, value


def _dimension(path: Path, field: str, value: Any) -> Range | Choices:
    if isinstance(value, list) and len(value) > 1:
        return Choices(tuple(value))
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= RANGE_KEYS:
        raise PresetError(f"the space {path}: {field} = {value!r} is no choice: {HELP}")
    numbers = [value[key] for key in ("low", "high", "step") if key in value]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise PresetError(f"the space {path}: {field}: low, high and step must be numbers")
    found = Range(**value)
    if not found.low < found.high or (found.log and (found.low <= 0 or found.step is not None)):
        raise PresetError(f"the space {path}: {field}: low must be below high, and with log above zero, without a step")
    if found.step is not None and found.step <= 0:
        raise PresetError(f"the space {path}: {field}: step must be above zero")
    return found
