"""The attack on a batch: one attack after the other, each on the points that those before it left robust."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.attack import apgd, descent
from certtrain.attack.losses import Loss, loss_of
from certtrain.attack.settings import APGD, Settings
from certtrain.attack.state import AttackState, batch_of
from certtrain.bounds.checks import check_input, shape_errors_as_data_errors
from certtrain.spec.epsilon import parse_eps


class Attacked(NamedTuple):
    """Which points (B,) are misclassified at some input in their box, and those inputs (B, …); others as they were."""

    falsified: Tensor
    adversarial: Tensor


def attack(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    settings: Settings | Sequence[Settings],
    index: int | Tensor = 0,
    *,
    arithmetic: str = "float32",
    stop: Callable[[], bool] = lambda: False,
) -> Attacked:
    """Search the boxes of radius `eps` around pixels `x` (B, …), cut to [0, 1], for misclassified inputs.

    The clean inputs are tried first, so a point that is misclassified already
    counts as falsified; a tie of logits is an error, and so is NaN. Each attack of
    `settings` works on the points that are still robust: one more attack never
    breaks fewer. What is found lies in the box of real numbers, and plain
    inference in `arithmetic` ("float32", "tf32", "bf16"; see `running`)
    misclassifies it both in its batch and alone.

    `index` is the first example's number in its set, or every one's (B,): with
    the seed it decides the random starts, so these do not depend on how a set
    is cut into batches. `stop` is asked before every step; once it says True,
    what was found so far is returned. Raises DataError, EpsilonError or MethodError.
    """
    check_input(x, (0.0, 1.0))
    eps, numbers = parse_eps(eps), _numbers(index, len(labels))
    with shape_errors_as_data_errors(x):
        state = AttackState(model, batch_of(x, labels, eps), numbers, arithmetic, stop)
    for one in (settings,) if not isinstance(settings, Sequence) else settings:
        if eps > 0:
            _run(state, one, eps)
    return Attacked(state.falsified, state.adversarial)


def _run(state: AttackState, settings: Settings, eps: float) -> None:
    """Every restart against every target, or against none in particular."""
    classes = state.logits.shape[1]
    loss: Loss = loss_of(settings, classes)
    climb = apgd.run if isinstance(settings, APGD) else descent.run
    for restart in range(settings.restarts):
        for rank in range(min(settings.targets, classes - 1)) if settings.targets else (None,):
            work = state.work(rank)
            if state.over(work):
                return
            draws = state.random(work, settings.seed, settings.name, restart, -1 if rank is None else rank)
            climb(state, work, draws, loss, eps, settings.steps)


def _numbers(index: int | Tensor, count: int) -> Tensor:
    return index.cpu() if isinstance(index, Tensor) else torch.arange(index, index + count)
