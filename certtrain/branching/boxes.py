"""The boxes that a tree starts from: by intervals, by CROWN and by α-CROWN, each cut by those before."""

from dataclasses import replace

import torch

from certtrain.bounds.alpha import tighten_by_alpha
from certtrain.bounds.box import Box
from certtrain.bounds.crown import tighten_by_crown
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.interval import LayerRecord, Tighten, interval_pass
from certtrain.bounds.linear import Prefix
from certtrain.bounds.settings import Settings
from certtrain.bounds.trace import NONLINEAR

# Every domain of a tree rests on these boxes: a few steps for many neurons serve it better than many for a few.
ITERATIONS, NEURONS = 10, 1024


@torch.no_grad()
def tight_prefix(graph: LayerGraph, box: Box, settings: Settings) -> Prefix:
    """The records of a pass of `box` (B, …), the nonlinear layers' boxes as tight as a short α-CROWN has them.

    Those that are left at the settings' deadline stay as wide as they are.
    """

    def records(tighten: Tighten) -> list[LayerRecord]:
        return interval_pass(graph, box, boxes_at=NONLINEAR, rounding=settings.rounding, tighten=tighten).records

    crown = records(tighten_by_crown(settings))
    if settings.deadline.over():
        return Prefix(crown, box)
    short = replace(settings, iterations=min(settings.iterations, ITERATIONS), neurons=max(settings.neurons, NEURONS))
    boxes = (record.box for record in crown if record.box is not None)
    return Prefix(records(tighten_by_alpha(boxes, short)), box)
