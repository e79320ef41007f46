"""Losses and gradients of all objectives against the reference values: eager, compiled, in parts."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import batch_statistics
from certtrain.bounds.supported import checked_graph
from certtrain.training.passes import Clean, Passes
from certtrain.training.step import Stepper
from helpers.objective_oracles import Oracle, assert_gradients, assert_step, given, oracles, preset_of
from helpers.oracles import inputs, network

ALL = oracles()
EACH = pytest.mark.parametrize("oracle", ALL, ids=str)
# One of each objective, since compiling takes seconds and cannot depend on a number: with BatchNorm one for each kind
# of pass, and without it the other mixes of two losses, which have the passes of MTL-IBP.
SOME = [o for o in ALL if o.net == "mlp" and o.key in ("cc-ibp/alpha=0.5", "exp-ibp/alpha=0.5")]
SOME += [o for o in ALL if o.net != "mlp" and o.key.endswith(("mtl-ibp/alpha=0.5", "scale=4", "shrink=0.8"))]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_all_objectives_have_references():
    assert {oracle.key.partition("/")[0] for oracle in ALL} == {"mtl-ibp", "cc-ibp", "exp-ibp", "sabr", "taps"}
    assert len(ALL) == 30


@EACH
def test_each_examples_loss_and_the_gradient_are_the_references(oracle: Oracle):
    model, (x, labels) = network(oracle.net), inputs(oracle.net)
    graph = checked_graph(model)
    clean = Clean(*plain_pass(graph, x, statistics=batch_statistics))
    passes = Passes(graph, x, labels, oracle.radius, source=batch_statistics, clean=clean)
    losses = given(oracle, graph).robust(passes, oracle.found()).losses
    losses.mean().backward()
    torch.testing.assert_close(losses, oracle.value("each"), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses.mean(), oracle.value("loss"), rtol=1e-9, atol=1e-12)
    assert_gradients({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, oracle.gradients())


def stepped(oracle: Oracle, *, compile: bool = False, **train: object) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradients and the measures of a step with the attacked inputs of the file."""
    model, (x, labels) = network(oracle.net), inputs(oracle.net)
    stepper = Stepper(preset_of(oracle, **train), model, 10, compile=compile)
    stepper.objective = given(oracle, stepper.graph)
    stepper.run(0, x, labels)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, stepper.read().sums


@pytest.mark.parametrize("size", [None, 4])
@EACH
def test_a_step_whole_and_in_parts_has_the_references_gradient(oracle: Oracle, size: int | None):
    assert_step(oracle, *stepped(oracle, micro_batch=size))


@pytest.mark.slow
@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, of its internals, while it compiles
@pytest.mark.parametrize("oracle", SOME, ids=str)
def test_a_compiled_step_has_the_references_gradient(oracle: Oracle, monkeypatch: pytest.MonkeyPatch):
    torch.compiler.reset()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **options: real(*a, **options | {"backend": "aot_eager"}))
    assert_step(oracle, *stepped(oracle, compile=True))


def test_no_module_changes_its_mode():
    oracle = ALL[0]
    model, (x, labels) = network(oracle.net), inputs(oracle.net)
    stepper = Stepper(preset_of(oracle), model, 10)
    stepper.run(0, x, labels)
    assert not any(module.training for module in model.modules() if isinstance(module, nn.Module))
