"""The attack on a batch: one attack after the other, each on the examples that those before it left robust."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.attack.apgd import run_apgd
from certtrain.attack.criterion import Misclassification, batch_of
from certtrain.attack.descent import run_pgd
from certtrain.attack.losses import loss_of
from certtrain.attack.settings import APGD, AttackSettings
from certtrain.attack.state import AttackState
from certtrain.bounds.box import PIXEL_RANGE
from certtrain.bounds.checks import check_input, check_labels, shape_errors_as_data_errors
from certtrain.spec.epsilon import parse_eps


class Attacked(NamedTuple):
    """Which examples (B,) are misclassified at some input of their box, and those inputs (B, …); else the centre."""

    falsified: Tensor
    adversarial: Tensor


def attack(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    settings: AttackSettings | Sequence[AttackSettings],
    index: int | Tensor = 0,
    *,
    arithmetic: str = "float32",
    stop: Callable[[], bool] = lambda: False,
) -> Attacked:
    """Search the boxes of radius `eps` around pixels `x` (B, …), cut to [0, 1], for misclassified inputs.

    The clean inputs are tried first, so an example that is misclassified already
    counts as falsified; a tie of logits is an error, and so is NaN. Each attack of
    `settings` works on the examples that are still robust: one more attack never
    falsifies fewer. What is found lies in the box of real numbers, and plain
    inference in `arithmetic` ("float32", "tf32", "bf16"; see `running`)
    misclassifies it both in its batch and alone.

    `index` is the first example's number in its set, or every one's (B,): with
    the seed it decides the random starts, so these do not depend on how a set
    is cut into batches. `stop` is asked before every step; once it says True,
    what was found so far is returned. Raises DataError, EpsilonError or MethodError.
    """
    check_input(x, PIXEL_RANGE)
    eps, numbers = parse_eps(eps), _numbers(index, len(labels))
    criterion = Misclassification(model, arithmetic)
    with shape_errors_as_data_errors(x), torch.no_grad():
        logits = criterion.outputs(x)
    check_labels(labels, logits.shape)
    state = AttackState(criterion, batch_of(x, labels, eps), numbers, stop)
    state.note(state.batch, x, logits)
    for one in (settings,) if not isinstance(settings, Sequence) else settings:
        if eps > 0:
            _run(state, one, logits)
    return Attacked(state.falsified, state.adversarial)


def _run(state: AttackState, settings: AttackSettings, logits: Tensor) -> None:
    """Every restart against every target, or against none in particular."""
    classes = logits.shape[1]
    loss, run = loss_of(settings, classes), run_apgd if isinstance(settings, APGD) else run_pgd
    for restart in range(settings.restarts):
        for rank in range(min(settings.targets, classes - 1)) if settings.targets else (None,):
            work = state.work(_targets(logits, state.batch.labels, rank or 0))
            if state.over(work):
                return
            draws = state.random(work, settings.seed, settings.name, restart, -1 if rank is None else rank)
            run(state, work, draws, loss, settings.steps)


def _targets(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The other class (B,) that is `rank`-th likeliest, from 0."""
    others = logits.float().scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, rank]


def _numbers(index: int | Tensor, count: int) -> Tensor:
    return index.cpu() if isinstance(index, Tensor) else torch.arange(index, index + count)
