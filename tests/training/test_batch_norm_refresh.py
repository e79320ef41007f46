"""BatchNorm's running statistics over the whole training set, against torch's own BatchNorm in training mode."""

import copy
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from certtrain.data import Augmentation, Batches
from certtrain.training.batch_norm_refresh import BatchNormRefresh
from certtrain.training.distributed import SINGLE_PROCESS, Group
from helpers.small_steps import SHAPE, network, preset

SIZE = 4


class CountedBatches(Batches):
    """Counts the batches that are asked for."""

    asked = 0

    def plain_batch(self, step: int) -> Tensor:
        """The batch."""
        self.asked += 1
        return super().plain_batch(step)


def batches(count: int = 14, **changes: object) -> CountedBatches:
    images = torch.randint(0, 256, (count, *SHAPE), generator=torch.Generator().manual_seed(3)).byte()
    augmentation = Augmentation(flip=True, crop_padding=2)
    labels = torch.zeros(count, dtype=torch.int64)
    return CountedBatches(images, labels, batch_size=SIZE, seed=0, augmentation=augmentation, **changes)


def small_network() -> nn.Sequential:
    """With BatchNorm after convolutions and after a linear layer."""
    return network(preset()).float().eval()


def norms(of: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    return [layer for layer in of.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]


def statistics(of: nn.Module) -> list[Tensor]:
    return [tensor.clone() for layer in norms(of) for tensor in (layer.running_mean, layer.running_var)]


def refresh(networks: list[nn.Module], data: Batches, group: Group = SINGLE_PROCESS) -> None:
    BatchNormRefresh(networks, data, group).run()


def by_torch(of: nn.Module, data: Batches) -> list[Tensor]:
    """The mean and the unbiased variance of all values at each BatchNorm, with torch in training mode."""
    model, seen = copy.deepcopy(of).train(), defaultdict[int, list[Tensor]](list)

    def recorder(number: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def record(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            seen[number].append(inputs[0].transpose(0, 1).flatten(1))

        return record

    for number, layer in enumerate(norms(model)):
        layer.register_forward_pre_hook(recorder(number))
    with torch.no_grad():
        for step in range(data.steps_per_epoch):
            model(data.plain_batch(step))
    values = [torch.cat(seen[number], dim=1).double() for number in sorted(seen)]
    return [moment.float() for rows in values for moment in (rows.mean(1), rows.var(1))]


@pytest.mark.parametrize(
    "count", [12, 14, 13, 3], ids=["equal batches", "a short last one", "one left over", "one batch"]
)
def test_statistics_are_those_of_all_values(count: int):
    model, data = small_network(), batches(count)
    assert len(norms(model)) == 3
    refresh([model], data)
    torch.testing.assert_close(statistics(model), by_torch(model, data), rtol=1e-4, atol=1e-5)


def test_at_the_input_they_are_those_of_the_pixels():
    model = nn.Sequential(nn.BatchNorm2d(SHAPE[0]), nn.Flatten(), nn.Linear(72, 3)).eval()
    data = batches(13)
    refresh([model], data)
    pixels = torch.cat([data.plain_batch(step) for step in range(3)]).double().transpose(0, 1).flatten(1)
    assert pixels.shape[1] == 13 * 36
    expected = [pixels.mean(1).float(), pixels.var(1).float()]
    torch.testing.assert_close(statistics(model), expected, rtol=1e-6, atol=0)


def test_they_are_a_function_of_weights_and_images_alone():
    model, data = small_network(), batches()
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    refresh([model], data)
    first = statistics(model)
    for layer in norms(model):
        nn.init.constant_(layer.running_mean, 7.0)
        nn.init.constant_(layer.running_var, 7.0)
    data.batch(3, 0)  # another epoch's order
    refresh([model], data)
    assert all(torch.equal(one, two) for one, two in zip(first, statistics(model), strict=True))
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("training", [True, False])
def test_no_mode_is_changed(training: bool):
    model = small_network().train(training)
    refresh([model], batches())
    assert {module.training for module in model.modules()} == {training}


def test_a_layer_called_twice_has_the_values_of_both_calls():
    norm = nn.BatchNorm1d(5)
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(72, 5), norm, nn.ReLU(), norm, nn.Linear(5, 3)), batches()
    refresh([model.eval()], data)
    found = statistics(model)
    torch.testing.assert_close(found, by_torch(model, data), rtol=1e-4, atol=1e-5)


def test_layers_without_running_statistics_and_networks_without_batch_norm_are_left_alone():
    untracked = nn.BatchNorm1d(5, track_running_stats=False)
    data = batches()
    refresh([nn.Sequential(nn.Flatten(), nn.Linear(72, 5), untracked, nn.Linear(5, 3))], data)
    refresh([nn.Sequential(nn.Flatten(), nn.Linear(72, 5))], data)
    assert untracked.running_mean is None
    assert data.asked == 0


def test_an_average_has_its_own_statistics_and_a_copy_takes_those_of_the_network():
    model, data = small_network(), batches()
    twin, other = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        other.conv1.weight.mul_(-1.5)
    refresh([model, twin], data)
    assert data.asked == data.steps_per_epoch
    assert all(torch.equal(one, two) for one, two in zip(statistics(model), statistics(twin), strict=True))
    refresh([model, other], data)
    assert data.asked == 3 * data.steps_per_epoch
    torch.testing.assert_close(statistics(other), by_torch(other, data), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other.conv1_bn.running_mean, model.conv1_bn.running_mean)


def test_more_ranks_than_batches_are_no_matter():
    """The group's sum is of this rank alone, so what the rank has not computed stays zero."""

    class Alone(Group):
        def sum(self, tensor: Tensor) -> Tensor:
            """Of this rank alone."""
            seen.append(tensor)
            return tensor + 1  # so that no number of values is zero

    seen: list[Tensor] = []
    data = batches(5, rank=0, ranks=1)
    for rank in range(2):
        refresh([small_network()], data, Alone(rank, 2))
    assert data.asked == data.steps_per_epoch == 1
    assert seen[0].abs().sum() > 0
    assert seen[1].abs().sum() == 0
