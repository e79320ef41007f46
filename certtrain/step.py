"""One training step: a pass, its loss, a gradient, an update; nothing is done where something is not finite."""

from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.interval import boundable
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.certificate import CLIP
from certtrain.errors import NonFiniteError
from certtrain.objective import SMALLEST_EPS, LossTerms, Regularizers, certified_points, correct_points, loss_terms
from certtrain.preset import Preset
from certtrain.schedule import eps_at, learning_rate_at, regularizer_weight


class StepResult(NamedTuple):
    """What was measured in a step, and the pass it came from."""

    measured: dict[str, float]
    trace: BoundTrace


class Stepper:
    """A network with its optimiser; each step is a function of the preset, the step's number and their state."""

    def __init__(self, preset: Preset, network: nn.Sequential, steps_per_epoch: int) -> None:
        self.preset, self.network, self.steps_per_epoch = preset, network, steps_per_epoch
        self.graph = boundable(network)
        self.optimizer = torch.optim.Adam(network.parameters(), preset.train.learning_rate, fused=True)

    def eps(self, step: int) -> float:
        """ε in the 0-based `step`."""
        ramp = self.preset.eps
        return eps_at(
            step, steps_per_epoch=self.steps_per_epoch, start=ramp.start, length=ramp.length, eps_max=self._eps_max()
        )

    def learning_rate(self, step: int) -> float:
        """Adam's learning rate in the 0-based `step`."""
        settings = self.preset.train
        return learning_rate_at(
            step // self.steps_per_epoch,
            base=settings.learning_rate,
            milestones=settings.milestones,
            decay=settings.decay,
        )

    def run(self, step: int, x: Tensor, labels: Tensor) -> StepResult:
        """Update the network by the pixels `x` (B, C, H, W) with `labels` (B,).

        Raises NonFiniteError, and leaves the weights alone, if the loss or the gradient is not finite.
        """
        eps = self.eps(step)
        self.network.train()
        trace = trace_bounds(self.graph, _channels_last(x), max(eps, SMALLEST_EPS), CLIP)
        terms = loss_terms(trace, labels, certified=eps > 0, regularizers=self._regularizers(eps))
        self.optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.preset.train.clip_norm)
        measured = _measure(terms, norm, trace, labels)
        self._require_finite(step, measured, trace)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.step()
        return StepResult(measured, trace)

    def _eps_max(self) -> float:
        return min(self.preset.eps.max * self.preset.eps.train_factor, 1.0)

    def _regularizers(self, eps: float) -> Regularizers | None:
        """None once the warm-up is over, or where the preset has none: then they cost nothing."""
        settings = self.preset.regularizer
        weight = regularizer_weight(eps, eps_max=self._eps_max(), weight=settings.weight)
        if weight == 0 or not (settings.tightness or settings.relu_balance):
            return None
        return Regularizers(weight * settings.tightness, weight * settings.relu_balance, settings.tolerance)

    def _require_finite(self, step: int, measured: dict[str, float], trace: BoundTrace) -> None:
        bad = [name for name, value in measured.items() if not isfinite(value)]
        if bad:
            raise NonFiniteError(f"step {step}: {bad[0]} is {measured[bad[0]]}; {self._culprit(trace)}")

    def _culprit(self, trace: BoundTrace) -> str:
        for name, box in [*trace.relu_boxes, ("head", trace.logits.box)]:
            for what, tensor in (("clean values", box.clean), ("centres", box.centre), ("widths", box.radius)):
                if tensor is not None and not bool(tensor.isfinite().all()):
                    return f"the first layer with a value that is not finite is {name!r} ({what})"
        for name, parameter in self.network.named_parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                return f"all bounds are finite, but the gradient of {name!r} is not"
        return "all bounds and gradients are finite"


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _measure(terms: LossTerms, norm: Tensor, trace: BoundTrace, labels: Tensor) -> dict[str, float]:
    """All that is logged of a step, read from the device at once."""
    with torch.no_grad():
        values = {
            "loss": terms.total,
            "robust_loss": terms.robust,
            "natural_loss": terms.natural,
            "tightness_loss": terms.tightness,
            "relu_balance_loss": terms.relu_balance,
            "layers_without_balance": terms.skipped_layers.to(terms.total.dtype),
            "gradient_norm": norm,
            "natural_accuracy": correct_points(trace.clean, labels).float().mean(),
            "certified_accuracy": certified_points(trace.margins(labels), labels).float().mean(),
        }
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
