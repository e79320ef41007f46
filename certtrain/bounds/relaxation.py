"""What linear bounds put in the place of an activation: its record's lines, or lines whose slope is searched."""

from torch import nn

from certtrain.bounds.activations import ACTIVATIONS, RECTIFIERS, slope_of
from certtrain.bounds.box import Box
from certtrain.bounds.lines import Lines, Slopes


def relaxed(layer: nn.Module, box: Box) -> Lines:
    """The lines for an activation over `box` (B, …)."""
    return ACTIVATIONS[type(layer)].lines(layer, box)


def free_slopes(layer: nn.Module, box: Box) -> Slopes | None:
    """The lines of a layer that have a slope to choose; None where it is no rectifier, or no unit is unstable."""
    if type(layer) not in RECTIFIERS:
        return None
    lower, upper, slope = box.lower.unsqueeze(1), box.upper.unsqueeze(1), slope_of(layer)
    if slope == 1 or not bool(((lower < 0) & (upper > 0)).any()):
        return None
    rises, falls = (lower >= 0).to(lower.dtype), (upper > 0).to(lower.dtype)
    return Slopes(relaxed(layer, box).for_functions(), slope, rises, falls, (lower + upper > 0).to(lower.dtype))
