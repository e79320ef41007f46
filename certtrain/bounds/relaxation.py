"""The relaxation of an activation: the lines of its record, or lines with numbers to optimise."""

from collections.abc import Sequence

from torch import nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.box import Box
from certtrain.bounds.lines import FreeLines, Lines


def relaxed(layer: nn.Module, box: Box) -> Lines:
    """The lines of an activation over `box` (B, …)."""
    return ACTIVATIONS[type(layer)].lines(layer, box)


def free_lines(layer: nn.Module, box: Box) -> FreeLines | None:
    """The lines of an activation with numbers to choose; None for another layer, or if no neuron has a choice."""
    record = ACTIVATIONS.get(type(layer))
    return None if record is None else record.free_lines(layer, box)


def alpha_shape(layer: nn.Module, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the numbers that `free_lines` leaves to choose, for inputs of `shape` without the batch."""
    record = ACTIVATIONS[type(layer)]
    return tuple(shape) if record.rectifier is not None else (2, *shape)
