"""The L1 norm of the weights in the loss. It depends on no example, so a step adds its gradient once."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from certtrain.bounds.graph import LayerGraph

L1_LOSS = "l1_loss"  # the name of its measure


class L1Penalty:
    """`factor` · Σ|w| over the weights w of the convolutions and linear layers of `graph`, without their biases.

    A weight that several calls share counts once. With `factor` 0 there is no penalty, and nothing is computed or
    measured.
    """

    def __init__(self, graph: LayerGraph, factor: float) -> None:
        layers = dict.fromkeys(c.layer for c in graph.calls if isinstance(c.layer, nn.Linear | nn.Conv2d))
        weights = dict.fromkeys(layer.weight for layer in layers if layer.weight.requires_grad)
        self.weights, self.factor = list(weights) if factor > 0 else [], factor

    @torch.no_grad()
    def measured(self, measures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The `measures` of a step with the penalty's own, and with a loss that includes it."""
        if not self.weights:
            return dict(measures)
        penalty = self.factor * torch.stack(torch._foreach_norm(self.weights, 1)).sum()
        return {**measures, "loss": measures["loss"] + penalty, L1_LOSS: penalty}

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add `factor` · sign(w) to the gradient of each weight w."""
        if not self.weights:
            return
        gradients = [_gradient_of(weight) for weight in self.weights]
        torch._foreach_add_(gradients, torch._foreach_sign(self.weights), alpha=self.factor)


def _gradient_of(weight: Tensor) -> Tensor:
    if weight.grad is None:  # nothing else in the loss depends on it
        weight.grad = torch.zeros_like(weight)
    return weight.grad
