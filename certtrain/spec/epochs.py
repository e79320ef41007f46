"""Another number of epochs for a preset: the ramp of ε and the learning rate keep their shape over the run."""

from collections.abc import Mapping
from math import floor
from typing import Any, NamedTuple

from certtrain.formats import count_of

SCALED = ("eps.start", "eps.length", "train.milestones", "train.warmup", "train.average_from")
"""The fields that count epochs from the start of a run, by dotted path."""


class Change(NamedTuple):
    """The value of a field in the preset, and the value for another number of epochs."""

    before: Any
    after: Any


def scaled_fields(fields: Mapping[str, Any], before: int, after: int) -> dict[str, Change]:
    """The fields, by dotted path, that change if a preset of `before` epochs is trained for `after` epochs.

    fields: the values of those in SCALED, not validated; one that is not of its type is left to the validation. The
    first and the last epoch of the ramp, not its length, are scaled and rounded, so that it ends within the run if it
    did before.
    """
    factor = after / before
    start, length = fields["eps.start"], fields["eps.length"]
    found: dict[str, Any] = {}
    if _is_epoch(start):
        found["eps.start"] = _scaled(start - 1, factor, least=0) + 1
        if _is_epoch(length) and length > 0:
            found["eps.length"] = max(_scaled(start - 1 + length, factor) - (found["eps.start"] - 1), 1)
    milestones, warmup, first = (fields[f"train.{name}"] for name in ("milestones", "warmup", "average_from"))
    if isinstance(milestones, list | tuple) and all(map(_is_epoch, milestones)):
        found["train.milestones"] = [_scaled(milestone, factor) for milestone in milestones]
    if isinstance(warmup, int | float) and not isinstance(warmup, bool):
        found["train.warmup"] = warmup * factor
    if _is_epoch(first):
        found["train.average_from"] = min(_scaled(first, factor), after)
    return {path: Change(fields[path], value) for path, value in found.items() if _differ(fields[path], value)}


def scaled_sentence(epochs: Change, changes: Mapping[str, Change]) -> str:
    """What another number of epochs changed beside it."""
    texts = [f"{path} {_text(change.before)} → {_text(change.after)}" for path, change in changes.items()]
    return (
        f"with {count_of(epochs.after, 'epoch')} in place of {epochs.before}, these fields are scaled too: "
        f"{', '.join(texts)}; --set overrules each"
    )


def _is_epoch(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _scaled(epochs: int, factor: float, least: int = 1) -> int:
    return max(floor(epochs * factor + 0.5), least)


def _differ(before: Any, after: Any) -> bool:
    return bool((list(before) if isinstance(before, tuple) else before) != after)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
