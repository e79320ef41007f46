"""Steps without the inactive channels, against the steps of the whole network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from certtrain import resume, train
from certtrain.errors import DeviceError, PresetError
from certtrain.network.assembly import load_run_images, make_network
from certtrain.runs.checkpoint import RunFolder
from certtrain.spec.preset import EpsSection, Preset, load_preset
from certtrain.training import inactive, trainer
from certtrain.training.distributed import Group
from certtrain.training.events import Note
from certtrain.training.inactive import SmallerSteps, active_channels, looks_after, parts_of, smaller_network
from certtrain.training.step import Stepper
from certtrain.training.trainer import Trainer
from helpers.small_runs import frequent, quick_ends, small, stop_before
from helpers.small_steps import PER_EPOCH, SHAPE, WITHOUT_GRADIENT, batch, network, preset

AFTER_RAMP = 2 * PER_EPOCH
INACTIVE = {"conv1": [1], "conv2": [0, 3], "linear1": [2, 4, 5]}
KEPT = {"conv1_relu": [0, 2], "conv2_relu": [1, 2, 4], "linear1_relu": [0, 1, 3, 6]}


def deaden(of: nn.Module, channels: dict[str, list[int]] = INACTIVE) -> None:
    """Make these channels inactive for every input."""
    with torch.no_grad():
        for name, index in channels.items():
            of.get_submodule(f"{name}_bn").bias[index] = -50.0


def whole_stepper(**train: Any) -> Stepper:
    """After two steps, so that the optimiser has moments."""
    settings = preset(skip_inactive=True, **train)
    made = network(settings)
    deaden(made)
    stepper = Stepper(settings, made, PER_EPOCH)
    for step in range(2):
        stepper.run(AFTER_RAMP + step, *doubles(step))
    return stepper


def doubles(step: int) -> tuple[Tensor, Tensor]:
    x, labels = batch(step)
    return x.double(), labels


def smaller_steps(whole: Stepper) -> SmallerSteps:
    return SmallerSteps(whole, lambda made: Stepper(whole.preset, made, PER_EPOCH), SHAPE)


def images(count: int = 3) -> Iterator[Tensor]:
    return (doubles(step)[0] for step in range(count))


def moments(of: Stepper) -> dict[str, Any]:
    """What the optimiser keeps, by parameter and name."""
    named, state = of.network.named_parameters(), of.optimizer.state
    return {f"{name}/{key}": value for name, weight in named for key, value in state[weight].items()}


# --- the steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_norm_statistics": "centre"},
        {"optimizer": "radam"},
        {"optimizer": "sgd"},
        {"optimizer": "adamw", "clip_norm": 0.5},
    ],
)
def test_steps_without_inactive_channels_are_those_of_the_whole_network(settings: dict[str, Any]):
    whole, other = whole_stepper(**settings), whole_stepper(**settings)
    smaller = smaller_steps(other)
    assert smaller.look_again(AFTER_RAMP, images())
    assert smaller.kept == KEPT
    for step in range(2, 8):
        whole.run(AFTER_RAMP + step, *doubles(step))
        smaller.current.run(AFTER_RAMP + step, *doubles(step))
    smaller.write_back()
    found = {**dict(other.network.named_parameters()), **moments(other)}
    expected = {**dict(whole.network.named_parameters()), **moments(whole)}
    for name, value in expected.items():
        if name.split("/")[0] not in WITHOUT_GRADIENT:
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)
    read, wanted = smaller.current.read().sums, whole.read().sums
    assert read["loss"] < wanted["loss"]  # of six steps in place of eight
    assert read["certified_accuracy"] <= wanted["certified_accuracy"]


def test_the_smaller_network_computes_what_the_whole_one_does():
    stepper = whole_stepper()
    made = smaller_network(stepper.network, parts_of(stepper.network, KEPT))
    stepper.network.eval()
    made.eval()
    x = doubles(5)[0]
    torch.testing.assert_close(made(x), stepper.network(x), rtol=1e-12, atol=1e-12)
    assert "Conv2d(2, 2, kernel_size=(3, 3)" in str(made)
    assert "BatchNorm1d(4," in str(made)


def test_nothing_is_left_out_where_every_channel_is_active_and_one_is_kept_where_none_is():
    stepper = whole_stepper()
    deaden(stepper.network, {"conv2": [0, 1, 2, 3, 4]})
    smaller = smaller_steps(stepper)
    assert smaller.look_again(AFTER_RAMP, images())
    assert smaller.kept["conv2_relu"] == [0]
    settings = preset(skip_inactive=True)
    alive = smaller_steps(Stepper(settings, network(settings), PER_EPOCH))
    assert not alive.look_again(AFTER_RAMP, images())
    assert alive.current is alive.whole
    alive.write_back()
    alive.end_epoch(AFTER_RAMP, images())


def test_a_channel_that_is_active_again_takes_part_again():
    whole = whole_stepper()
    smaller = smaller_steps(whole)
    smaller.look_again(AFTER_RAMP, images())
    assert not smaller.look_again(AFTER_RAMP, images())
    with torch.no_grad():
        whole.network.get_submodule("conv2_bn").bias[3] = 0.5
    assert smaller.look_again(AFTER_RAMP, images())
    assert smaller.kept["conv2_relu"] == [1, 2, 3, 4]
    assert smaller.sentence() == "10 of 15 channels and units take part in the steps, which are 76% of the work"


def test_a_channel_that_is_left_out_has_the_running_statistics_of_the_newest_weights():
    whole = whole_stepper()
    smaller = smaller_steps(whole)
    smaller.look_again(AFTER_RAMP, images())
    for step in range(2, 8):
        smaller.current.run(AFTER_RAMP + step, *doubles(step))
    smaller.end_epoch(AFTER_RAMP, images(1))
    (trace,) = whole.traces(AFTER_RAMP, doubles(0)[0])
    expected, layer = trace.statistics["conv2_bn"], whole.network.get_submodule("conv2_bn")
    torch.testing.assert_close(layer.running_mean[[0, 3]], expected.mean[[0, 3]])
    own = smaller.current.network.get_submodule("conv2_bn").running_mean
    assert torch.equal(layer.running_mean[[1, 2, 4]], own)
    assert not torch.allclose(own, expected.mean[[1, 2, 4]])


def test_active_is_what_is_above_zero_somewhere_in_some_box():
    stepper = whole_stepper()
    active = active_channels(trace for x in images() for trace in stepper.traces(AFTER_RAMP, x))
    assert {name: channels.nonzero().flatten().tolist() for name, channels in active.items()} == KEPT
    with torch.no_grad():
        stepper.network.get_submodule("conv2_bn").bias[3] = torch.nan
    assert active_channels(stepper.traces(AFTER_RAMP, doubles(0)[0]))["conv2_relu"][3]


@pytest.mark.parametrize(
    ("start", "length", "epochs"), [(2, 20, [21, 26, 31]), (1, 0, [5, 10]), (3, 1, [3, 8, 13]), (2, 2, [3, 8])]
)
def test_channels_are_looked_at_when_the_ramp_ends_and_every_five_epochs(start: int, length: int, epochs: list[int]):
    ramp = EpsSection(max="1/255", start=start, length=length)
    last = epochs[-1]
    assert [epoch for epoch in range(1, last + 1) if looks_after(epoch, ramp)] == epochs


# --- a run -----------------------------------------------------------------------------------------------


@pytest.fixture
def deadened(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs begin with inactive channels, and look at all channels after each epoch."""

    def made(*arguments: Any) -> Any:
        result = make_network(*arguments)
        deaden(result[0], {"conv1": [1, 2], "conv2": [0, 3, 5], "linear1": list(range(20))})
        return result

    monkeypatch.setattr(trainer, "make_network", made)
    monkeypatch.setattr(inactive, "LOOK_EVERY", 1)
    with quick_ends():
        yield


LONGER: dict[str, Any] = {"train__epochs": 6, "train__milestones": [5]}


def run(folder: Path, settings: Preset, notes: list[str], stops: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """The model of a run that is stopped before the `stops`-th steps of its sessions, and resumed."""
    for number, stop in enumerate((*stops, None)):
        context: dict[str, Any] = {"emit": lambda event: notes.append(event.text) if isinstance(event, Note) else None}
        context |= {} if stop is None else {"should_stop": stop_before(stop)}
        report = resume(folder, frequent(**context)) if number else train(settings, folder, frequent(**context))
        assert (report is None) == (stop is not None)
    return load_file(folder / "model.safetensors")


@pytest.mark.usefixtures("deadened")
@pytest.mark.parametrize("refresh", [False, True])
def test_a_run_that_was_stopped_twice_has_the_same_bits(tmp_path: Path, refresh: bool):
    notes, settings = list[str](), small(train__skip_inactive=True, train__batch_norm_refresh=refresh, **LONGER)
    whole = run(tmp_path / "whole", settings, notes)
    stopped = run(tmp_path / "stopped", settings, [], stops=(24, 11))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    (note,) = [text for text in notes if "take part" in text]
    assert note.startswith("epoch 3: ")
    assert "of 44 channels and units take part in the steps" in note


@pytest.mark.usefixtures("deadened")
def test_a_run_ends_with_about_the_weights_of_one_that_leaves_nothing_out(tmp_path: Path):
    skipping = run(tmp_path / "skipping", small(train__skip_inactive=True, **LONGER), [])
    whole = run(tmp_path / "whole", small(**LONGER), [])
    assert skipping.keys() == whole.keys()
    for name, rows in (("conv1.weight", [0, 3]), ("conv2.weight", [1, 2, 4, 6, 7]), ("head.weight", list(range(10)))):
        assert (skipping[name][rows] - whole[name][rows]).norm() < 0.01 * whole[name][rows].norm(), name
    for name in ("conv2_bn.running_mean", "linear1_bn.running_var"):
        torch.testing.assert_close(skipping[name], whole[name], rtol=0.2, atol=0.2)


def test_several_processes_are_refused(tmp_path: Path):
    settings = small(train__skip_inactive=True)
    with pytest.raises(DeviceError, match=r"train\.skip_inactive is for one process"):
        Trainer(settings, RunFolder(tmp_path), load_run_images(settings, None), frequent(group=Group(size=2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.name": "wide-resnet"}, 'and model.name is "wide-resnet"'),
        ({"objective.name": "mtl-ibp"}, 'is for IBP and CROWN-IBP, and objective.name is "mtl-ibp"'),
        ({"train.average": 0.9}, "does not go with train.average"),
        ({"train.l1": 1e-6, "train.micro_batch": 2}, "does not go with train.micro_batch and train.l1"),
    ],
)
def test_what_skips_nothing_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(PresetError, match=message):
        load_preset("mnist-cpu", {"train.skip_inactive": True, "train.batch_norm_statistics": "clean", **changes})
