"""The relaxation of an activation: the lines of its record, or lines with a slope to optimise."""

from torch import nn

from certtrain.bounds.activations import ACTIVATIONS, RECTIFIERS, slope_of
from certtrain.bounds.box import Box
from certtrain.bounds.lines import Lines, Slopes


def relaxed(layer: nn.Module, box: Box) -> Lines:
    """The lines of an activation over `box` (B, …)."""
    return ACTIVATIONS[type(layer)].lines(layer, box)


def free_slopes(layer: nn.Module, box: Box) -> Slopes | None:
    """The lines of a rectifier with a slope to choose; None for another layer, or without an unstable neuron."""
    if type(layer) not in RECTIFIERS:
        return None
    lower, upper, slope = box.lower.unsqueeze(1), box.upper.unsqueeze(1), slope_of(layer)
    if slope == 1 or not bool(((lower < 0) & (upper > 0)).any()):
        return None
    rises, falls = (lower >= 0).to(lower.dtype), (upper > 0).to(lower.dtype)
    return Slopes(relaxed(layer, box).for_functions(), slope, rises, falls, (lower + upper > 0).to(lower.dtype))
