"""Fields of [train] that have no effect beside another field's value: a message names each one that is set.

A preset can have such a field without anyone's wish: from a preset that it extends, or because it was saved with all
fields.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple


class _Rule(NamedTuple):
    """The field has an effect only if the field `beside` has one of these `values`; both are dotted paths."""

    field: str
    beside: str
    values: tuple[Any, ...]


IDLE_RULES = (
    _Rule("train.momentum", "train.optimizer", ("sgd",)),
    _Rule("train.warmup", "train.schedule", ("linear", "cosine")),
    _Rule("train.milestones", "train.schedule", ("steps",)),
    _Rule("train.decay", "train.schedule", ("steps",)),
    _Rule("train.batch_norm_refresh", "model.batch_norm", (True,)),
)


def idle_fields(values: Mapping[str, Any], own: Collection[str], overridden: Collection[str]) -> list[str]:
    """A sentence for each field that was set and has no effect.

    values: those of a preset's fields that are not the defaults, and of all fields `beside` others, by dotted path.
    own: the paths of the fields that the preset's file sets itself; they are no wish if an override changes the field
    beside. overridden: those that overrides set.
    """
    found = list[str]()
    for rule in IDLE_RULES:
        wanted = rule.field in overridden or (rule.field in own and rule.beside not in overridden)
        if wanted and rule.field in values and values.get(rule.beside, rule.values[0]) not in rule.values:
            found.append(_sentence(rule, values[rule.beside]))
    return found


def _sentence(rule: _Rule, value: Any) -> str:
    choices = " or ".join(map(json.dumps, rule.values))
    return f"{rule.field} has no effect with {rule.beside} = {json.dumps(value)}: leave it out, or choose {choices}"
