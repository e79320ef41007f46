"""torch's optimisers without the wrappers that are meant for torch.compile; here no optimiser is compiled.

torch wraps an optimiser's methods so that torch.compile does not compile them.
The wrappers load torch._dynamo at their first call, which takes a third of the
time from the start of a command to its first training step
(`benchmarks/startup.py`).
"""

from collections.abc import Iterable
from inspect import unwrap
from typing import TypeVar

import torch
from torch import Tensor, nn

from certtrain.spec.preset import TrainSection

LARGEST_RATE = torch.finfo(torch.float32).max  # the fused optimisers keep the learning rate in float32

_Kind = TypeVar("_Kind", bound=type[torch.optim.Optimizer])


def _unwrapped(kind: _Kind) -> _Kind:
    """The class with torch's methods without their wrappers; results are the same to the last bit."""
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        setattr(kind, name, unwrap(getattr(kind, name)))
    kind.step = torch.no_grad()(unwrap(kind.step))  # type: ignore[method-assign]
    return kind


@_unwrapped
class Adam(torch.optim.Adam):
    """torch's Adam (Kingma and Ba 2015)."""


@_unwrapped
class AdamW(torch.optim.AdamW):
    """torch's AdamW (Loshchilov and Hutter 2019)."""


@_unwrapped
class SGD(torch.optim.SGD):
    """torch's SGD."""


@_unwrapped
class _PlainRAdam(torch.optim.RAdam):
    """torch's RAdam, which has no `found_inf`."""


class RAdam(_PlainRAdam):
    """torch's RAdam (Liu et al. 2020), with the `found_inf` of fused optimisers: while it is 1, weights do not change.

    Its learning rate is a float, and its numbers of steps are on the CPU, so that the factors of a step are computed
    there.
    """

    found_inf: Tensor

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights, or put them back without asking the device whether that is needed."""
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        before = [weight.clone() for weight in weights]
        super().step()
        for weight, kept in zip(weights, before, strict=True):
            weight.copy_(torch.where(self.found_inf > 0, kept, weight))


def make_optimizer(settings: TrainSection, parameters: Iterable[nn.Parameter], bad: Tensor) -> torch.optim.Optimizer:
    """The preset's optimiser of these parameters; while the scalar `bad`, on their device, is 1, no weight changes.

    adam and sgd add the weight decay to the gradient, adamw and radam shrink the weights by it. Whatever else torch's
    optimisers have keeps torch's default.
    """
    optimizer = _made(settings, parameters, torch.tensor(settings.learning_rate, device=bad.device))
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    return optimizer


def _made(settings: TrainSection, parameters: Iterable[nn.Parameter], rate: Tensor) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    if settings.optimizer == "radam":
        return RAdam(parameters, settings.learning_rate, weight_decay=decay, decoupled_weight_decay=True)
    if settings.optimizer == "sgd":
        return SGD(parameters, rate, settings.momentum, weight_decay=decay, fused=True)
    kind = AdamW if settings.optimizer == "adamw" else Adam
    return kind(parameters, rate, weight_decay=decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next steps have the learning rate `rate`, without waiting for the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(min(rate, LARGEST_RATE))
        else:
            group["lr"] = min(rate, LARGEST_RATE)
