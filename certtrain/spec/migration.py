"""Presets of earlier versions: a migration for each change of a field's name or place, applied to plain values.

A preset file, a run's folder and a model file all contain a preset. `migrated` is called whenever one is read, so
that files of earlier versions stay readable.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

FORMAT: Final = 2  # the format that this version writes; a preset without a format has format 1

Migration = Callable[[dict[str, Any]], dict[str, Any]]


def _objective_from_bounds(fields: dict[str, Any]) -> dict[str, Any]:
    """Format 1 names the objective by `bounds.method`."""
    bounds = fields.pop("bounds", None)
    if not isinstance(bounds, Mapping):
        return fields if bounds is None else fields | {"objective": bounds}
    if "objective" in fields:
        raise ValueError("bounds and objective: write the fields of [bounds] in [objective], with name for method")
    fusion = ("loss_fusion",) if bounds.get("method", "ibp") == "ibp" else ()  # it had no meaning for intervals
    objective = {"name": bounds.get("method", "ibp")}
    return fields | {"objective": objective | {n: v for n, v in bounds.items() if n not in ("method", *fusion)}}


RENAMED = {"bounds": "objective", "bounds.method": "objective.name", "bounds.loss_fusion": "objective.loss_fusion"}
"""The names that fields of earlier formats have now, by dotted paths."""

# The n-th migration, counted from 1, leads from format n to n + 1. A new field that has a default needs no migration,
# and so no new format.
MIGRATIONS: tuple[Migration, ...] = (_objective_from_bounds,)


def migrated(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a preset as this version names them, with its format; `values` are not changed.

    Raises ValueError if the format is not the number of one, or is newer than this version.
    """
    fields = dict(values)
    written = fields.pop("format", 1)
    if not isinstance(written, int) or isinstance(written, bool) or written < 1:
        raise ValueError(f"format: {written!r} is not the number of a preset's format")
    if written > FORMAT:
        raise ValueError(f"format: {written} is newer than {FORMAT}, which this version reads; update certtrain")
    for migration in MIGRATIONS[written - 1 :]:
        fields = migration(fields)
    return fields | {"format": FORMAT}
