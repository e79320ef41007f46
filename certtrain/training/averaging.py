"""Averages of the networks of a training, of which the trained network is one: a moving average, or a mean of epochs.

An average is moved after each step by the weight of the network in it, which is a function of the step alone. So a
checkpoint needs the average alone, and a resumed run equals one that was never stopped.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn

from certtrain.spec.preset import TrainSection

WeightAt = Callable[[int], float]  # the network's weight in the average after a 0-based step


class Average:
    """A copy of `network`, that `move` changes after each step; BatchNorm's running statistics are averaged too."""

    def __init__(self, network: nn.Module, weight_at: WeightAt) -> None:
        self.network, self.weight_at = copy.deepcopy(network), weight_at

    @torch.no_grad()
    def move(self, step: int, network: nn.Module) -> None:
        """Average with the weights and statistics that `network` has after `step`.

        torch's AveragedModel does the same, but keeps a counter on the CPU, and so waits for a GPU twice a step.
        """
        weight = self.weight_at(step)
        if weight == 0:
            return
        for mean, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point() and weight < 1:
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)


def make_average(settings: TrainSection, network: nn.Module, steps_per_epoch: int) -> Average | None:
    """The average that a preset asks for, of `network`; None if it asks for none."""
    if settings.average > 0:
        return Average(network, lambda step: 1 - settings.average)
    if (first := settings.average_from) is not None:
        return Average(network, lambda step: epoch_mean_weight(step, first=first, steps_per_epoch=steps_per_epoch))
    return None


def epoch_mean_weight(step: int, *, first: int, steps_per_epoch: int) -> float:
    """The weight after a 0-based `step` of the network in the mean over the ends of the epochs from `first` on.

    Stochastic weight averaging (Izmailov et al. 2018, algorithm 1). Epochs count from 1. Until epoch `first` ends the
    weight is 1, and the average is the network itself.
    """
    epochs, within = divmod(step + 1, steps_per_epoch)
    count = epochs - first + 1  # of the networks in the mean
    if count < 1:
        return 1.0
    return 0.0 if within else 1 / count
