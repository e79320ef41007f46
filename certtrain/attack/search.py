"""The attack on a batch: several attacks in order, each on the examples that are still robust."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.attack.apgd import run_apgd
from certtrain.attack.criterion import Misclassification, batch_of
from certtrain.attack.descent import run_pgd
from certtrain.attack.losses import loss_of
from certtrain.attack.settings import APGD, AttackSettings, SingleAttack, Strong
from certtrain.attack.state import AttackState
from certtrain.bounds.box import PIXEL_RANGE
from certtrain.bounds.checks import check_input, check_labels, shape_errors_as_data_errors
from certtrain.spec.epsilon import parse_eps


class AttackResult(NamedTuple):
    """Which examples (B,) are falsified, and their counterexamples (B, …); the centre for the others."""

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
) -> AttackResult:
    """Search the boxes of radius `eps` around pixels `x` (B, …), cut to [0, 1], for misclassified inputs.

    The clean inputs are tried first, so a misclassified example counts as
    falsified; a tie of logits counts as misclassified, and so does NaN. Each attack
    of `settings` works on the examples that are still robust, so one more attack
    never falsifies fewer. A counterexample is in the exact box, and inference in
    `arithmetic` ("float32", "tf32", "bf16"; see `computing_in`) misclassifies it both
    in its batch and in a batch of one.

    `index` is the number of the first example in its set, or of every example (B,).
    With the seed it determines the random starts, so these do not depend on how a
    set is cut into batches. `stop` is called before every step; once it returns True,
    the attack ends with what it has found. Raises DataError, EpsilonError or MethodError.
    """
    check_input(x, PIXEL_RANGE)
    eps, numbers = parse_eps(eps), _numbers(index, len(labels))
    criterion = Misclassification(model, arithmetic)
    with shape_errors_as_data_errors(x), torch.no_grad():
        logits = criterion.outputs(x)
    check_labels(labels, logits.shape)
    state = AttackState(criterion, batch_of(x, labels, eps), numbers, stop)
    state.record(state.batch, x, logits)
    for each in _single(settings):
        if eps > 0:
            _run(state, each, logits)
    return AttackResult(state.falsified, state.adversarial)


def _single(settings: AttackSettings | Sequence[AttackSettings]) -> Iterator[SingleAttack]:
    """The attacks one by one; a union is taken apart."""
    for each in settings if isinstance(settings, Sequence) else (settings,):
        yield from each.parts if isinstance(each, Strong) else (each,)


def _run(state: AttackState, settings: SingleAttack, logits: Tensor) -> None:
    """All restarts of one attack, each against every target in turn if it is targeted."""
    classes = logits.shape[1]
    loss, run = loss_of(settings, classes), run_apgd if isinstance(settings, APGD) else run_pgd
    for restart in range(settings.restarts):
        for rank in range(min(settings.targets, classes - 1)) if settings.targets else (None,):
            batch = state.remaining(_targets(logits, state.batch.labels, rank or 0))
            if state.finished(batch):
                return
            draws = state.random(batch, settings.seed, settings.name, restart, -1 if rank is None else rank)
            run(state, batch, draws, loss, settings.steps)


def _targets(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The wrong class (B,) with the `rank`-th largest logit, counted from 0."""
    others = logits.float().scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, rank]


def _numbers(index: int | Tensor, count: int) -> Tensor:
    return index.cpu() if isinstance(index, Tensor) else torch.arange(index, index + count)
