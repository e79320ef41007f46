"""The L1 norm of weights in the loss, against autograd."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certtrain.bounds.supported import checked_graph
from certtrain.training.l1 import L1Penalty
from certtrain.training.step import Stepper
from helpers.small_steps import BATCH, PER_EPOCH, batch, network, preset

FACTOR = 0.03
WEIGHTS = {"conv1.weight", "conv2.weight", "linear1.weight", "head.weight"}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Networks and schedules in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def norm(of: nn.Module) -> Tensor:
    return torch.stack([parameter.abs().sum() for name, parameter in of.named_parameters() if name in WEIGHTS]).sum()


def stepped(step: int, **train: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradient of one step, and what it measures as means."""
    settings = preset(**train)
    one = Stepper(settings, network(settings), PER_EPOCH)
    one.run(step, *batch())
    gradients = {name: parameter.grad for name, parameter in one.network.named_parameters()}
    return gradients, {name: total / BATCH for name, total in one.read().sums.items()}


@pytest.mark.parametrize("step", [4, 15, 25])
@pytest.mark.parametrize("parts", [{}, {"micro_batch": 4}], ids=["whole", "in parts"])
def test_loss_and_gradient_are_those_of_autograd(step: int, parts: dict[str, Any]):
    plain, before = stepped(step, **parts)
    found, after = stepped(step, l1=FACTOR, **parts)
    model = network(preset())
    penalty = FACTOR * norm(model)
    penalty.backward()
    for name, parameter in model.named_parameters():
        expected = plain[name] + (0 if parameter.grad is None else parameter.grad)
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-14, msg=name)
        assert (parameter.grad is not None) == (name in WEIGHTS)
    assert after["l1_loss"] == pytest.approx(penalty.item(), rel=1e-12)
    assert after["loss"] == pytest.approx(before["loss"] + penalty.item(), rel=1e-12)
    assert {name: after[name] for name in before if name not in ("loss", "gradient_norm")} == {
        name: before[name] for name in before if name not in ("loss", "gradient_norm")
    }


def test_it_is_measured_only_if_it_is_there():
    assert "l1_loss" not in stepped(4)[1]


def test_the_gradient_is_clipped_with_it():
    gradients, measured = stepped(4, l1=100.0, clip_norm=1.0)
    whole, _ = stepped(4, l1=100.0)
    total = torch.cat([gradient.flatten() for gradient in whole.values()]).norm()
    assert measured["gradient_norm"] == pytest.approx(total.item())
    assert torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item() == pytest.approx(1.0)


def test_a_shared_weight_counts_once_and_zero_has_no_slope():
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, -2.0)
    layer.weight.data[0, 0] = 0.0
    penalty = L1Penalty(checked_graph(nn.Sequential(layer, nn.ReLU(), layer)), 0.5)
    assert penalty.measured({"loss": torch.tensor(1.0)}) == {"loss": 4.0, "l1_loss": 3.0}
    penalty.add_gradient()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[0.0, -0.5], [-0.5, -0.5]]
    assert layer.bias.grad is None


def test_a_norm_that_is_not_finite_stops_the_run():
    settings = preset(l1=1.0)
    one = Stepper(settings, network(settings), PER_EPOCH)
    with torch.no_grad():
        one.network.head.weight[0, 0] = torch.inf
    one.run(4, *batch())
    assert one.read().failed == 4
    assert "step 4: loss is" in one.explain(4, *batch())
