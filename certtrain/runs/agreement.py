"""That a run goes on by the preset that it began with, or it would not be the same run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from certtrain.errors import RunError
from certtrain.spec.preset import Preset, load_preset

FIELDS_SHOWN = 5  # in the error; those of two networks may be many


def check_unchanged(began: Mapping[str, Any], now: Preset, file: Path) -> None:
    """Raise RunError, naming the fields, if the preset `now`, of `file`, is not the one that the run began with."""
    # By way of a preset, so that fields which that version of certtrain did not have yet get their defaults.
    before, after = (dict(_fields(each.model_dump(mode="json"))) for each in (load_preset(began), now))
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    if changed:
        shown = [f"{name} {_change(before.get(name), after.get(name))}" for name in changed[:FIELDS_SHOWN]]
        more = f"; and {len(changed) - FIELDS_SHOWN} more fields" if len(changed) > FIELDS_SHOWN else ""
        raise RunError(
            f"{file} was changed after the run began: {'; '.join(shown)}{more}. "
            f"Undo the change to go on, or start a new run by --preset {file} --out FOLDER"
        )


def _fields(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Each field by its dotted path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value


def _change(before: Any, after: Any) -> str:
    """The values themselves, where they are short."""
    words = f"was {before!r} and is {after!r}"
    return words if len(words) < 100 else "is another"
