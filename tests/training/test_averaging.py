"""The mean of the networks at the ends of epochs: until it begins, it is the network itself."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from certtrain.runs.checkpoint import RunFolder, RunProgress, load_checkpoint, load_state, state_tensors
from certtrain.training.averaging import epoch_mean_weight
from certtrain.training.step import Stepper
from helpers.small_steps import CLASSES, SHAPE, batch, network, preset
from helpers.tiny_classifier import metadata

PER_EPOCH, EPOCHS, FIRST = 2, 3, 2
SETTINGS = preset(average_from=FIRST)


def stepper() -> Stepper:
    return Stepper(SETTINGS, network(SETTINGS).float(), PER_EPOCH)


def state(of: torch.nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(of.state_dict())


def test_the_weight_of_the_network_in_the_mean():
    weights = [epoch_mean_weight(step, first=2, steps_per_epoch=3) for step in range(12)]
    assert weights == [1, 1, 1, 1, 1, 1, 0, 0, 1 / 2, 0, 0, 1 / 3]
    assert [epoch_mean_weight(step, first=1, steps_per_epoch=1) for step in range(4)] == [1, 1 / 2, 1 / 3, 1 / 4]


def test_the_result_is_the_mean_of_the_ends_of_epochs():
    one, ends = stepper(), list[dict[str, Tensor]]()
    for step in range(PER_EPOCH * EPOCHS):
        one.run(step, *batch(step))
        if (step + 1) % PER_EPOCH == 0 and step >= PER_EPOCH:
            ends.append(state(one.network))
    assert len(ends) == 2
    for name, tensor in one.result.state_dict().items():
        mean = torch.stack([end[name].double() for end in ends]).mean(0)
        expected = mean if tensor.is_floating_point() else ends[-1][name]
        torch.testing.assert_close(tensor.double(), expected.double(), rtol=1e-6, atol=1e-7, msg=name)
    assert any("running_var" in name for name in one.result.state_dict())
    assert not torch.equal(one.result.head.weight, one.network.head.weight)


def test_until_it_begins_the_result_is_the_network():
    one = stepper()
    for step in range(PER_EPOCH * FIRST):
        one.run(step, *batch(step))
        found, expected = one.result.state_dict(), one.network.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    one.run(PER_EPOCH * FIRST, *batch())  # within the next epoch the mean stays
    assert all(torch.equal(one.result.state_dict()[name], found[name]) for name in found)
    assert not torch.equal(one.network.head.weight, one.result.head.weight)


@pytest.mark.parametrize("stop", range(PER_EPOCH * EPOCHS))
def test_restored_at_any_step_it_goes_on_with_the_same_bits(stop: int):
    whole, first, second = stepper(), stepper(), stepper()
    for step in range(PER_EPOCH * EPOCHS):
        whole.run(step, *batch(step))
        (first if step < stop else second).run(step, *batch(step))
        if step + 1 == stop:
            load_state(state_tensors(first.networks, first.optimizer), second.networks, second.optimizer)
    found, expected = (state_tensors(each.networks, each.optimizer) for each in (second, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("steps", [0, 1, PER_EPOCH * FIRST, PER_EPOCH * EPOCHS])
def test_the_network_of_a_checkpoint_is_the_result(steps: int, tmp_path: Path):
    one = stepper()
    for step in range(steps):
        one.run(step, *batch(step))
    path = RunFolder(tmp_path).save_checkpoint(one.networks, one.optimizer, RunProgress(step=steps))
    names = tuple(map(str, range(CLASSES)))
    loaded = load_checkpoint(path, metadata(architecture=SETTINGS.model, input_shape=SHAPE, class_names=names))
    with torch.no_grad():
        assert torch.equal(loaded(batch()[0]), one.result.eval()(batch()[0]))
