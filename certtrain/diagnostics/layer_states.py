"""The state of each ReLU layer, computed from its boxes: shares of states, widths, growth, balance."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from certtrain.bounds.box import Box, input_box
from certtrain.bounds.statistics import batch_statistics
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.errors import NonFiniteError
from certtrain.runs.epoch import LayerState


def layer_states(traces: Iterable[BoundTrace]) -> list[LayerState]:
    """The state of each ReLU layer over the batches of `traces`, of which only one is kept at a time.

    Raises NonFiniteError, which names the first layer whose bounds are NaN or infinite.
    """
    totals: list[_Totals] = []
    examples, input_radius = 0, 0.0
    for trace in traces:
        totals = totals or [_Totals(name) for name, _ in trace.relu_boxes]
        examples += trace.input.radius.shape[0]
        input_radius += trace.input.radius.double().flatten(1).mean(1).sum().item()
        for total, (_, box) in zip(totals, trace.relu_boxes, strict=True):
            total.add(box)
    return [total.state(2 * input_radius / examples) for total in totals]


@torch.no_grad()
def relu_units(model: nn.Module, x: Tensor) -> int:
    """The number of ReLU inputs of the network for one example of `x` (B, …), with B ≥ 2."""
    graph = checked_graph(model, tuple(x.shape[1:]))
    trace = trace_bounds(graph, input_box(x[:2], 0.0, None), statistics=batch_statistics)
    return sum(box.centre[0].numel() for _, box in trace.relu_boxes)


class _Totals:
    """Sums over batches, in float64, from which a layer's state is computed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sums: Tensor | None = None
        self.dead: Tensor | None = None
        self.count = 0

    @torch.no_grad()
    def add(self, box: Box) -> None:
        lower, upper = box.lower, box.upper
        dead = (upper <= 0).all(dim=0)
        self.dead = dead if self.dead is None else self.dead & dead
        sums = _sums(box.centre.double(), box.radius.double(), lower > 0, upper <= 0)
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += lower.numel()

    def state(self, input_width: float) -> LayerState:
        assert self.sums is not None
        assert self.dead is not None  # add() sets both
        if not bool(self.sums.isfinite().all()):
            raise NonFiniteError(f"the bounds at the input of {self.name!r} are not finite; try a smaller ε")
        unstable = self.count - int(self.sums[0]) - int(self.sums[1])
        active, inactive, centre, radius, *moments = (self.sums / self.count).tolist()
        width, dead = 2 * radius, self.dead.double().mean().item()
        return LayerState(
            name=self.name,
            units=self.dead.numel(),
            active=active,
            inactive=inactive,
            unstable=unstable / self.count,
            dead=dead,
            centre=centre,
            width=width,
            growth=width / input_width if input_width > 0 else None,
            mean_ratio=_folded(moments[0], -moments[1]),
            variance_ratio=_folded(
                _spread(active, moments[0], moments[2], centre), _spread(inactive, moments[1], moments[3], centre)
            ),
            dead_channels=self.dead.flatten(1).all(1).double().mean().item() if self.dead.dim() > 1 else dead,
        )


def _sums(centre: Tensor, radius: Tensor, active: Tensor, inactive: Tensor) -> Tensor:
    """The sums of A, I, c, r, c·A, c·I, c²·A and c²·I: states active and inactive, centre and radius."""
    on, off, square = active.double(), inactive.double(), centre.square()
    terms = (on, off, centre, radius, centre * on, centre * off, square * on, square * off)
    return torch.stack([term.sum() for term in terms])


def _spread(share: float, first: float, second: float, mean: float) -> float:
    """Mean of (c − mean)² over the entries in one state, times their share, from their first two moments."""
    return max(second - 2 * mean * first + mean * mean * share, 0.0)


def _folded(first: float, second: float) -> float | None:
    larger = max(first, second)
    return abs(min(first, second)) / larger if larger > 0 else None  # abs: the negative of an empty sum is −0
