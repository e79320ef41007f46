"""A pass of plain inputs, and what decides whether BatchNorm trains: the argument of a pass, and no module's mode."""

import copy

import pytest
import torch
from torch import Tensor, nn

from certtrain.bounds.box import input_box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import (
    StatisticsSource,
    batch_statistics,
    running_statistics,
    update_running_statistics,
)
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import trace_bounds
from certtrain.errors import DataError, UnsupportedLayer

SOURCES: dict[str, StatisticsSource] = {"batch": batch_statistics, "running": running_statistics}
EVERY_SOURCE = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


class Mixed(nn.Module):
    """A residual network with layers that work in place, and BatchNorm called twice."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(32, 3)
            self.norm, self.pool = nn.BatchNorm2d(2), nn.AvgPool2d(1)
            self.norm.load_state_dict(
                {"weight": torch.rand(2) + 0.5, "bias": torch.randn(2), "running_mean": torch.rand(2)}
                | {"running_var": torch.rand(2) + 0.5, "num_batches_tracked": torch.tensor(3)}
            )
        self.first, self.leaky, self.drop = nn.ReLU(inplace=True), nn.LeakyReLU(0.1, inplace=True), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.leaky(self.norm(self.conv(self.first(x))))
        x = torch.relu(self.norm(self.conv(x)) + x)
        return self.head(torch.flatten(self.drop(self.pool(x)), 1))


def case(*, training: bool = False) -> tuple[nn.Module, LayerGraph, Tensor]:
    model = Mixed().double().eval()
    x = torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.3
    model.norm.train(training)  # a Dropout that trains has no bounds
    return model, checked_graph(model), x


@EVERY_SOURCE
def test_it_computes_what_a_pass_of_boxes_computes_of_the_clean_batch(source: StatisticsSource):
    _, graph, x = case()
    before = x.clone()
    passed = plain_pass(graph, x, statistics=source)
    trace = trace_bounds(graph, input_box(x, 0.1, None, with_clean=True), statistics=source)
    assert trace.clean is not None
    torch.testing.assert_close(passed.output, trace.clean)
    assert torch.equal(x, before)  # whatever the first layer does in place
    assert list(passed.statistics) == list(trace.statistics) == ["norm", "norm_1"]
    for name, mine in passed.statistics.items():
        other = trace.statistics[name]
        torch.testing.assert_close((mine.mean, mine.variance), (other.mean, other.variance))
        assert mine.size == other.size


def test_by_running_statistics_it_is_inference_and_by_the_batchs_it_is_a_training_step():
    model, graph, x = case()
    torch.testing.assert_close(plain_pass(graph, x).output, model(x.clone()))
    model.norm.train()
    before = copy.deepcopy(model.norm.state_dict())
    passed = plain_pass(graph, x, statistics=batch_statistics)
    assert all(torch.equal(value, before[name]) for name, value in model.norm.state_dict().items())
    update_running_statistics(passed.statistics)
    mine = copy.deepcopy(model.norm.state_dict())
    model.norm.load_state_dict(before)
    torch.testing.assert_close(passed.output, model(x.clone()))
    torch.testing.assert_close(mine, model.norm.state_dict())


@EVERY_SOURCE
def test_the_mode_of_a_module_decides_nothing(source: StatisticsSource):
    found = []
    for training in (True, False):
        _, graph, x = case(training=training)
        box = input_box(x, 0.1, None, with_clean=True)
        found.append([plain_pass(graph, x, statistics=source).output])
        found[-1] += trace_bounds(graph, box, statistics=source).output
    for mine, other in zip(*found, strict=True):
        assert torch.equal(mine, other)


def test_running_statistics_are_never_remembered_again():
    model, graph, x = case()
    before = copy.deepcopy(model.norm.state_dict())
    update_running_statistics(plain_pass(graph, x).statistics)
    assert all(torch.equal(value, before[name]) for name, value in model.norm.state_dict().items())


def test_given_statistics_serve_any_number_of_passes():
    _, graph, x = case()
    whole = plain_pass(graph, x, statistics=batch_statistics)
    for _ in range(2):
        alone = torch.cat([plain_pass(graph, each, statistics=whole.statistics).output for each in torch.split(x, 1)])
        torch.testing.assert_close(alone, whole.output)
    with pytest.raises(KeyError, match="norm"):
        plain_pass(graph, x, statistics={})


def test_gradients_pass_to_inputs_weights_and_statistics():
    model, graph, x = case()
    x.requires_grad_()
    plain_pass(graph, x, statistics=batch_statistics).output.square().sum().backward()
    model.norm.train()
    twin = x.detach().clone().requires_grad_()
    mine = [x.grad, *(parameter.grad.clone() for parameter in model.parameters())]
    model.zero_grad()
    model(twin * 1).square().sum().backward()
    for one, other in zip(mine, [twin.grad, *(parameter.grad for parameter in model.parameters())], strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_random_or_does_not_fit_is_refused():
    model, graph, x = case()
    model.drop.train()
    with pytest.raises(UnsupportedLayer, match="random in training"):
        plain_pass(graph, x)
    asking = checked_graph(nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten()))
    bound = LayerGraph(asking.calls, shape=(2, 4, 4))
    with pytest.raises(DataError, match=r"read for inputs of shape \(B, 2, 4, 4\)"):
        plain_pass(bound, torch.rand(1, 2, 5, 5))
