"""The boxes that a tree starts from: intersections of interval, CROWN and α-CROWN bounds."""

from dataclasses import replace

import torch

from certtrain.bounds.alpha import quick_lower_bounds, tighten_by_alpha
from certtrain.bounds.box import Box
from certtrain.bounds.crown import tighten_by_crown
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.interval import Tighten, interval_pass
from certtrain.bounds.linear import Prefix
from certtrain.bounds.settings import Settings
from certtrain.bounds.trace import NONLINEAR

# All domains of a tree use these boxes: few steps for many neurons are better than many steps for few.
ITERATIONS, NEURONS = 10, 1024


def tightened_prefix(graph: LayerGraph, box: Box, settings: Settings) -> Prefix:
    """The records of a pass of `box` (B, …), with the boxes at nonlinear layers tightened by a few steps of α-CROWN.

    Boxes that are not tightened by the settings' deadline stay as they are.
    """
    return refined_prefix(graph, box, crown_prefix(graph, box, settings), settings)


def crown_prefix(graph: LayerGraph, box: Box, settings: Settings) -> Prefix:
    """The records of a pass of `box` (B, …), with the boxes at nonlinear layers by CROWN."""
    return _prefix(graph, box, tighten_by_crown(settings), settings)


def refined_prefix(graph: LayerGraph, box: Box, crown: Prefix, settings: Settings) -> Prefix:
    """The prefix of CROWN with its boxes tightened by a few steps of α-CROWN; the same after the deadline."""
    if settings.deadline.over():
        return crown
    short = replace(settings, iterations=min(settings.iterations, ITERATIONS), neurons=max(settings.neurons, NEURONS))
    boxes = (record.box for record in crown.records if record.box is not None)
    return _prefix(graph, box, tighten_by_alpha(boxes, short, quick_lower_bounds), settings)


@torch.no_grad()
def _prefix(graph: LayerGraph, box: Box, tighten: Tighten, settings: Settings) -> Prefix:
    passed = interval_pass(graph, box, boxes_at=NONLINEAR, rounding=settings.rounding, tighten=tighten)
    return Prefix(passed.records, passed.start)
