"""The boxes that a tree starts from: intervals, CROWN's and those of searched slopes, each cut by the ones before."""

from dataclasses import replace

import torch

from certtrain.bounds.alpha import tightened_from
from certtrain.bounds.box import Box
from certtrain.bounds.crown import tightened
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.interval import interval_pass
from certtrain.bounds.linear import Prefix
from certtrain.bounds.settings import Settings
from certtrain.bounds.trace import NONLINEAR

# All that a tree is made of stands on these boxes: a few steps for many units serve it better than many for a few.
STEPS, UNITS = 10, 1024


@torch.no_grad()
def tight_prefix(graph: LayerGraph, box: Box, settings: Settings) -> Prefix:
    """The way of `box` (B, …) through the network, its nonlinear layers' boxes as tight as a short α-CROWN has them.

    Those that are left at the settings' deadline stay as wide as they are.
    """
    wide = interval_pass(graph, box, watch=NONLINEAR, rounding=settings.rounding, tighten=tightened(settings))
    if settings.deadline.over():
        return Prefix(wide.records, box)
    short = replace(settings, iterations=min(settings.iterations, STEPS), neurons=max(settings.neurons, UNITS))
    narrow = tightened_from((record.box for record in wide.records if record.box is not None), short)
    records = interval_pass(graph, box, watch=NONLINEAR, rounding=settings.rounding, tighten=narrow).records
    return Prefix(records, box)
