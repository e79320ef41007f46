"""A run on a CPU says how long it will take, and advises only what is not in use."""

from pathlib import Path
from typing import Any

import pytest
import torch

from certtrain import train
from certtrain.data import ImageSet, load_images, to_unit
from certtrain.network.assembly import make_network
from certtrain.spec.objective import OBJECTIVES
from certtrain.spec.preset import Preset, load_preset
from certtrain.training import forecast
from certtrain.training.events import Event, Note, Started, StepDone, Stopped
from certtrain.training.forecast import Forecast, forecast_sentence
from certtrain.training.pacing import Stopwatch
from certtrain.training.step import Stepper
from helpers.small_runs import frequent, small, stop_before

DAY = 86400


def sentence(days: float, preset: Preset, images: ImageSet, *, compiled: bool = False) -> str:
    return forecast_sentence(preset, images, 2.0, round(days * DAY / 2), compiled=compiled)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """Images of CIFAR-10's shape."""
    names = tuple(str(number) for number in range(10))
    return ImageSet("cifar10", "train", torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10), names)


def cnn7(**changes: Any) -> Preset:
    return load_preset("cifar10-160ep", {path.replace("__", "."): value for path, value in changes.items()})


def test_a_run_of_days_says_so_and_what_would_be_faster(images: ImageSet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forecast, "has_compiler", lambda device: True)
    assert sentence(6.17, cnn7(), images).startswith(
        "the run will take about 6 days 4 h more on this CPU, at 2 s a step. Faster: a GPU; --precision bf16 "
        "--compile on, about half the time if the processor has instructions for bfloat16; "
        "--set train.batch_norm_statistics=centre, which saves a quarter to a third; "
        "a smaller network, such as --set model.name=cnn5, about "
    )


def test_nothing_in_use_is_advised(images: ImageSet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forecast, "has_compiler", lambda device: True)
    preset = cnn7(train__precision="bf16", train__batch_norm_statistics="centre", model__name="cnn3")
    assert sentence(2, preset, images, compiled=True).endswith("a step. Faster: a GPU")
    assert "compile" not in sentence(2, cnn7(), images, compiled=True)
    assert "compile" not in sentence(2, cnn7(train__micro_batch=16), images)
    assert "centre" not in sentence(2, cnn7(train__micro_batch=16), images)
    assert "centre" not in sentence(2, cnn7(objective__name="mtl-ibp"), images)
    monkeypatch.setattr(forecast, "has_compiler", lambda device: False)
    assert "compile" not in sentence(2, cnn7(), images)


def test_the_smaller_networks_time_follows_from_its_work(images: ImageSet):
    share = forecast._work(cnn7(model__name="cnn5"), images) / forecast._work(cnn7(), images)
    assert 0.05 < share < 0.5
    assert f"model.name=cnn5, about {forecast.about(share * 10 * DAY)}" in sentence(10, cnn7(), images)


def test_a_network_that_images_are_too_small_for_is_not_advised():
    pixels = torch.zeros(10, 1, 2, 2, dtype=torch.uint8)
    tiny = ImageSet("digits", "train", pixels, torch.arange(10), tuple("abcdefghij"))
    preset = load_preset("digits", {"model.name": "mlp", "model.hidden": [3000, 3000]})
    assert "smaller network" not in sentence(1, preset, tiny)


def test_a_run_of_minutes_gets_no_advice_and_a_short_one_no_sentence(images: ImageSet):
    assert sentence(1 / 24 / 10, cnn7(), images) == "the run will take about 6 min more on this CPU, at 2 s a step"
    assert sentence(1 / 24 / 60, cnn7(), images) == ""


def test_the_first_step_does_not_count(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("certtrain.training.pacing.time.monotonic", lambda: now[0])
    found = Forecast()
    for seconds in (100.0, 2.0, 4.0, 50.0):
        with found.timed():
            now[0] += seconds
        if (each := found.first()) is not None:
            break
    assert each == 3.0
    assert found.first() is None


def test_a_run_says_it_once_and_a_stop_says_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("MEASURED_SECONDS", "WORTH_SAYING"):
        monkeypatch.setattr(forecast, name, 0.0)
    monkeypatch.setattr("certtrain.training.trainer.WORTH_TIMING", 0)
    events: list[Event] = []
    reasons = iter([None] * 12)
    context = frequent(emit=events.append, should_stop=lambda: next(reasons, "time is up"))
    assert train(small(), tmp_path / "run", context) is None
    texts = [event.text for event in events if isinstance(event, Note)]
    assert sum("more on this CPU" in text for text in texts) == 1
    assert sum("roughly" in text for text in texts) == 1
    first = next(number for number, event in enumerate(events) if isinstance(event, StepDone))
    assert any(isinstance(event, Note) and "roughly" in event.text for event in events[:first]), "before any step"
    (started,) = (event for event in events if isinstance(event, Started))
    stopped = events[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.step == 12 < started.steps
    assert stopped.seconds_left is not None
    assert stopped.seconds_left > 0


def test_a_long_run_says_roughly_how_long_it_takes_before_its_first_step_and_changes_nothing(images: ImageSet):
    """The time of a few examples is that of a step, but for a factor of a few, and nothing else comes of it."""
    preset = load_preset("digits", {"train.batch_size": 64})
    pixels = torch.rand(64, 1, 8, 8)
    labels = torch.arange(64) % 10
    network = make_network(preset, load_images("digits", "train"))[0]
    before, state = {name: tensor.clone() for name, tensor in network.state_dict().items()}, torch.get_rng_state()
    rough = forecast.rough_seconds_per_step(preset, network, 20, pixels, labels)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    stepper = Stepper(preset, network, 20)
    stepper.run(1, pixels, labels)
    watch = Stopwatch()
    stepper.run(1, pixels, labels)
    assert watch.seconds() / 20 < rough < watch.seconds() * 200
    compiled = forecast.rough_seconds_per_step(preset, network, 20, pixels, labels, relu_inputs=10**12)
    assert 0 < compiled < rough * 5


def test_the_rough_sentence_has_one_unit_and_the_advice_and_then_the_other_has_none(images: ImageSet):
    steps = round(6.2 * DAY / 2)
    text = forecast_sentence(cnn7(), images, 2.0, steps, compiled=False, rough=True)
    assert text.startswith("the run will take roughly 6 days on this CPU, judged by a few examples. Faster: a GPU")
    refined = forecast_sentence(cnn7(), images, 2.0, steps, compiled=False, advice=False)
    assert refined == "the run will take about 6 days 5 h more on this CPU, at 2 s a step"


def test_a_short_run_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("certtrain.training.trainer.rough_seconds_per_step", lambda *all: pytest.fail("it was timed"))
    assert train(small(), tmp_path / "run", frequent(should_stop=stop_before(1))) is None


def test_what_is_said_changes_no_result(images: ImageSet):
    state = torch.get_rng_state()
    assert sentence(10, cnn7(), images)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"custom"}))
def test_the_steps_of_every_objective_can_be_timed(name: str):
    preset = small(objective__name=name, train__batch_size=20)
    images = load_images("digits", "train")
    network, (pixels, labels) = make_network(preset, images)[0], (to_unit(images.images[:20]), images.labels[:20])
    assert 0 < forecast.rough_seconds_per_step(preset, network, 10, pixels, labels) < 100
