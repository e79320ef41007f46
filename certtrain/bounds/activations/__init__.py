"""The activations: one record each, from which all tables about activations are made.

A record that lacks a part, or does not agree with its section, is an error when this package is loaded.
"""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import get_args

import torch
from torch import nn

from certtrain.bounds.activations.clamps import CLAMP, HARDTANH, RELU6
from certtrain.bounds.activations.elu import ELU
from certtrain.bounds.activations.gated import GELU, SILU
from certtrain.bounds.activations.record import Activation
from certtrain.bounds.activations.rectifiers import LEAKY_RELU, RELU
from certtrain.bounds.activations.s_shaped import SIGMOID, TANH
from certtrain.bounds.activations.softplus import SOFTPLUS
from certtrain.spec.activations import ACTIVATION_SECTIONS
from certtrain.spec.layer_section import LayerSection

NO_FIELDS = {"inplace", "min_value", "max_value"}  # arguments that do not change the result, and old names of torch


def by_layer(records: Sequence[Activation]) -> Mapping[type[nn.Module], Activation]:
    """The records by their layers. Raises TypeError if two overlap, or one does not agree with its section."""
    for record in records:
        _check(record)
    owned = [owner for record in records for owner in (record.layer, record.section, *record.functions)]
    if twice := [owner for owner, count in Counter(owned).items() if count > 1]:
        raise TypeError(f"two activations have {twice[0]}")
    if missing := set(ACTIVATION_SECTIONS) - {record.section for record in records}:
        raise TypeError(f"{missing.pop().__name__} is the section of no activation")
    return {record.layer: record for record in records}  # torch.compile does not take a mapping proxy of such keys


def _check(record: Activation) -> None:
    name, section = record.layer.__name__, record.section
    absent = [part.name for part in fields(record) if part.name != "rectifier" and getattr(record, part.name) is None]
    if absent:
        raise TypeError(f"the record of {name} has no {' and no '.join(absent)}")
    if section not in ACTIVATION_SECTIONS or get_args(section.model_fields["type"].annotation) != (name,):
        raise TypeError(f"{name} and its section {section.__name__} do not name each other")
    own = section.model_fields.keys() - LayerSection.model_fields.keys()
    parameters = inspect.signature(record.layer).parameters.values()
    arguments = {each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD} - NO_FIELDS
    if own != arguments:
        raise TypeError(f"{section.__name__} has the fields {sorted(own)}, and {name} takes {sorted(arguments)}")
    units, statement = record.accuracy
    if (statement is None and units) or (statement is not None and f" {units} units" not in statement):
        raise TypeError(f"{name} rests on an accuracy of {units} units in the last place, but states {statement!r}")
    if statement is None and not _piecewise_linear(record.layer(min=0.0) if "min" in arguments else record.layer()):
        raise TypeError(f"{name} is no piecewise linear function, so it needs an accuracy, which certificates state")


@torch.no_grad()
def _piecewise_linear(layer: nn.Module) -> bool:
    """Whether the function bends at a few places only."""
    places = torch.linspace(-8, 8, 1025, dtype=torch.float64)
    return int((layer(places).diff(n=2).abs() > 1e-9).sum()) < 10


ACTIVATIONS = by_layer((RELU, LEAKY_RELU, SIGMOID, TANH, GELU, SILU, SOFTPLUS, ELU, HARDTANH, RELU6, CLAMP))
# Activations that are a line through zero on each side of zero.
RECTIFIERS = tuple(layer for layer, record in ACTIVATIONS.items() if record.rectifier is not None)
# Activations whose neurons complete verification splits.
SPLITTABLE = tuple(layer for layer, record in ACTIVATIONS.items() if record.splittable)


def slope_of(layer: nn.Module) -> float:
    """The slope of a rectifier below zero."""
    rectifier = ACTIVATIONS[type(layer)].rectifier
    assert rectifier is not None
    return rectifier(layer)


def statements_of(layers: Sequence[nn.Module]) -> tuple[str, ...]:
    """What bounds of these layers assume about the accuracy of torch's functions, each statement once."""
    kinds = {type(layer) for layer in layers}
    found = [record.accuracy.statement for layer, record in ACTIVATIONS.items() if layer in kinds]
    return tuple(dict.fromkeys(statement for statement in found if statement is not None))
