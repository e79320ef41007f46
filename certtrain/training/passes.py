"""The passes of one batch from which an objective computes its losses: boxes, inputs, and attacks.

BatchNorm normalises them all by the statistics of the clean batch, with gradients. The clean batch passes once.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.attack.descent import AscentSteps, AttackLoss, ascend
from certtrain.bounds.box import Box, input_box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.interval import Altered
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import Statistics, StatisticsByCall, StatisticsSource
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.data.seeds import derive_seed
from certtrain.spec.objective import AttackSection
from certtrain.training.compilation import Wrap


class Clean(NamedTuple):
    """The pass of the clean batch: its logits (B, K), and the statistics that all other passes use."""

    logits: Tensor
    statistics: StatisticsByCall

    def part(self, rows: slice) -> "Clean":
        """With the logits of some of the batch; the statistics stay those of the whole batch."""
        return Clean(self.logits[rows], self.statistics)

    def detached(self) -> "Clean":
        """Without gradients."""
        return Clean(self.logits.detach(), {name: _detached(taken) for name, taken in self.statistics.items()})


class Passes:
    """The passes of the examples `x` (B, …) with `labels` (B,) in one training step at radius `eps`, a scalar.

    warmup: 1 − ε/ε_max, a scalar, the weight of terms that fade out with the warm-up; None once they are not computed.
    clean: the pass of the clean batch. If it is None, the first `trace` takes the clean batch along with its box, and
    `source` says by what BatchNorm normalises; without `with_clean` these are the boxes' centres.
    """

    def __init__(
        self,
        graph: LayerGraph,
        x: Tensor,
        labels: Tensor,
        eps: Tensor | float,
        *,
        source: StatisticsSource,
        clean: Clean | None = None,
        warmup: Tensor | float | None = None,
        with_clean: bool = True,
    ) -> None:
        self.graph, self.x, self.labels, self.eps = graph, x, labels, eps
        self.source, self.clean, self.warmup, self.with_clean = source, clean, warmup, with_clean

    @property
    def statistics(self) -> StatisticsByCall:
        """Those of the clean batch, which must have passed."""
        assert self.clean is not None
        return self.clean.statistics

    def input_box(self, radius: float = 1.0) -> Box:
        """The boxes of the step's ε, times `radius`, cut to [0, 1]."""
        return input_box(self.x, self.eps * radius)

    def trace(
        self, box: Box, *, graph: LayerGraph | None = None, beside: Tensor | None = None, altered: Altered | None = None
    ) -> BoundTrace:
        """A pass of `box` through the network, or through `graph`, a part of it.

        Inputs `beside` (B, …) pass with it, as the clean batch of the trace. `altered` is as in `interval_pass`.
        """
        graph = self.graph if graph is None else graph
        if self.clean is not None:
            return trace_bounds(graph, box._replace(clean=beside), statistics=self.statistics, altered=altered)
        assert beside is None
        trace = trace_bounds(graph, box._replace(clean=self.x if self.with_clean else None), statistics=self.source)
        self.clean = Clean(trace.logits.box.values, trace.statistics)
        return trace

    def outputs(self, x: Tensor) -> Tensor:
        """The logits (B, K) of other inputs (B, …)."""
        return plain_pass(self.graph, x, statistics=self.statistics).output


@dataclass(frozen=True)
class SignedAscent:
    """The attacks of one step by signed gradient ascent (Madry et al. 2018), seeded by `seed`.

    They are the same whether a batch is taken whole or in parts.

    whole: the number of examples in the whole batch. rows: the place of these examples in it. wrap: compiles.
    """

    seed: int
    whole: int
    rows: slice
    wrap: Wrap

    @torch.no_grad()
    def __call__(
        self, loss: AttackLoss, passes: Passes, box: Box, settings: AttackSection, stream: str, *about: Tensor
    ) -> Tensor:
        """Inputs (n, …) in `box` where the loss is high, without a gradient.

        The loss gets the inputs, the statistics of the clean batch, and `about`, with a row for each input. `stream`
        names the random starts. A box can have several rows for each example, one after the other.
        """
        statistics = {name: _detached(taken) for name, taken in passes.statistics.items()}
        found: Tensor = ascend(
            self.wrap(loss.losses),
            self.wrap(loss.gradient),
            box,
            self._draws(box, settings, stream),
            steps_of(settings),
            (statistics, *about),
        )
        return found

    def part(self, rows: slice) -> "SignedAscent":
        """For some of the examples; `rows` are counted within these."""
        start = self.rows.start + rows.start
        return replace(self, rows=slice(start, min(self.rows.start + rows.stop, self.rows.stop)))

    def _draws(self, box: Box, settings: AttackSection, stream: str) -> Tensor | None:
        """The random starts (R, n, …) in [0, 1), of this part of the whole batch; None if all start at the centre."""
        if settings.start == 0:
            return None
        copies = len(box.centre) // (self.rows.stop - self.rows.start)
        generator = torch.Generator(box.centre.device).manual_seed(derive_seed(self.seed, stream))
        shape = (settings.restarts, self.whole * copies, *box.centre.shape[1:])
        draws = torch.rand(shape, generator=generator, device=box.centre.device, dtype=torch.float32)
        return draws[:, self.rows.start * copies : self.rows.stop * copies].to(box.centre.dtype)


def steps_of(settings: AttackSection) -> AscentSteps:
    """The lengths of the steps, and the rest of an attack's settings."""
    size = max(0.25, 2 / settings.steps) if settings.step_size is None else settings.step_size
    sizes = tuple(size * settings.decay ** (step // settings.decay_every) for step in range(settings.steps))
    return AscentSteps(sizes, settings.restarts, settings.start, settings.keep == "best")


def _detached(taken: Statistics) -> Statistics:
    return taken._replace(mean=taken.mean.detach(), variance=taken.variance.detach())
