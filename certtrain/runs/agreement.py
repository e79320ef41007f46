"""A check that a resumed run has the preset that it began with."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from certtrain.errors import RunError
from certtrain.spec.preset import Preset, load_preset

FIELDS_SHOWN = 5  # in the error; two networks may differ in many


def check_unchanged(began: Mapping[str, Any], now: Preset, file: Path) -> None:
    """Raise RunError, naming the fields, if the preset `now`, of `file`, is not the one that the run began with."""
    # Loaded as a preset, so that fields which an earlier version of certtrain did not have get their defaults.
    if changed := changed_fields(load_preset(began), now):
        raise RunError(
            f"{file} was changed after the run began: {changed}. "
            f"Undo the change to resume it, or start a new run with --preset {file} --out FOLDER"
        )


def changed_fields(before: Preset, after: Preset) -> str:
    """The fields in which two presets differ, with their values; empty if they are the same."""
    first, second = (dict(flat_fields(each.model_dump(mode="json"))) for each in (before, after))
    changed = [name for name in first | second if first.get(name) != second.get(name)]
    shown = [f"{name} {_change(first.get(name), second.get(name))}" for name in changed[:FIELDS_SHOWN]]
    more = f"; and {len(changed) - FIELDS_SHOWN} more fields" if len(changed) > FIELDS_SHOWN else ""
    return "; ".join(shown) + more


def flat_fields(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Each field with its dotted path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_fields(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value


def _change(before: Any, after: Any) -> str:
    """The change in words, with the values if they are short."""
    words = f"was {before!r} and is {after!r}"
    return words if len(words) < 100 else "has another value"
