"""A preset's schedules: ε, learning rate and the weights in the loss, as functions of the step alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.spec.preset import Preset
from certtrain.spec.schedule import cosine_rate_at, eps_at, learning_rate_at, linear_rate_at, warmup_weight
from certtrain.training.loss import SMALLEST_EPS


class Controls(NamedTuple):
    """The values of the schedules in one step, as scalars on the device, so that all steps share a compiled graph."""

    eps: Tensor
    robust_share: Tensor
    tightness: Tensor
    relu_balance: Tensor
    warmup: Tensor


class ActiveTerms(NamedTuple):
    """Which terms a step computes; each combination needs a compiled graph of its own.

    fading: those of the objective that fade out with the warm-up.
    """

    regularizers: bool
    fading: bool


class Schedules:
    """The schedules of a run by `preset`; steps are counted from 0."""

    def __init__(self, preset: Preset, steps_per_epoch: int) -> None:
        self.preset, self.steps_per_epoch = preset, steps_per_epoch
        self.eps_max = min(preset.eps.max * preset.eps.train_factor, 1.0)

    def eps(self, step: int) -> float:
        """ε in `step`."""
        ramp = self.preset.eps
        return eps_at(
            step, steps_per_epoch=self.steps_per_epoch, start=ramp.start, length=ramp.length, eps_max=self.eps_max
        )

    def positive_eps(self, step: int) -> float:
        """ε in `step`; while it is zero, the smallest radius at which boxes have a width."""
        return max(self.eps(step), SMALLEST_EPS)

    def learning_rate(self, step: int) -> float:
        """The optimiser's learning rate in `step`."""
        settings, per_epoch = self.preset.train, self.steps_per_epoch
        if settings.schedule == "steps":
            return learning_rate_at(
                step // per_epoch, base=settings.learning_rate, milestones=settings.milestones, decay=settings.decay
            )
        rate_at = linear_rate_at if settings.schedule == "linear" else cosine_rate_at
        steps, warmup = settings.epochs * per_epoch, round(settings.warmup * per_epoch)
        return rate_at(step, base=settings.learning_rate, steps=steps, warmup=warmup)

    def controls(self, step: int, like: Tensor) -> Controls:
        """The values of the schedules in `step`, with the type and the device of `like`."""
        eps, settings = self.eps(step), self.preset.regularizer
        warm = warmup_weight(eps, eps_max=self.eps_max)
        weight = settings.weight * warm
        weights = (weight * settings.tightness, weight * settings.relu_balance, warm)
        robust = float(eps > 0) * (1 - self.preset.objective.share_at(eps, self.eps_max))
        values = (max(eps, SMALLEST_EPS), robust, *weights)
        return Controls(*torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True).unbind())

    def active_terms(self, step: int, *, compiled: bool, fades: bool) -> ActiveTerms:
        """Which of the terms that fade out with the warm-up are computed in `step`; `fades`: the objective has some.

        A compiled step keeps computing the regularisers after the warm-up, which
        costs less than compiling it again. Terms of the objective would cost more.
        """
        settings, eps = self.preset.regularizer, self.eps(step)
        warming = eps < self.eps_max
        fading = fades and self.preset.eps.length > 0
        regularized = settings.weight > 0 and (settings.tightness or settings.relu_balance)
        kept = compiled and not fading
        return ActiveTerms(regularized and (warming or kept), fading and warming and (eps > 0 or compiled))
