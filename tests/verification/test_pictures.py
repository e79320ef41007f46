"""Single images: what is said of them holds."""

import time

import pytest
import torch

from certtrain import certify
from certtrain.attack import PGD
from certtrain.data import to_unit
from certtrain.verification.cascade import Limits, Work
from certtrain.verification.pictures import RADIUS_STEP, largest_radius, verify_pictures
from helpers.tiny_classifier import mostly_right

EPS = 0.05


def test_the_largest_radius_was_certified_and_a_step_more_was_not():
    tried: dict[float, bool] = {}

    def certified(radius: float, left: int) -> bool:
        assert 0 <= 12 - len(tried) - left <= 1, "each knows how many are left at most"
        tried[radius] = radius <= 0.1234
        return tried[radius]

    found = largest_radius(certified, 0.0, 1.0)
    assert tried[found]
    assert 0.1234 - RADIUS_STEP <= found <= 0.1234
    assert len(tried) in (11, 12)
    assert largest_radius(lambda radius, left: False, 0.0, 1.0) == 0.0
    assert largest_radius(lambda radius, left: False, 0.3, 1.0) == 0.3, "what is known stays"


@pytest.mark.parametrize("known", [0.01, 8 / 255, 0.1, 0.123])
def test_the_largest_radius_does_not_depend_on_what_is_known(known: float):
    def certified(radius: float, left: int) -> bool:
        return radius <= 0.1234

    assert largest_radius(certified, known, 1.0) == largest_radius(certified, 0.0, 1.0) == 314 * RADIUS_STEP


def test_the_radius_is_certified_and_no_point_within_it_has_another_class():
    model, data = mostly_right(30)
    found = verify_pictures(model, data.images, None, EPS, attack=PGD(), method="crown")
    assert len(found) == 30
    assert sum(result.radius > 0 for result in found) > 10
    generator = torch.Generator().manual_seed(0)
    for result, picture in zip(found, data.images, strict=True):
        x = to_unit(picture.unsqueeze(0))
        assert result.predicted == result.label == int(model(x).argmax())
        if result.radius == 0:
            continue
        label = torch.tensor([result.label])
        assert certify(model, x, label, result.radius, method="crown").verdicts == ("certified",)
        assert (result.verdict == "certified") <= (result.radius >= EPS)
        signs = torch.randint(0, 2, (200, *x.shape[1:]), generator=generator) * 2.0 - 1
        assert bool((model((x + result.radius * signs).clamp(0, 1)).argmax(1) == label).all())


def test_the_timeout_is_for_an_image_and_not_for_each_radius():
    model, data = mostly_right(3)
    seen: list[Work] = []
    timeout = 0.05

    def slow(work: Work) -> None:
        seen.append(work)
        if work.radius is not None:
            time.sleep(0.02)

    limits = Limits(timeout)
    found = verify_pictures(model, data.images, None, EPS, attack=None, method="crown", limits=limits, on_work=slow)
    tried = [[work for work in seen if work.numbers == [n] and work.radius is not None] for n in range(3)]
    assert all(0 < len(each) < 12 for each in tried), "of the 12 radii the time is enough for some"
    assert all(result.cut for result in found)
    assert all(work.seconds <= timeout for each in tried for work in each)
    in_time = verify_pictures(model, data.images, None, EPS, attack=None, method="crown", limits=Limits(None))
    assert not any(result.cut for result in in_time)
    assert all(a.radius <= b.radius for a, b in zip(found, in_time, strict=True))


def test_what_is_done_is_told_image_by_image_and_radius_by_radius():
    model, data = mostly_right(3)
    rounds: list[tuple[tuple[str, ...], int]] = []
    done: list[int] = []
    seen: list[Work] = []
    verify_pictures(
        model,
        data.images,
        None,
        EPS,
        attack=None,
        on_round=lambda names, count: rounds.append((names, count)),
        on_examples=lambda results: done.extend(result.index for result in results),
        on_work=seen.append,
    )
    assert rounds[-1] == (("largest certified ε",), 3)
    assert done[-3:] == [0, 1, 2]
    last = [work for work in seen if work.step == "largest certified ε" and work.numbers == [2]]
    assert [last[0].radius, last[0].begins] == [None, True]
    assert len({work.radius for work in last[1:]}) == len(last) - 1 > 5


def test_a_counterexample_is_given_as_a_picture_in_the_box():
    model, data = mostly_right(30)
    found = verify_pictures(model, data.images, None, 0.2, attack=PGD(), method="ibp")
    each = zip(found, data.images, strict=True)
    falsified = [(result, picture) for result, picture in each if result.verdict == "falsified"]
    assert falsified
    for result, picture in falsified:
        assert result.counterexample is not None
        assert result.radius < 0.2
        assert ((result.counterexample.float() - picture.float()).abs() <= 0.2 * 255 + 0.5).all()
        assert result.shown_as == int(model(to_unit(result.counterexample.unsqueeze(0))).argmax())


def test_of_a_wrong_label_nothing_is_certified():
    model, data = mostly_right(10)
    predicted = [result.predicted for result in verify_pictures(model, data.images, None, EPS, attack=None)]
    found = verify_pictures(model, data.images, 0, EPS, attack=None)
    for result, own in zip(found, predicted, strict=True):
        assert (result.verdict == "misclassified") == (own != 0)
        assert result.radius == 0.0 or own == 0
