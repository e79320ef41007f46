"""A run on a CPU says how long it will take, and advises only what is not in use."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from certtrain import resume, train
from certtrain.data import ImageSet, load_images
from certtrain.formats import roughly
from certtrain.network.assembly import make_network
from certtrain.render.training_sentences import stopped_sentence
from certtrain.runtime import precision
from certtrain.spec.objective import OBJECTIVES
from certtrain.spec.preset import Preset, load_preset
from certtrain.training import forecast, trainer
from certtrain.training.events import Event, Loading, Note, Started, Stopped
from certtrain.training.forecast import Forecast, estimate_sentence, forecast_sentence
from certtrain.training.pacing import Stopwatch
from certtrain.training.step import Stepper
from helpers.small_runs import frequent, small, stop_before

DAY, HOUR = 86400, 3600
FEW, MORE = 0.5, 1.2  # seconds of the steps of a few examples, where these are not measured


def sentence(days: float, preset: Preset, images: ImageSet, *, compiled: bool = False) -> str:
    return estimate_sentence(preset, images, days * DAY, compiled=compiled)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """Images of CIFAR-10's shape."""
    names = tuple(str(number) for number in range(10))
    return ImageSet("cifar10", "train", torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10), names)


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a compiler and instructions for bfloat16."""
    monkeypatch.setattr(forecast, "has_compiler", lambda device: True)
    monkeypatch.setattr(forecast, "has_bf16_instructions", lambda: True)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which steps of a few examples always take the same time."""
    monkeypatch.setattr(forecast, "_shortest", lambda run: (FEW, MORE))


def cnn7(**changes: Any) -> Preset:
    return load_preset("cifar10-160ep", {path.replace("__", "."): value for path, value in changes.items()})


# --- the estimate ----------------------------------------------------------------------------------------


def estimate(batch: int = 64, *, compiled: bool = False, **changes: Any) -> float:
    """The estimated seconds of a step of a network of the digits."""
    preset = small(**changes)
    network = make_network(preset, load_images("digits", "train"))[0]
    pixels, labels = torch.rand(batch, 1, 8, 8), torch.arange(batch) % 10
    return forecast.estimated_seconds_per_step(preset, network, 20, pixels, labels, compiled=compiled)


def published() -> dict[str, float]:
    """The steps of CNN-7 in the benchmark's table, as multiples of the standard step, by the table's names."""
    text = (Path(__file__).parents[2] / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    table = text.partition("### A step (")[2].partition("making a batch")[0]
    rows = re.findall(r"^\| ([^|]+) \| [\d.]+ \| ([\d.]+) \(", table, re.MULTILINE)
    return {name: float(ratio) for name, ratio in rows}


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("statistics", ["clean", "centre"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_estimate_follows_from_the_eager_step_and_the_published_ratios(
    compiled: bool, precision: str, statistics: str
):
    known = published()
    name = f"{'compiled' if compiled else 'eager'} {precision}" + ", centre statistics" * (statistics == "centre")
    found = estimate(compiled=compiled, train__precision=precision, train__batch_norm_statistics=statistics)
    assert found == pytest.approx(estimate() * known[name] / known["eager fp32"])


@pytest.mark.usefixtures("steady")
def test_a_batch_takes_as_much_longer_as_it_has_more_examples():
    for batch in (16, 64, 128):
        assert estimate(batch) == pytest.approx(FEW + (MORE - FEW) * (batch - 2) / 14)


@pytest.mark.usefixtures("steady")
def test_without_its_instructions_bf16_saves_nothing(images: ImageSet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forecast, "has_bf16_instructions", lambda: False)
    assert estimate(train__precision="bf16") == estimate()
    assert "bf16" not in sentence(2, cnn7(), images)


@pytest.mark.parametrize(
    ("flags", "known"), [("sse2 avx512_bf16 fma", True), ("fp bf16", True), ("sse2 avx512f", False), (None, False)]
)
def test_the_instructions_are_those_that_the_system_lists(
    flags: str | None, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"model name\t: a processor\nflags\t\t: {flags}\n")
    assert precision.has_bf16_instructions() == known


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by the clock, which only the test moves on."""
    time = [0.0]
    monkeypatch.setattr("certtrain.training.pacing.time.monotonic", lambda: time[0])
    return time


def test_of_repeated_steps_the_shortest_counts_and_they_end_in_time(now: list[float]):
    counts, late = list[int](), iter([5.0, 1.0, 3.0, 1.0, 1.0, 2.0] + [1.0] * 100)  # the first step allocates memory

    def run(count: int) -> None:
        counts.append(count)
        now[0] += 0.01 * count * next(late)

    assert forecast._shortest(run) == pytest.approx((0.02, 0.16))
    assert counts[:5] == [2, 2, 16, 2, 16]
    assert len(counts) > 9
    assert now[0] <= forecast.TIMING


def test_slow_steps_are_timed_once(now: list[float]):
    counts = list[int]()

    def run(count: int) -> None:
        counts.append(count)
        now[0] += count

    assert forecast._shortest(run) == (2, 16)
    assert counts == [2, 2, 16]


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"custom"}))
def test_the_steps_of_every_objective_can_be_timed(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forecast, "TIMING", 0.0)
    assert 0 < estimate(20, objective__name=name) < 100


@pytest.mark.parametrize("batch", [2, 3, 10])
def test_a_batch_may_be_small_and_in_parts(batch: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forecast, "TIMING", 0.0)
    assert 0 < estimate(batch) < 100
    assert 0 < estimate(batch, train__micro_batch=2) < 100


def test_timing_changes_nothing_and_fits_the_steps(monkeypatch: pytest.MonkeyPatch):
    """The estimate is that of a step, but for a factor of a few, and nothing else comes of it."""
    monkeypatch.setattr(forecast, "TIMING", 0.0)
    preset = load_preset("digits", {"train.batch_size": 64})
    pixels, labels = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
    network = make_network(preset, load_images("digits", "train"))[0]
    before, state = {name: tensor.clone() for name, tensor in network.state_dict().items()}, torch.get_rng_state()
    found = forecast.estimated_seconds_per_step(preset, network, 20, pixels, labels, compiled=False)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    stepper = Stepper(preset, network, 20)
    stepper.run(1, pixels, labels)
    watch = Stopwatch()
    stepper.run(1, pixels, labels)
    assert watch.seconds() / 20 < found < watch.seconds() * 200


# --- what is said ----------------------------------------------------------------------------------------


def test_a_run_of_days_says_so_and_two_ways_to_make_it_shorter(images: ImageSet):
    share = forecast._work(cnn7(model__width=16), images) / forecast._work(cnn7(), images)
    assert 0.05 < share < 0.2
    assert sentence(6.17, cnn7(), images) == (
        "this run takes about 6 days on this CPU. Faster: about 2 days with --precision bf16 --compile on "
        "--set train.batch_norm_statistics=centre; "
        f"about {roughly(share * 6.17 * DAY)} with a smaller network, --set model.width=16; "
        "--preset cifar10-cpu, which is made for CPUs"
    )


@pytest.mark.parametrize(
    ("changes", "compiled", "options", "share"),
    [
        ({}, True, "--precision bf16 --set train.batch_norm_statistics=centre", 1.06 / 2.78),
        ({"train__precision": "bf16"}, True, "--set train.batch_norm_statistics=centre", 1.06 / 1.48),
        ({"train__batch_norm_statistics": "centre"}, True, "--precision bf16", 1.06 / 1.93),
        ({"train__micro_batch": 16}, False, "--precision bf16", 2.04 / 3.24),
        ({"objective__name": "mtl-ibp"}, False, "--precision bf16 --compile on", 1.48 / 3.24),
    ],
)
def test_what_is_not_in_use_is_advised_with_the_time_that_it_gives(
    changes: dict[str, Any], compiled: bool, options: str, share: float, images: ImageSet
):
    text = sentence(10, cnn7(**changes), images, compiled=compiled)
    assert f". Faster: about {roughly(share * 10 * DAY)} with {options}; about" in text


def test_nothing_in_use_is_advised(images: ImageSet, monkeypatch: pytest.MonkeyPatch):
    preset = cnn7(train__precision="bf16", train__batch_norm_statistics="centre", model__name="dm-small")
    assert sentence(2, preset, images, compiled=True) == (
        "this run takes about 2 days on this CPU. Faster: --preset cifar10-cpu, which is made for CPUs"
    )
    monkeypatch.setattr(forecast, "has_compiler", lambda device: False)
    assert "compile" not in sentence(2, cnn7(), images)


@pytest.mark.parametrize(
    ("hours", "changes", "setting"),
    [
        (2, {}, "model.width=32"),
        (20, {}, "model.width=32"),
        (60, {}, "model.width=16"),
        (600, {"model__width": 256}, "model.width=64"),
        (60, {"model__width": 32}, "model.width=16"),
        (60, {"model__name": "wide-resnet"}, "model.name=cnn5"),
        (60, {"model__name": "cnn5"}, "model.width=16"),
    ],
)
def test_the_smaller_network_fits_a_night_where_it_can(
    hours: float, changes: dict[str, Any], setting: str, images: ImageSet
):
    name, _, value = setting.partition("=")
    own = cnn7(**changes)
    other = load_preset(own.model_dump(mode="json"), {name: value})
    share = forecast._work(other, images) / forecast._work(own, images)
    text = sentence(hours / 24, own, images)
    assert f"; about {roughly(share * hours * HOUR)} with a smaller network, --set {setting}; " in text


def test_a_narrow_network_is_not_advised_to_be_narrower(images: ImageSet):
    assert "smaller network" not in sentence(2, cnn7(model__width=16), images)


def test_a_network_that_images_are_too_small_for_is_not_advised():
    pixels = torch.zeros(10, 1, 2, 2, dtype=torch.uint8)
    tiny = ImageSet("digits", "train", pixels, torch.arange(10), tuple("abcdefghij"))
    preset = load_preset("digits", {"model.name": "mlp", "model.hidden": [3000, 3000]})
    assert "smaller network" not in sentence(1, preset, tiny)


def test_a_run_of_minutes_gets_no_advice_and_a_short_one_no_sentence(images: ImageSet):
    assert sentence(1 / 24 / 10, cnn7(), images) == "this run takes about 6 min on this CPU"
    assert sentence(1 / 24 / 60, cnn7(), images) == ""
    assert forecast_sentence(cnn7(), images, 2.0, 30, compiled=False) == ""


@pytest.mark.parametrize("changes", [{"name": "cifar10-cpu"}, {"eps__max": "2/255"}, {"objective__name": "mtl-ibp"}])
def test_no_preset_is_advised_of_another_radius_or_objective(changes: dict[str, Any], images: ImageSet):
    assert "--preset" not in sentence(2, cnn7(**changes), images)


def test_a_run_that_has_begun_keeps_its_settings(images: ImageSet):
    text = estimate_sentence(cnn7(), images, 2 * DAY, compiled=False, begun=True)
    assert text == "the rest of this run takes about 2 days on this CPU"


def test_the_forecast_by_the_first_steps_has_the_advice_only_where_it_was_not_given(images: ImageSet):
    steps, begin = round(6.2 * DAY / 2), "the run will take about 6 days 5 h more on this CPU, at 2 s a step"
    assert forecast_sentence(cnn7(), images, 2.0, steps, compiled=False, advice=False) == begin
    assert forecast_sentence(cnn7(), images, 2.0, steps, compiled=False).startswith(f"{begin}. Faster: about 2 days")


# --- the run ---------------------------------------------------------------------------------------------


def test_the_first_step_does_not_count(now: list[float]):
    found = Forecast()
    for seconds in (100.0, 2.0, 4.0, 50.0):
        with found.timed():
            now[0] += seconds
        if (each := found.first()) is not None:
            break
    assert each == 3.0
    assert found.first() is None


def stopped_run(folder: Path, monkeypatch: pytest.MonkeyPatch, *, steps: int) -> tuple[list[Event], Stopped]:
    """The events of a run that says how long it will take, however short it is, and stops after these steps."""
    monkeypatch.setattr("certtrain.training.trainer.WORTH_TIMING", 0)
    for name in ("MEASURED_SECONDS", "WORTH_SAYING", "TIMING"):
        monkeypatch.setattr(forecast, name, 0.0)
    events = list[Event]()
    context = frequent(emit=events.append, should_stop=stop_before(steps))
    assert train(small(), folder, context) is None
    assert isinstance(events[-1], Stopped)
    return events, events[-1]


def test_a_run_says_it_first_and_then_once_by_its_steps_and_a_stop_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events, stopped = stopped_run(tmp_path / "run", monkeypatch, steps=12)
    started = next(event for event in events if not isinstance(event, Loading))
    assert isinstance(started, Started)
    assert started.forecast.startswith("this run takes about 1 min on this CPU")
    assert sum("more on this CPU" in event.text for event in events if isinstance(event, Note)) == 1
    assert (stopped.step, stopped.steps, stopped.estimated) == (12, 30, False)
    assert stopped.seconds_left is not None
    assert stopped.seconds_left > 0


@pytest.mark.usefixtures("steady")
def test_a_stop_before_the_first_steps_says_what_is_left_by_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    each = FEW + (MORE - FEW) * 58 / 14
    events, stopped = stopped_run(tmp_path / "run", monkeypatch, steps=0)
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.seconds_left == stopped.seconds_left == pytest.approx(30 * each)
    assert (stopped.step, stopped.estimated) == (0, True)
    assert stopped_sentence(stopped).startswith("stopped (time is up) at step 0 of 30; about 2 min left; resume")


@pytest.mark.usefixtures("steady")
def test_the_rest_of_a_resumed_run_is_estimated_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, before = stopped_run(tmp_path / "run", monkeypatch, steps=12)
    events = list[Event]()
    assert resume(tmp_path / "run", frequent(emit=events.append, should_stop=stop_before(0))) is None
    (started,), stopped = (event for event in events if isinstance(event, Started)), events[-1]
    assert isinstance(stopped, Stopped)
    assert started.forecast == "the rest of this run takes about 1 min on this CPU"
    assert before.seconds_left is not None
    assert started.seconds_left == pytest.approx(18 * (FEW + (MORE - FEW) * 58 / 14))


@pytest.mark.usefixtures("steady")
def test_what_the_first_line_advises_is_not_said_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer, "WORTH_ADVICE", 0.0)
    monkeypatch.setattr(forecast, "WORTH_ADVICE", 0.0)
    events, _ = stopped_run(tmp_path / "run", monkeypatch, steps=12)
    (started,) = (event for event in events if isinstance(event, Started))
    assert ". Faster: about" in started.forecast
    assert not any("Faster" in event.text for event in events if isinstance(event, Note))


def test_a_short_run_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer, "estimated_seconds_per_step", lambda *all, **more: pytest.fail("it was timed"))
    events = list[Event]()
    assert train(small(), tmp_path / "run", frequent(should_stop=stop_before(1), emit=events.append)) is None
    (started,) = (event for event in events if isinstance(event, Started))
    assert (started.seconds_left, started.forecast) == (None, "")


def test_what_is_said_changes_no_result(images: ImageSet):
    state = torch.get_rng_state()
    assert sentence(10, cnn7(), images)
    assert torch.equal(state, torch.get_rng_state())
