"""A batch taken a part at a time gives the step of the whole batch."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from certtrain.bounds.box import input_box
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import batch_statistics
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import trace_bounds
from certtrain.diagnostics.layer_states import layer_states
from certtrain.errors import PresetError
from certtrain.network.initialization import ibp_init_
from certtrain.spec.architecture import CNN, MLP
from certtrain.spec.preset import Preset
from certtrain.training.micro_batches import traces_in_parts
from certtrain.training.step import Reading, Stepper
from helpers.small_steps import BATCH, CLASSES, PER_EPOCH, WITHOUT_GRADIENT, batch, network, preset

STEPS = {"ε = 0": 4, "in the ramp": 15, "full ε": 25}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Networks and schedules in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def stepped(settings: Preset, steps: list[int]) -> tuple[Stepper, Reading]:
    """After these steps, with the last one's gradient still there."""
    stepper = Stepper(settings, network(settings), PER_EPOCH)
    for step in steps:
        stepper.run(step, *batch(step))
    return stepper, stepper.read()


def assert_same(one: Stepper, other: Stepper) -> None:
    """Gradients, weights and running statistics."""
    for (name, parameter), twin in zip(one.network.named_parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-9, atol=1e-11, msg=f"gradient of {name}")
    state = other.network.state_dict()
    for name, tensor in one.network.state_dict().items():
        if name not in WITHOUT_GRADIENT:
            torch.testing.assert_close(tensor, state[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("moment", STEPS)
@pytest.mark.parametrize("size", [1, 4, BATCH, 50])
def test_the_step_is_that_of_the_whole_batch(moment: str, size: int):
    whole, expected = stepped(preset(), [STEPS[moment]])
    parts, found = stepped(preset(micro_batch=size), [STEPS[moment]])
    assert_same(whole, parts)
    assert list(found.sums) == list(expected.sums)
    assert found.sums == pytest.approx(expected.sums, rel=1e-9)
    assert (found.sums["tightness_loss"] > 0) == (moment != "full ε")
    assert (found.sums["relu_balance_loss"] > 0) == (moment != "full ε")


@pytest.mark.parametrize("part", ["tightness", "relu_balance"])
def test_each_regulariser_alone(part: str):
    both = {"tightness": False, "relu_balance": False, part: True}
    section = preset().regularizer.model_copy(update=both)
    settings = [preset(micro_batch=size).model_copy(update={"regularizer": section}) for size in (4, None)]
    (parts, _), (whole, _) = (stepped(each, [15]) for each in settings)
    assert_same(whole, parts)


def test_many_steps_agree():
    steps = list(range(0, 30, 2))
    (whole, expected), (parts, found) = (stepped(preset(micro_batch=size), steps) for size in (None, 4))
    assert found.sums == pytest.approx(expected.sums, rel=1e-9)
    for (name, parameter), twin in zip(whole.network.named_parameters(), parts.network.parameters(), strict=True):
        if name not in WITHOUT_GRADIENT:
            torch.testing.assert_close(parameter, twin, rtol=1e-7, atol=1e-9)


def test_a_network_without_batch_norm():
    architecture = MLP(name="mlp", hidden=(6, 5), batch_norm=False)
    settings = [preset(micro_batch=size).model_copy(update={"model": architecture}) for size in (4, None)]
    (parts, _), (whole, _) = (stepped(each, [15]) for each in settings)
    assert_same(whole, parts)


@pytest.mark.parametrize("moment", STEPS)
def test_batch_norm_may_be_the_first_layer(moment: str):
    first = [nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, CLASSES)]
    model = nn.Sequential(OrderedDict((f"layer{number}", layer) for number, layer in enumerate(first))).double()
    ibp_init_(model, torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.layer2.bias.copy_(torch.tensor([0.3, -0.2, 0.4]))  # so that no balance ratio is 1, where it has a kink
    found = []
    for size in (None, 4):
        stepper = Stepper(preset(micro_batch=size), copy.deepcopy(model), PER_EPOCH)
        stepper.run(STEPS[moment], *batch())
        found.append(stepper)
    for (name, parameter), twin in zip(found[0].network.named_parameters(), found[1].network.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-9, atol=1e-11, msg=f"gradient of {name}")
    for tensor, twin in zip(found[0].network.buffers(), found[1].network.buffers(), strict=True):
        torch.testing.assert_close(tensor, twin)
    assert found[1].read().sums == pytest.approx(found[0].read().sums, rel=1e-9)


def test_the_clean_batch_alone_takes_the_statistics_of_the_full_pass():
    x, graph = batch()[0], checked_graph(network(preset()))
    full = trace_bounds(graph, input_box(x, 0.1, with_clean=True), statistics=batch_statistics)
    logits, statistics = plain_pass(graph, x, statistics=batch_statistics)
    torch.testing.assert_close(logits, full.clean)
    assert list(statistics) == list(full.statistics)
    for one, other in zip(statistics.values(), full.statistics.values(), strict=True):
        assert one.layer is other.layer
        torch.testing.assert_close((one.mean, one.variance), (other.mean, other.variance))


def test_statistics_of_centres_are_refused():
    with pytest.raises(PresetError, match=r"micro_batch needs train\.batch_norm_statistics"):
        preset(micro_batch=4, batch_norm_statistics="centre")


@pytest.mark.parametrize(("size", "with_clean"), [(3, True), (BATCH, True), (3, False)])
def test_the_states_of_layers_are_the_same_in_parts(size: int, with_clean: bool):
    graph, box = checked_graph(network(preset())), input_box(batch()[0], 0.005, with_clean=with_clean)

    def states(size: int) -> list[dict[str, Any]]:
        traces = traces_in_parts(graph, box, size, statistics=batch_statistics)
        return [state.to_dict() for state in layer_states(traces)]

    for one, other in zip(states(size), states(99), strict=True):
        assert one.pop("name") == other.pop("name")
        assert one == pytest.approx(other, rel=1e-9)


def test_a_step_that_is_not_finite_names_the_layer():
    stepper = Stepper(preset(micro_batch=4), network(preset()), PER_EPOCH)
    assert isinstance(stepper.preset.model, CNN)
    with torch.no_grad():
        stepper.network.conv2.weight[0, 0, 0, 0] = torch.nan
    stepper.run(12, *batch())
    assert stepper.read().failed == 12
    assert "'conv2_relu'" in stepper.explain(12, *batch())


def test_parts_in_bfloat16_are_near_the_whole():
    torch.set_default_dtype(torch.float32)
    found = []
    for size in (4, None):
        settings = preset(micro_batch=size, precision="bf16")
        stepper = Stepper(settings, network(settings).float(), PER_EPOCH)
        x, labels = batch()
        stepper.run(15, x.float(), labels)
        found.append(stepper.read().sums)
    assert found[0] == pytest.approx(found[1], rel=0.1, abs=0.1)
