"""One training step: a pass, its loss, a gradient, an update; nothing is updated where something is not finite.

A step never waits for the device: what it measures adds up there, and is read
when somebody wants to know.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.box import input_box
from certtrain.bounds.checks import check_trainable
from certtrain.bounds.statistics import (
    StatisticsFunction,
    StatisticsSource,
    batch_statistics,
    pooled_statistics,
    remember,
)
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.data import part_of
from certtrain.errors import DeviceError
from certtrain.runtime.precision import arithmetic, tensor_cores
from certtrain.spec.preset import Preset
from certtrain.spec.schedule import eps_at, learning_rate_at, linear_rate_at, warmup_weight
from certtrain.training.compilation import Compiled, Function
from certtrain.training.distributed import ALONE, Group
from certtrain.training.micro_batches import Accumulated, Accumulation, Bounded, TrainingBatch, traces_in_parts
from certtrain.training.objective import SMALLEST_EPS, LinearShare, LossTerms, Regularizers, loss_terms
from certtrain.training.optimizer import Adam
from certtrain.verdicts import certified_points, correct_points

LARGEST_RATE = torch.finfo(torch.float32).max  # that the optimiser's own scalar holds


class Controls(NamedTuple):
    """What the schedules say in one step, as scalars on the device, so that one compiled graph serves all steps."""

    eps: Tensor
    certified: Tensor
    tightness: Tensor
    relu_balance: Tensor
    linear: Tensor


class Parts(NamedTuple):
    """What a step computes besides interval bounds; with each other choice it is compiled anew."""

    regularizers: bool
    linear: bool


class Reading(NamedTuple):
    """Sums over examples since they were last set, and the first step that was not finite, if any."""

    sums: dict[str, float]
    failed: int | None


def _fail(reason: str) -> None:
    raise DeviceError(f"{reason}; choose --compile off")


class Stepper:
    """A network with its optimiser; each step is a function of the preset, the step's number and their state."""

    def __init__(
        self,
        preset: Preset,
        network: nn.Module,
        steps_per_epoch: int,
        *,
        compile: bool = False,
        on_failure: Callable[[str], None] = _fail,
        group: Group = ALONE,
    ) -> None:
        self.preset, self.network, self.steps_per_epoch, self.compile = preset, network, steps_per_epoch, compile
        self.group = group
        alone = group.size == 1
        self.statistics: StatisticsFunction = batch_statistics if alone else pooled_statistics(group.gathered)
        self.graph = checked_graph(network)
        check_trainable(self.graph)
        self.device = next(network.parameters()).device
        self.optimizer = Adam(network.parameters(), self._scalar(preset.train.learning_rate), fused=True)
        self.bad = torch.zeros((), dtype=torch.float32, device=self.device)
        self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]  # the fused Adam does nothing while it is 1
        self.average = copy.deepcopy(network) if preset.train.average > 0 else None
        self.compiled = Compiled(self._loss, on_failure) if compile else None
        self.sums = torch.zeros(len(self.measures()) + 1, dtype=torch.float64, device=self.device)
        self.failed = torch.full((), -1, device=self.device)

    # --- schedules ---------------------------------------------------------------------------------------

    def eps(self, step: int) -> float:
        """ε in the 0-based `step`."""
        ramp = self.preset.eps
        return eps_at(
            step, steps_per_epoch=self.steps_per_epoch, start=ramp.start, length=ramp.length, eps_max=self._eps_max()
        )

    def learning_rate(self, step: int) -> float:
        """Adam's learning rate in the 0-based `step`."""
        settings, per_epoch = self.preset.train, self.steps_per_epoch
        if settings.schedule == "linear":
            steps, warmup = settings.epochs * per_epoch, round(settings.warmup * per_epoch)
            return linear_rate_at(step, base=settings.learning_rate, steps=steps, warmup=warmup)
        return learning_rate_at(
            step // per_epoch, base=settings.learning_rate, milestones=settings.milestones, decay=settings.decay
        )

    def _eps_max(self) -> float:
        return min(self.preset.eps.max * self.preset.eps.train_factor, 1.0)

    def _controls(self, step: int) -> Controls:
        eps, settings = self.eps(step), self.preset.regularizer
        warm = warmup_weight(eps, eps_max=self._eps_max())
        weight = settings.weight * warm
        weights = (weight * settings.tightness, weight * settings.relu_balance, warm)
        values = (max(eps, SMALLEST_EPS), float(eps > 0), *weights)
        dtype = next(self.network.parameters()).dtype
        return Controls(*torch.tensor(values, dtype=dtype).to(self.device, non_blocking=True).unbind())

    def _parts_of(self, step: int) -> Parts:
        """What the step computes of what fades out with the warm-up.

        In a compiled step the regularisers cost less than compiling it again;
        linear bounds cost more.
        """
        settings, eps = self.preset.regularizer, self.eps(step)
        warming = eps < self._eps_max()
        linear = self.preset.bounds.method == "crown-ibp" and self.preset.eps.length > 0
        regularized = settings.weight > 0 and (settings.tightness or settings.relu_balance)
        kept = self.compile and not linear
        return Parts(regularized and (warming or kept), linear and warming and (eps > 0 or self.compile))

    # --- the step ----------------------------------------------------------------------------------------

    def run(self, step: int, x: Tensor, labels: Tensor, share: float = 1.0) -> None:
        """Update the network by the pixels `x` (B, C, H, W) with `labels` (B,), this rank's `share` of the batch.

        If the loss or the gradient is not finite, on whichever rank, neither
        this step nor any later one changes the weights, and `read` says so.
        """
        with tensor_cores(self.preset.train.precision == "tf32"):  # the backward pass as well
            measured = self._gradient(step, x, labels, share)
        bad = (~torch.stack(list(measured.values())).isfinite().all()).float()
        norm = self._whole_gradient(bad)
        row = torch.stack([*measured.values(), norm, torch.ones_like(norm)]).detach()
        self._note_failure(step, (bad > 0) | ~norm.isfinite())
        self.sums += row.double() * len(labels)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(min(self.learning_rate(step), LARGEST_RATE))
        self.optimizer.step()
        if self.average is not None:
            _follow(self.average, self.network, self.preset.train.average)

    @property
    def result(self) -> nn.Module:
        """The network that the training is for: the moving average where there is one."""
        return self.network if self.average is None else self.average

    def _gradient(self, step: int, x: Tensor, labels: Tensor, share: float) -> dict[str, Tensor]:
        """The gradient of this rank's share of the loss; the ranks' shares add up to the whole batch's loss."""
        x, controls, parts = _channels_last(x), self._controls(step), self._parts_of(step)
        if self.preset.train.micro_batch is not None:
            self.optimizer.zero_grad()
            return self._accumulate(x, labels, controls, parts, share)

        def descend(loss: Function) -> dict[str, Tensor]:
            self.optimizer.zero_grad()
            with self._arithmetic():
                total, measured = loss(x, labels, controls, parts)
            (total * share).backward()
            return dict(measured)

        # A compiled graph is of one size; of an epoch's last batch, where it is smaller, none is made.
        size = self.preset.train.batch_size
        whole = len(x) == len(range(size)[part_of(size, self.group.rank, self.group.size)])
        return self.compiled.use(descend) if self.compiled and whole else descend(self._loss)

    def _accumulate(
        self, x: Tensor, labels: Tensor, controls: Controls, parts: Parts, share: float
    ) -> dict[str, Tensor]:
        """The same gradient, from a few examples at a time."""

        def bound(x: Tensor, labels: Tensor, statistics: StatisticsSource) -> Bounded:
            trace = trace_bounds(self.graph, input_box(x, controls.eps), statistics=statistics)
            return Bounded(trace.margins(labels), trace)

        weights = self._weights(controls, parts)
        batch = TrainingBatch(x, labels, bound, controls.certified, weights, share)
        passed = Accumulated(self._in_parts(), batch)
        remember(passed.statistics)
        return _measure(passed.terms, passed.logits, labels)

    def _in_parts(self) -> Accumulation:
        size, pool = self.preset.train.micro_batch or 1, self.group.total
        return Accumulation(self.graph, size, self.statistics, pool, self._arithmetic)

    def _whole_gradient(self, bad: Tensor) -> Tensor:
        """Add up the ranks' gradients, and `bad` with them, and cut the gradient to its largest norm; the norm."""
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        self.group.add_up([*gradients, bad])
        return nn.utils.clip_grad_norm_(self.network.parameters(), self.preset.train.clip_norm)

    def _loss(self, x: Tensor, labels: Tensor, controls: Controls, parts: Parts) -> tuple[Tensor, dict[str, Tensor]]:
        box = input_box(x, controls.eps, with_clean=self._with_clean())
        trace = trace_bounds(self.graph, box, statistics=self.statistics)
        remember(trace.statistics)
        terms = loss_terms(
            trace,
            labels,
            certified=controls.certified,
            regularizers=self._weights(controls, parts),
            linear=LinearShare(controls.linear, self.preset.bounds.loss_fusion) if parts.linear else None,
            pool=self.group.total,
        )
        return terms.total, _measure(terms, trace.clean, labels)

    def _weights(self, controls: Controls, parts: Parts) -> Regularizers | None:
        tolerance = self.preset.regularizer.tolerance
        return Regularizers(controls.tightness, controls.relu_balance, tolerance) if parts.regularizers else None

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

    # --- what was measured -------------------------------------------------------------------------------

    def measures(self) -> list[str]:
        """The names of what a step measures, in the order of the sums."""
        natural = ["natural_loss", "natural_accuracy"] if self._with_clean() else []
        names = ["loss", "robust_loss", "tightness_loss", "relu_balance_loss", "layers_without_balance"]
        return [*names, "certified_accuracy", *natural, "gradient_norm"]

    def read(self) -> Reading:
        """Wait for the device, and read what all steps since `set_sums` have measured, over all ranks."""
        *sums, failed = torch.cat([self.group.total(self.sums), self.failed.double().unsqueeze(0)]).tolist()
        names = [*self.measures(), "examples"]
        return Reading(dict(zip(names, sums, strict=True)), int(failed) if failed >= 0 else None)

    def set_sums(self, sums: dict[str, float]) -> None:
        """Go on adding to these, which are over all ranks; an empty mapping starts anew."""
        mine = sums if self.group.leads else {}
        values = [mine.get(name, 0.0) for name in [*self.measures(), "examples"]]
        self.sums.copy_(torch.tensor(values, dtype=torch.float64))

    def _traces(self, step: int, x: Tensor) -> Iterator[BoundTrace]:
        """The boxes of this rank's part of a batch, as the step computes them."""
        eps, size = max(self.eps(step), SMALLEST_EPS), self.preset.train.micro_batch or len(x)
        box = input_box(_channels_last(x), eps, with_clean=self._with_clean())
        return traces_in_parts(self.graph, box, size, statistics=self.statistics)

    def explain(self, step: int, x: Tensor, labels: Tensor) -> str:
        """What was not finite in a step that failed: the first such value, and the layer it comes from.

        All ranks ask together, each with its part of the batch, and all get the same answer.
        """
        with tensor_cores(self.preset.train.precision == "tf32"):
            measured = self._gradient(step, x, labels, share=1.0)
        with self._arithmetic():
            culprit = self._culprit(self._traces(step, x))
        measured |= {"gradient_norm": self._whole_gradient(self._scalar(0.0))}
        bad = [f"{name} is {value.item()}" for name, value in measured.items() if not isfinite(value.item())]
        what = self.group.first(bad[0] if bad else None) or "its loss was not finite"
        return f"step {step}: {what}; {self.group.first(culprit) or 'all bounds and gradients are finite'}"

    def _culprit(self, traces: Iterator[BoundTrace]) -> str | None:
        boxes = ((name, box) for trace in traces for name, box in [*trace.relu_boxes, ("head", trace.logits.box)])
        for name, box in boxes:
            for what, tensor in (("clean values", box.clean), ("centres", box.centre), ("widths", box.radius)):
                if tensor is not None and not bool(tensor.isfinite().all()):
                    return f"the first layer with a value that is not finite is {name!r} ({what})"
        for name, parameter in self.network.named_parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"all bounds are finite, but the gradient of {name!r} is not"
        return None


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average of weights and statistics towards the network's.

    torch's AveragedModel does the same, but keeps a counter on the CPU, for which it waits for a GPU twice a step.
    """
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _measure(terms: LossTerms, clean: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
    """All that is logged of a pass, in the order of `Stepper.measures`."""
    with torch.no_grad():
        measured = {
            "loss": terms.total,
            "robust_loss": terms.robust,
            "tightness_loss": terms.tightness,
            "relu_balance_loss": terms.relu_balance,
            "layers_without_balance": terms.skipped_layers.to(terms.total.dtype),
            "certified_accuracy": certified_points(terms.margins, labels).float().mean(),
        }
        if clean is not None:
            natural = correct_points(clean, labels).float().mean()
            measured |= {"natural_loss": terms.natural, "natural_accuracy": natural}
        return {name: value.detach() for name, value in measured.items()}
