"""Objectives beside plain IBP are a few lines over the passes, eager and compiled, and can be taken in micro-batches.

SABR (Müller et al. 2023): a small box around an attacked input. MTL-IBP (De Palma et al. 2024): a mix with the loss at
an attacked input. TAPS (Mao et al. 2023): an attack in the box before the second part of the network.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.attack.descent import ascend
from certtrain.bounds.box import Box, box_between, input_box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import StatisticsByCall, batch_statistics, running_statistics
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import trace_bounds
from certtrain.training.micro_batches import Accumulated, Accumulation, Bounded, TrainingBatch
from certtrain.training.objective import certified_cross_entropy
from helpers.small_steps import SHAPE, batch, network, preset

EPS, SMALL, STEPS = 0.05, 0.02, 4
Objective = Callable[[LayerGraph, Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- the objectives --------------------------------------------------------------------------------------


def attacked(graph: LayerGraph, box: Box, labels: Tensor, statistics: StatisticsByCall) -> Tensor:
    """An input of each box where the cross-entropy is high, under the statistics of the clean batch."""

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(plain_pass(graph, x, statistics=statistics).output, labels, reduction="none")

    return ascend(loss, box, 0.5, STEPS)


def sabr_bounds(graph: LayerGraph, x: Tensor, labels: Tensor, statistics: StatisticsByCall) -> Bounded:
    box = input_box(x, EPS)
    point = attacked(graph, box, labels, statistics)
    centre = torch.clamp(point, box.lower + SMALL, box.upper - SMALL)
    trace = trace_bounds(graph, box_between(centre - SMALL, centre + SMALL), statistics=statistics)
    return Bounded(trace.margins(labels), trace)


def sabr(graph: LayerGraph, x: Tensor, labels: Tensor) -> Tensor:
    clean = plain_pass(graph, x, statistics=batch_statistics)
    return certified_cross_entropy(sabr_bounds(graph, x, labels, clean.statistics).margins, labels)


def mtl_ibp(graph: LayerGraph, x: Tensor, labels: Tensor) -> Tensor:
    trace = trace_bounds(graph, input_box(x, EPS, with_clean=True), statistics=batch_statistics)
    point = attacked(graph, input_box(x, EPS), labels, trace.statistics)
    adversarial = F.cross_entropy(plain_pass(graph, point, statistics=trace.statistics).output, labels)
    return 0.5 * adversarial + 0.5 * certified_cross_entropy(trace.margins(labels), labels)


def taps(graph: LayerGraph, x: Tensor, labels: Tensor) -> Tensor:
    """The latent point has a gradient to the ends of its box, by its place between them."""
    first, second = graph.split(graph.value_of("conv2_relu"))
    statistics = plain_pass(graph, x, statistics=batch_statistics).statistics
    box = trace_bounds(first, input_box(x, EPS), statistics=statistics).output
    point = attacked(second, box, labels, statistics)
    place = ((point - box.lower) / (2 * box.radius).clamp(min=1e-12)).detach()
    latent = torch.lerp(box.lower, box.upper, place)
    return F.cross_entropy(plain_pass(second, latent, statistics=statistics).output, labels)


OBJECTIVES: dict[str, Objective] = {"SABR": sabr, "MTL-IBP": mtl_ibp, "TAPS": taps}
EVERY_OBJECTIVE = pytest.mark.parametrize("name", OBJECTIVES)


class Result(NamedTuple):
    loss: Tensor
    gradients: dict[str, Tensor]


def result(model: nn.Module, function: Callable[..., Tensor]) -> Result:
    """Of one training step's loss on a network and batch that are always the same."""
    model.zero_grad()
    loss = function(*batch())
    loss.backward()  # type: ignore[no-untyped-call]
    return Result(loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def case() -> tuple[nn.Module, LayerGraph]:
    model = network(preset()).eval()
    return model, checked_graph(model)


# --- what they give --------------------------------------------------------------------------------------


@EVERY_OBJECTIVE
def test_an_objective_trains_every_weight_and_changes_no_statistics(name: str):
    model, graph = case()
    before = {key: value.clone() for key, value in model.named_buffers()}
    found = result(model, lambda x, labels: OBJECTIVES[name](graph, x, labels))
    assert found.loss.isfinite()
    assert found.gradients.keys() == dict(model.named_parameters()).keys()
    assert all(float(g.abs().max()) > 0 for key, g in found.gradients.items() if key.endswith("weight"))
    assert all(torch.equal(before[key], value) for key, value in model.named_buffers())
    with torch.no_grad():
        torch.testing.assert_close(OBJECTIVES[name](graph, *batch()), found.loss)


def test_each_lies_between_the_natural_loss_and_that_of_the_whole_box():
    (_, graph), (x, labels) = case(), batch()
    with torch.no_grad():
        whole = trace_bounds(graph, input_box(x, EPS, with_clean=True), statistics=batch_statistics)
        assert whole.clean is not None
        natural, certified = (
            F.cross_entropy(whole.clean, labels),
            certified_cross_entropy(whole.margins(labels), labels),
        )
        point = attacked(graph, input_box(x, EPS), labels, whole.statistics)
        adversarial = F.cross_entropy(plain_pass(graph, point, statistics=whole.statistics).output, labels)
        found = {name: objective(graph, x, labels) for name, objective in OBJECTIVES.items()}
    assert natural < adversarial < found["SABR"] < certified
    assert adversarial < found["TAPS"] < certified
    assert found["MTL-IBP"] == 0.5 * adversarial + 0.5 * certified


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, of its internals, while it compiles
@EVERY_OBJECTIVE
def test_a_compiled_objective_is_one_graph_with_the_same_gradient(name: str):
    torch.compiler.reset()
    model, graph = case()
    eager = result(model, lambda x, labels: OBJECTIVES[name](graph, x, labels))
    options = {"fullgraph": True, "dynamic": False, "backend": "aot_eager"}  # no C++ is made, which takes longest
    compiled = torch.compile(lambda x, labels: OBJECTIVES[name](graph, x, labels), **options)
    found = result(model, compiled)
    torch.testing.assert_close(found.loss, eager.loss)
    for key, gradient in eager.gradients.items():
        torch.testing.assert_close(found.gradients[key], gradient, rtol=1e-7, atol=1e-9, msg=key)


@pytest.mark.parametrize("size", [1, 4, 50])
def test_micro_batches_take_any_objectives_bounds(size: int):
    model, graph = case()
    whole = result(model, lambda x, labels: sabr(graph, x, labels))
    model.zero_grad()
    x, labels = batch()
    settings = Accumulation(graph, size, batch_statistics, lambda sums: sums, nullcontext)

    def bound(x: Tensor, labels: Tensor, statistics: StatisticsByCall) -> Bounded:
        return sabr_bounds(graph, x, labels, statistics)

    parts = Accumulated(settings, TrainingBatch(x, labels, bound, torch.tensor(1.0), None, 1.0))
    torch.testing.assert_close(parts.terms.robust, whole.loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole.gradients[name], rtol=1e-9, atol=1e-11, msg=name)


# --- the passes ------------------------------------------------------------------------------------------


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


def test_an_attack_stays_in_its_boxes_and_finds_more_than_their_centres():
    (_, graph), (x, labels) = case(), batch()
    statistics, box = plain_pass(graph, x).statistics, input_box(x, EPS)
    point = attacked(graph, box, labels, statistics)
    assert point.shape == (len(x), *SHAPE)
    assert not point.requires_grad
    assert bool(((point >= box.lower) & (point <= box.upper)).all())
    losses = [F.cross_entropy(plain_pass(graph, at).output, labels, reduction="none") for at in (box.centre, point)]
    assert bool((losses[1] > losses[0]).all())
