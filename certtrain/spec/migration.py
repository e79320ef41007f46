"""Presets of earlier versions: one step for each change of a field's name or place, applied to plain values.

A preset file, a run's folder and a model file all hold a preset. Whoever reads one calls `migrated` first,
so what an earlier version wrote stays readable for ever.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

FORMAT: Final = 1  # of the presets that this version writes; 1 is also that of a preset that names none

Migration = Callable[[dict[str, Any]], dict[str, Any]]
# From format n to n + 1, with n the place in this list, counted from 1. A field that is new and has a default needs
# no migration, and so no new format.
MIGRATIONS: tuple[Migration, ...] = ()


def migrated(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a preset as this version names them, with its format; `values` stay as they are.

    Raises ValueError if they are of no format, or of one that only a newer certtrain reads.
    """
    found = dict(values)
    written = found.pop("format", 1)
    if not isinstance(written, int) or isinstance(written, bool) or written < 1:
        raise ValueError(f"format: {written!r} is not the number of a preset's format")
    if written > FORMAT:
        raise ValueError(f"format: {written} is newer than {FORMAT}, which this version reads; update certtrain")
    for migration in MIGRATIONS[written - 1 :]:
        found = migration(found)
    return found | {"format": FORMAT}
