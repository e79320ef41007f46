"""Passes of inputs without boxes, with given BatchNorm statistics, and the two parts of a network that is split."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from certtrain.bounds.box import input_box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import batch_statistics, running_statistics
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import trace_bounds
from helpers.small_steps import batch, network, preset

EPS = 0.05


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def case() -> tuple[nn.Module, LayerGraph]:
    model = network(preset()).eval()
    return model, checked_graph(model)


def test_a_plain_pass_by_running_statistics_is_inference():
    (model, graph), (x, _) = case(), batch()
    passed = plain_pass(graph, x)
    torch.testing.assert_close(passed.output, model(x))
    assert all(statistics.size is None for statistics in passed.statistics.values())


def test_statistics_that_are_given_do_not_depend_on_the_batch():
    (_, graph), (x, _) = case(), batch()
    whole = plain_pass(graph, x, statistics=batch_statistics)
    alone = torch.cat([plain_pass(graph, each, statistics=whole.statistics).output for each in torch.split(x, 1)])
    torch.testing.assert_close(alone, whole.output)
    assert not torch.allclose(plain_pass(graph, x[:4], statistics=batch_statistics).output, whole.output[:4])


@pytest.mark.parametrize("name", ["normalize", "conv1_bn", "conv2_relu", "flatten"])
def test_the_parts_of_a_split_network_are_the_network(name: str):
    (_, graph), (x, labels) = case(), batch()
    first, second = graph.split(graph.value_of(name))
    box = input_box(x, EPS, with_clean=True)
    whole = trace_bounds(graph, box, statistics=running_statistics)
    before = trace_bounds(first, box, statistics=running_statistics)
    after = trace_bounds(second, before.output, statistics=running_statistics)
    assert len(first.calls) + len(second.calls) == len(graph.calls)
    for mine, other in zip(after.output, whole.output, strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(after.margins(labels), whole.margins(labels))
