"""A preset's schedules: what a step is given, on whichever device, and what it can leave out."""

import math

import pytest
import torch

from certtrain.spec.preset import load_preset
from certtrain.training.loss import SMALLEST_EPS
from certtrain.training.schedules import ActiveTerms, Schedules

PER_EPOCH = 10
NATURAL, RAMP, END = 5, 20, 35  # steps: ε is zero in epoch 1, rises in 2 and 3, and is at its end from 4 on


def schedules(**changes: object) -> Schedules:
    settings = {"eps.max": 0.1, "eps.start": 2, "eps.length": 2, "train.epochs": 5}
    return Schedules(
        load_preset("digits", settings | {name.replace("__", "."): value for name, value in changes.items()}), PER_EPOCH
    )


def test_the_controls_follow_eps():
    found, like = schedules(), torch.zeros((), dtype=torch.float64)
    natural, ramp, end = (found.controls(step, like) for step in (NATURAL, RAMP, END))
    assert [float(control.eps) for control in (natural, ramp, end)] == [SMALLEST_EPS, found.eps(RAMP), 0.1]
    assert [float(control.robust_share) for control in (natural, ramp, end)] == [0, 1, 1]
    share = 1 - found.eps(RAMP) / 0.1
    assert [float(control.tightness) for control in (natural, ramp, end)] == pytest.approx([0.5, 0.5 * share, 0])
    assert [float(control.warmup) for control in (natural, ramp, end)] == pytest.approx([1, share, 0])


def test_the_natural_share_follows_eps_to_its_end():
    found, like = schedules(objective__natural_share=0.8, objective__natural_share_end=0.2), torch.zeros(())
    shares = [1 - float(found.controls(step, like).robust_share) for step in (NATURAL, RAMP, END)]
    assert shares == pytest.approx([1, 0.8 - 0.6 * found.eps(RAMP) / 0.1, 0.2])
    constant = schedules(objective__natural_share=0.3)
    assert float(constant.controls(END, like).robust_share) == pytest.approx(0.7)


def test_the_controls_are_like_the_weights():
    controls = schedules().controls(RAMP, torch.zeros((), dtype=torch.float64, device="meta"))
    assert {(control.dtype, control.device.type, control.shape) for control in controls} == {
        (torch.float64, "meta", torch.Size())
    }


def test_a_radius_of_zero_is_replaced_where_boxes_need_a_width():
    found = schedules()
    assert (found.eps(NATURAL), found.positive_eps(NATURAL)) == (0.0, SMALLEST_EPS)
    assert found.positive_eps(END) == found.eps(END) == 0.1


def test_the_ramp_may_end_above_eps_but_not_above_all_pixels():
    assert schedules(eps__train_factor=1.5).eps(END) == pytest.approx(0.15)
    assert schedules(eps__train_factor=20.0).eps(END) == 1.0


def test_the_learning_rate_follows_the_presets_schedule():
    steps, others = {"train__milestones": [2], "train__decay": 0.5}, {"train__warmup": 1.0}
    found = {
        name: [
            schedules(train__schedule=name, train__learning_rate=1e-3, **own).learning_rate(step)
            for step in (4, 10, 30, 49)
        ]
        for name, own in (("steps", steps), ("linear", others), ("cosine", others))
    }
    assert found["steps"] == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4])
    assert found["linear"] == pytest.approx([5e-4, 1e-3, 5e-4, 2.5e-5])
    assert found["cosine"] == pytest.approx([5e-4, 1e-3, 5e-4, 1e-3 * (1 + math.cos(math.pi * 39 / 40)) / 2])


CASES = [
    ({}, False, [(True, False), (True, False), (False, False)]),
    ({}, True, [(True, False)] * 3),
    ({"regularizer__weight": 0.0}, False, [(False, False)] * 3),
    ({"objective__name": "crown-ibp"}, False, [(True, False), (True, True), (False, False)]),
    ({"objective__name": "crown-ibp"}, True, [(True, True), (True, True), (False, False)]),
]


@pytest.mark.parametrize(("changes", "compiled", "expected"), CASES)
def test_what_fades_out_is_left_out(changes: dict[str, object], compiled: bool, expected: list[tuple[bool, bool]]):
    fades = "objective__name" in changes
    found = [schedules(**changes).active_terms(step, compiled=compiled, fades=fades) for step in (NATURAL, RAMP, END)]
    assert found == [ActiveTerms(*terms) for terms in expected]
