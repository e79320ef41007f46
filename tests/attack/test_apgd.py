"""Auto-PGD by hand: its checkpoints, its losses, the two conditions and the momentum."""

import pytest
import torch
from torch import Tensor, nn

from certtrain.attack import APGD, PGD, AttackSettings, attack, losses
from certtrain.attack.apgd import MOMENTUM, Iterates, _checked, _next, checkpoints
from certtrain.attack.criterion import batch_of

LOGITS = torch.tensor([[5.0, 3.0, 2.0, -1.0, 0.0], [1.0, 4.0, 2.0, 0.0, 3.0]])
LABELS, TARGETS = torch.tensor([0, 0]), torch.tensor([2, 4])


def test_the_checkpoints_are_the_papers():
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [0, 1]
    assert checkpoints(10) == [0, 3, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("loss", "values"),
    [
        (losses.margin, [-2.0, 3.0]),
        (losses.targeted_margin, [-3.0, 2.0]),
        (losses.ratio, [-2 / 3, 3 / 2]),
        (losses.targeted_ratio, [-3 / (5 - 1), 2 / (4 - 1.5)]),
    ],
)
def test_losses_by_hand(loss: losses.Loss, values: list[float]):
    assert loss(LOGITS, LABELS, TARGETS).tolist() == pytest.approx(values)


def test_the_ratio_does_not_change_with_the_scale_or_a_shift():
    for loss in (losses.ratio, losses.targeted_ratio):
        assert torch.allclose(loss(7 * LOGITS + 3, LABELS, TARGETS), loss(LOGITS, LABELS, TARGETS))


def test_cross_entropies_by_hand():
    shares = LOGITS.exp() / LOGITS.exp().sum(1, keepdim=True)
    rows = torch.arange(2)
    assert torch.allclose(losses.cross_entropy(LOGITS, LABELS, TARGETS), -shares[rows, LABELS].log())
    assert torch.allclose(losses.targeted_cross_entropy(LOGITS, LABELS, TARGETS), shares[rows, TARGETS].log())


@pytest.mark.parametrize(
    ("settings", "classes", "loss"),
    [
        (PGD(), 10, losses.margin),
        (PGD(targets=1), 10, losses.targeted_margin),
        (APGD(), 2, losses.cross_entropy),
        (APGD("ce", targets=2), 3, losses.targeted_cross_entropy),
        (APGD("dlr"), 3, losses.ratio),
        (APGD("dlr"), 2, losses.margin),
        (APGD("dlr", targets=9), 4, losses.targeted_ratio),
        (APGD("dlr", targets=9), 3, losses.targeted_margin),
    ],
)
def test_the_ratio_gives_way_to_the_margin_where_classes_are_few(
    settings: AttackSettings, classes: int, loss: losses.Loss
):
    assert losses.loss_of(settings, classes) is loss


def climb(rises: list[int], halved: list[bool], best: list[float], checked: list[float]) -> Iterates:
    """At a checkpoint: the point is 0 and the best one 1, their gradients 2 and 3; the loss is −1."""
    one = torch.ones(len(rises))
    column = one.unsqueeze(1)
    return Iterates(
        point=0 * column,
        previous=-column,
        gradient=2 * column,
        loss=-one,
        best=column,
        best_gradient=3 * column,
        best_loss=torch.tensor(best),
        step=one,
        rises=torch.tensor(rises),
        halved=torch.tensor(halved),
        checked=torch.tensor(checked),
    )


def test_steps_are_halved_by_the_two_conditions():
    """Of 4 steps, 3 must rise; or else the best loss must have grown, unless the step was just halved."""
    before = climb([3, 2, 3, 3], [False, False, False, True], [5.0, 5.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0])
    after = _checked(before, 4)
    assert after.halved.tolist() == [False, True, True, False]
    assert after.step.tolist() == [1, 0.5, 0.5, 1]
    assert after.point.flatten().tolist() == [0, 1, 1, 0]
    assert after.gradient.flatten().tolist() == [2, 3, 3, 2]
    assert after.loss.tolist() == [-1, 5, 4, -1]
    assert after.previous.flatten().tolist() == [-1] * 4
    assert after.rises.tolist() == [0] * 4
    assert torch.equal(after.checked, before.best_loss)


def test_a_step_keeps_a_quarter_of_the_last_move():
    """Up by 0.4 of the radius 0.5 from 0.5, after a move of 0.1: three quarters of one, one quarter of the other."""
    x = torch.full((1, 1), 0.5)
    state = climb([0], [False], [0.0], [0.0])._replace(point=x, previous=x - 0.1, step=torch.tensor([0.4]))
    assert _next(state, batch_of(x, torch.zeros(1), 0.5), MOMENTUM).item() == pytest.approx(0.5 + 0.15 + 0.025)
    narrow = batch_of(x, torch.zeros(1), 0.1)._replace(radius=0.5)
    assert _next(state, narrow, MOMENTUM).item() == pytest.approx(0.5 + 0.075 + 0.025)
    assert _next(state, batch_of(x, torch.zeros(1), 0.5), 1.0).item() == pytest.approx(0.7)


class Valley(nn.Module):
    """One pixel: class 0 wins everywhere but in a narrow place, beside which the slope is gentle."""

    def forward(self, x: Tensor) -> Tensor:
        distance = (x - 0.6137).abs()
        return torch.cat([distance, torch.full_like(x, 0.002)], dim=1)


def test_small_steps_find_what_large_ones_leap_over():
    x, labels = torch.full((1, 1), 0.5), torch.zeros(1, dtype=torch.long)
    assert attack(Valley(), x, labels, 0.4, APGD("dlr")).falsified.all()
    assert attack(Valley(), x, labels, 0.4, APGD()).falsified.all()


class Written(nn.Module):
    """The margin is the pixel plus 1, and what is asked is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.item())
        return torch.cat([x + 1, torch.zeros_like(x)], dim=1)


def test_the_first_steps_by_hand():
    """Down from the start by 2ε, to the end of the box, and there it stays; a start is as far out as the box."""
    model, x = Written(), torch.full((1, 1), 0.5)
    attack(model, x, torch.zeros(1, dtype=torch.long), 0.25, APGD(steps=3))
    clean, start, *others = model.asked
    assert clean == 0.5
    assert start in (0.25, 0.75)
    assert others == [0.25] * 3
