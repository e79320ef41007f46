"""Our optimisers are torch's to the last bit, and leave the weights alone after a step that was not finite."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certtrain.runs.checkpoint import load_state, state_tensors
from certtrain.spec.preset import load_preset
from certtrain.training.optimizer import SGD, Adam, AdamW, RAdam, make_optimizer, set_learning_rate

RATE, DECAY = 1e-2, 0.1
NAMES = ["adam", "adamw", "radam", "sgd"]
EACH = pytest.mark.parametrize("name", NAMES)
STEPS = 9  # RAdam's rectification begins with its sixth step


def made(name: str, model: nn.Module, bad: Tensor | None = None, **changes: Any) -> torch.optim.Optimizer:
    fields = {"train.optimizer": name, "train.learning_rate": RATE, "train.weight_decay": DECAY}
    settings = load_preset("digits", fields | {f"train.{field}": value for field, value in changes.items()}).train
    return make_optimizer(settings, model.parameters(), torch.zeros(()) if bad is None else bad)


def of_torch(name: str, model: nn.Module) -> torch.optim.Optimizer:
    parameters, rate = model.parameters(), torch.tensor(RATE)
    if name == "radam":
        return torch.optim.RAdam(parameters, RATE, weight_decay=DECAY, decoupled_weight_decay=True)
    if name == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=DECAY, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(parameters, rate, weight_decay=DECAY, fused=True)


def step(optimizer: torch.optim.Optimizer, model: nn.Module, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def batches(count: int = STEPS) -> Tensor:
    return torch.randn(count, 2, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(5, 3)


@EACH
def test_steps_and_state_are_those_of_torch(name: str, model: nn.Linear):
    theirs = copy.deepcopy(model)
    mine, reference = made(name, model), of_torch(name, theirs)
    for x in batches():
        step(mine, model, x)
        step(reference, theirs, x)
        mine.load_state_dict(copy.deepcopy(mine.state_dict()))
    torch.testing.assert_close(list(model.parameters()), list(theirs.parameters()), rtol=0, atol=0)
    torch.testing.assert_close(mine.state_dict(), reference.state_dict(), rtol=0, atol=0)


@EACH
def test_a_step_records_no_gradient_and_zero_grad_forgets(name: str, model: nn.Linear):
    optimizer = made(name, model)
    step(optimizer, model, batches()[0])
    assert model.weight.grad_fn is None
    optimizer.zero_grad()
    assert model.weight.grad is None


def test_each_name_has_its_class(model: nn.Linear):
    kinds = {"adam": Adam, "adamw": AdamW, "radam": RAdam, "sgd": SGD}
    assert {name: type(made(name, model)) for name in NAMES} == kinds
    for name in ("adam", "adamw", "sgd"):
        assert made(name, model).param_groups[0]["fused"]


# --- the preset's fields ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "decoupled"), [("adam", False), ("adamw", True), ("radam", True), ("sgd", False)])
def test_decoupled_weight_decay_shrinks_weights_without_a_gradient(name: str, decoupled: bool, model: nn.Linear):
    before, optimizer = model.weight.detach().clone(), made(name, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = torch.allclose(model.weight, before * (1 - RATE * DECAY), rtol=1e-6, atol=0)
    assert shrunk == (decoupled or name == "sgd")  # the first step of sgd is the gradient, here decay · w, itself
    assert not torch.equal(model.weight, before)


def test_without_momentum_sgd_is_the_gradient_alone(model: nn.Linear):
    optimizer = made("sgd", model, momentum=0.0, weight_decay=0.0)
    for x in batches(3):
        before = model.weight.detach().clone()
        step(optimizer, model, x)
        torch.testing.assert_close(model.weight, before - RATE * model.weight.grad)
    assert state_tensors({}, optimizer) == {}


@EACH
def test_the_learning_rate_is_that_of_the_step(name: str, model: nn.Linear):
    slow, fast = copy.deepcopy(model), copy.deepcopy(model)
    for one, rate in ((slow, 1e-3), (fast, 2e-3)):
        optimizer = made(name, one, weight_decay=0.0)
        set_learning_rate(optimizer, rate)
        step(optimizer, one, batches()[0])
    torch.testing.assert_close(fast.weight - model.weight, 2 * (slow.weight - model.weight), rtol=1e-3, atol=1e-7)


# --- what is not finite ----------------------------------------------------------------------------------


@EACH
def test_while_the_flag_is_set_no_weight_changes(name: str, model: nn.Linear):
    bad = torch.zeros(())
    optimizer = made(name, model, bad)
    step(optimizer, model, batches()[0])
    before = copy.deepcopy(model.state_dict())
    bad.fill_(1)
    for x in (torch.full((2, 5), math.nan), batches()[1]):
        step(optimizer, model, x)
        assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


# --- checkpoints -----------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_a_restored_optimiser_goes_on_with_the_same_bits(name: str, stop: int, model: nn.Linear):
    other, optimizer = copy.deepcopy(model), made(name, model)
    for x in batches()[:stop]:
        step(optimizer, model, x)
    tensors = state_tensors({"network": model}, optimizer)
    restored = made(name, other)
    load_state({key: tensor.clone() for key, tensor in tensors.items()}, {"network": other}, restored)
    for x in batches()[stop:]:
        step(optimizer, model, x)
        step(restored, other, x)
    found, expected = (state_tensors({"network": n}, o) for n, o in ((other, restored), (model, optimizer)))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_state_is_all_in_tensors(model: nn.Linear):
    names = {}
    for name in NAMES:
        optimizer = made(name, model)
        step(optimizer, model, batches()[0])
        names[name] = {key.rpartition("/")[2] for key in state_tensors({}, optimizer)}
    moments = {"step", "exp_avg", "exp_avg_sq"}
    assert names == {"adam": moments, "adamw": moments, "radam": moments, "sgd": {"momentum_buffer"}}
