"""One training step: a pass, its loss, a gradient, an update; without the update if a value is not finite.

A step never waits for the device: its measures are summed there, and read when
they are needed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.box import input_box
from certtrain.bounds.checks import check_trainable
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import (
    StatisticsFunction,
    batch_statistics,
    pooled_statistics,
    update_running_statistics,
)
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import BoundTrace
from certtrain.data import part_of
from certtrain.data.seeds import derive_seed
from certtrain.errors import DeviceError
from certtrain.runtime.precision import arithmetic, tensor_cores
from certtrain.spec.preset import Preset
from certtrain.training.averaging import make_average
from certtrain.training.compilation import Compiler, Wrap, as_it_is
from certtrain.training.distributed import SINGLE_PROCESS, Group
from certtrain.training.failures import first_not_finite
from certtrain.training.l1 import L1Penalty
from certtrain.training.loss import Regularizers, loss_terms, measures
from certtrain.training.measures import MeasureSums
from certtrain.training.micro_batches import Accumulated, Accumulation, TrainingBatch, traces_in_parts
from certtrain.training.objectives import objective_of
from certtrain.training.optimizer import make_optimizer, set_learning_rate
from certtrain.training.passes import Clean, Passes, SignedAscent
from certtrain.training.schedules import ActiveTerms, Controls, Schedules

GRADIENT_NORM = "gradient_norm"  # the name of the step's own measure, beside the objective's measures


class Reading(NamedTuple):
    """The sum of each measure over examples, by name, and the first step with a value that was not finite."""

    sums: dict[str, float]
    failed: int | None


def _fail(reason: str) -> None:
    raise DeviceError(f"{reason}; choose --compile off")


class Stepper:
    """Trains a network by steps. Each is a function of the preset, its number, and the network's and optimiser's state.

    network: changed in place. compile: whether to compile the step; if that fails, `on_failure` is called with the
    reason. cuda_graphs: whether a GPU runs a compiled step as CUDA graphs, for objectives without an attack in a single
    process. group: the processes that train together.
    """

    def __init__(
        self,
        preset: Preset,
        network: nn.Module,
        steps_per_epoch: int,
        *,
        compile: bool = False,
        cuda_graphs: bool = True,
        on_failure: Callable[[str], None] = _fail,
        group: Group = SINGLE_PROCESS,
    ) -> None:
        self.preset, self.network, self.compile, self.group = preset, network, compile, group
        self.schedules = Schedules(preset, steps_per_epoch)
        single = group.size == 1
        self.statistics: StatisticsFunction = batch_statistics if single else pooled_statistics(group.gather)
        self.graph = checked_graph(network)
        check_trainable(self.graph)
        self.objective = objective_of(preset.objective, self.graph)
        self.device = next(network.parameters()).device
        self.bad = torch.zeros((), dtype=torch.float32, device=self.device)
        self.optimizer = make_optimizer(preset.train, network.parameters(), self.bad)
        self.l1 = L1Penalty(self.graph, preset.train.l1)
        self.average = make_average(preset.train, network, steps_per_epoch)
        graphs = cuda_graphs and self.device.type == "cuda" and single and not self.objective.attacks
        self.compiler = Compiler(on_failure, cuda_graphs=graphs) if compile else None
        self.sums = MeasureSums(self.device)
        self.failed = torch.full((), -1, device=self.device)

    # --- the step ----------------------------------------------------------------------------------------

    def run(self, step: int, x: Tensor, labels: Tensor, share: float = 1.0) -> None:
        """Update the network with the pixels `x` (B, C, H, W) and `labels` (B,), this rank's `share` of the batch.

        If the loss or the gradient is not finite on any rank, neither this step nor
        any later one changes the weights, and `read` reports it.
        """
        with tensor_cores(self.preset.train.precision == "tf32"):  # the backward pass as well
            measured = self.l1.measured(self._gradient(step, x, labels, share))
        bad = (~torch.stack(list(measured.values())).isfinite().all()).float()
        norm = self._whole_gradient(bad)
        self._note_failure(step, (bad > 0) | ~norm.isfinite())
        self.sums.add({**measured, GRADIENT_NORM: norm}, len(labels))
        set_learning_rate(self.optimizer, self.schedules.learning_rate(step))
        self.optimizer.step()
        if self.average is not None:
            self.average.move(step, self.network)

    @property
    def result(self) -> nn.Module:
        """The network to keep: the average if there is one."""
        return self.network if self.average is None else self.average.network

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that a step changes, by their names in a checkpoint."""
        average = {} if self.average is None else {"average": self.average.network}
        return {"network": self.network, **average}

    def _gradient(self, step: int, x: Tensor, labels: Tensor, share: float) -> dict[str, Tensor]:
        """Compute the gradient of this rank's share of the loss, and return the measures."""
        x, controls = _channels_last(x), self.schedules.controls(step, next(self.network.parameters()))
        active = self.schedules.active_terms(step, compiled=self.compile, fades=self.objective.fades)
        if self.preset.train.micro_batch is not None:
            self.optimizer.zero_grad()
            return self._accumulate(step, x, labels, controls, active, share)

        def descend(wrap: Wrap) -> dict[str, Tensor]:
            self.optimizer.zero_grad()
            with self._arithmetic():
                clean, found = self._prepared(x, labels, controls, self._ascent(step, len(x), share, wrap))
                total, measured = wrap(self._loss)(x, labels, controls, active, clean, found)
            (total * share).backward()
            return dict(measured)

        # A compiled graph has a fixed batch size, so a smaller batch at the end of an epoch is not compiled.
        size = self.preset.train.batch_size
        full = len(x) == len(range(size)[part_of(size, self.group.rank, self.group.size)])
        return self.compiler.use(descend) if self.compiler and full else descend(as_it_is)

    def _prepared(
        self, x: Tensor, labels: Tensor, controls: Controls, ascent: SignedAscent
    ) -> tuple[Clean | None, tuple[Tensor, ...]]:
        """For an objective that attacks: the pass of the clean batch, with gradients, and what the attacks find."""
        if not self.objective.attacks:
            return None, ()
        clean = ascent.wrap(self._clean)(x)
        passes = Passes(self.graph, x, labels, controls.eps, source=self.statistics, clean=clean.detached())
        return clean, self.objective.prepare(passes, ascent)

    def _clean(self, x: Tensor) -> Clean:
        clean = Clean(*plain_pass(self.graph, x, statistics=self.statistics))
        update_running_statistics(clean.statistics)
        return clean

    def _ascent(self, step: int, examples: int, share: float, wrap: Wrap) -> SignedAscent:
        whole = round(examples / share)
        rows = part_of(whole, self.group.rank, self.group.size)
        return SignedAscent(derive_seed(self.preset.seed, "attack", step), whole, rows, wrap)

    def _accumulate(
        self, step: int, x: Tensor, labels: Tensor, controls: Controls, active: ActiveTerms, share: float
    ) -> dict[str, Tensor]:
        """The same gradient, from a few examples at a time."""
        batch = TrainingBatch(
            x,
            labels,
            controls.eps,
            controls.warmup if active.fading else None,
            controls.robust_share,
            self._weights(controls, active),
            share,
            self._ascent(step, len(x), share, as_it_is),
        )
        passed = Accumulated(self._in_parts(), batch)
        update_running_statistics(passed.statistics)
        return measures(passed.terms, passed.logits, labels)

    def _in_parts(self) -> Accumulation:
        size = self.preset.train.micro_batch or 1
        return Accumulation(self.graph, self.objective, size, self.statistics, self.group.sum, self._arithmetic)

    def _whole_gradient(self, bad: Tensor) -> Tensor:
        """Sum the gradients, and `bad`, over the ranks, add that of the L1 norm, and clip; returns the norm before."""
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        self.group.sum_in_place([*gradients, bad])
        self.l1.add_gradient()
        return nn.utils.clip_grad_norm_(self.network.parameters(), self.preset.train.clip_norm)

    def _loss(
        self,
        x: Tensor,
        labels: Tensor,
        controls: Controls,
        active: ActiveTerms,
        clean: Clean | None,
        found: tuple[Tensor, ...],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        passes = Passes(
            self.graph,
            x,
            labels,
            controls.eps,
            source=self.statistics,
            clean=clean,
            warmup=controls.warmup if active.fading else None,
            with_clean=self._with_clean(),
        )
        robust = self.objective.robust(passes, found)
        if clean is None:
            update_running_statistics(passes.statistics)
        assert passes.clean is not None  # the objective's first pass took it along
        logits, share, weights = passes.clean.logits, controls.robust_share, self._weights(controls, active)
        terms = loss_terms(logits, robust, labels, robust_share=share, regularizers=weights, all_reduce=self.group.sum)
        return terms.total, measures(terms, logits if self._with_clean() else None, labels)

    def _weights(self, controls: Controls, active: ActiveTerms) -> Regularizers | None:
        tolerance = self.preset.regularizer.tolerance
        return Regularizers(controls.tightness, controls.relu_balance, tolerance) if active.regularizers else None

    def _arithmetic(self) -> AbstractContextManager[None]:
        return arithmetic(self.preset.train.precision, self.device.type)

    def _with_clean(self) -> bool:
        return self.preset.train.batch_norm_statistics == "clean"

    def _note_failure(self, step: int, failed: Tensor) -> None:
        first = failed & (self.failed < 0)
        self.failed = torch.where(first, step, self.failed)
        self.bad.copy_(torch.maximum(self.bad, failed.float()))

    def _scalar(self, value: float) -> Tensor:
        return torch.tensor(value, device=self.device)

    # --- the measures ------------------------------------------------------------------------------------

    def read(self) -> Reading:
        """Wait for the device, and read the sums of all ranks since the last `set_sums`."""
        values = self.group.sum(self.sums.values)
        *sums, failed = torch.cat([values, self.failed.double().unsqueeze(0)]).tolist()
        return Reading(dict(zip(self.sums.names, sums, strict=True)), int(failed) if failed >= 0 else None)

    def set_sums(self, sums: Mapping[str, float]) -> None:
        """Continue from these sums, which are over all ranks; an empty mapping starts from zero."""
        self.sums.set(sums if self.group.is_leader else dict.fromkeys(sums, 0.0))

    def traces(self, step: int, x: Tensor) -> Iterator[BoundTrace]:
        """The traces of this rank's part (B, …) of a batch at the ε of `step`, with the statistics that it takes."""
        eps, size = self.schedules.positive_eps(step), self.preset.train.micro_batch or len(x)
        box = input_box(_channels_last(x), eps, with_clean=self._with_clean())
        return traces_in_parts(self.graph, box, size, statistics=self.statistics)

    def explain(self, step: int, x: Tensor, labels: Tensor) -> str:
        """A sentence on what was not finite in a step that failed: the first such measure, and the first such layer.

        All ranks call it together, each with its part of the batch, and all get the same sentence.
        """
        with tensor_cores(self.preset.train.precision == "tf32"):
            measured = self.l1.measured(self._gradient(step, x, labels, share=1.0))
        with self._arithmetic():
            culprit = first_not_finite(self.traces(step, x), self.network)
        measured |= {GRADIENT_NORM: self._whole_gradient(self._scalar(0.0))}
        bad = [f"{name} is {value.item()}" for name, value in measured.items() if not isfinite(value.item())]
        what = self.group.first_text(bad[0] if bad else None) or "its loss was not finite"
        return f"step {step}: {what}; {self.group.first_text(culprit) or 'all bounds and gradients are finite'}"


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
