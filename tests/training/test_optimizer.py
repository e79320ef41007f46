"""Our Adam is torch's Adam to the last bit, its state included."""

import copy

import torch
from torch import nn

from certtrain.training.optimizer import Adam


def step(optimizer: torch.optim.Optimizer, model: nn.Module, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def test_steps_and_state_are_those_of_torch():
    torch.manual_seed(0)
    ours = nn.Linear(5, 3)
    theirs, batches = copy.deepcopy(ours), torch.randn(4, 2, 5)
    mine, reference = Adam(ours.parameters(), 1e-2, fused=True), torch.optim.Adam(theirs.parameters(), 1e-2, fused=True)
    for x in batches:
        step(mine, ours, x)
        step(reference, theirs, x)
        mine.load_state_dict(copy.deepcopy(mine.state_dict()))
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=0, atol=0)
    torch.testing.assert_close(mine.state_dict(), reference.state_dict(), rtol=0, atol=0)


def test_a_step_records_no_gradient_and_zero_grad_forgets():
    model = nn.Linear(2, 1)
    optimizer = Adam(model.parameters(), 1e-2, fused=True)
    step(optimizer, model, torch.ones(1, 2))
    assert model.weight.grad_fn is None
    optimizer.zero_grad()
    assert model.weight.grad is None
