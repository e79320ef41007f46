"""One training step: what it measures, what it leaves alone, and in which arithmetic it computes."""

import contextlib
import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from certtrain.attack import PGD
from certtrain.errors import DeviceError, UnsupportedLayer
from certtrain.network.models import InputSpec, build_model
from certtrain.runtime.precision import arithmetic, check_precision, tensor_cores
from certtrain.spec.preset import load_preset
from certtrain.training.step import Stepper
from certtrain.verification.verify import verify
from helpers.tiny_classifier import classifier, images

PER_EPOCH = 10


def stepper(seed: int = 0, **changes: object) -> Stepper:
    """Of a small network for 8×8 images; ε is zero in epoch 1, rises in 2 and 3, and is at its end from 4 on."""
    settings = {"model.channels": [4], "model.kernels": [3], "model.strides": [2], "model.linear": [8]}
    settings |= {"eps.start": 2, "eps.length": 2, "train.epochs": 5}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    preset = load_preset("digits", settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_model(preset.model, InputSpec((1, 8, 8), 10, (0.5,), (0.25,)))
    return Stepper(preset, network.to(memory_format=torch.channels_last), PER_EPOCH)


def batch(seed: int = 0, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, 1, 8, 8, generator=generator), torch.randint(10, (size,), generator=generator)


def test_a_step_asks_for_no_mode_and_changes_none():
    found = []
    for training in (True, False):
        one = stepper(eps__start=1)
        one.network.train(training)
        one.run(15, *batch())
        assert {module.training for module in one.network.modules()} == {training}
        found.append(state(one))
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_a_network_that_is_random_in_training_is_refused():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.2), nn.Linear(10, 10))
    with pytest.raises(UnsupportedLayer, match="'2' is random in training"):
        Stepper(load_preset("digits"), layers.eval(), PER_EPOCH)


def state(of: Stepper) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in of.network.named_parameters()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


# --- what is measured ------------------------------------------------------------------------------------


def test_sums_are_over_examples():
    one = stepper()
    one.run(0, *batch(size=12))
    alone = one.read().sums
    one.run(1, *batch(1, size=6))
    both = one.read().sums
    assert (alone["examples"], both["examples"]) == (12, 18)
    two = stepper()
    two.run(0, *batch(size=12))
    two.set_sums({})
    two.run(1, *batch(1, size=6))
    for name, value in two.read().sums.items():
        assert alone[name] + value == pytest.approx(both[name]), name


def test_sums_go_on_from_where_they_were():
    one, two = stepper(), stepper()
    one.run(0, *batch())
    sums = one.read().sums
    two.set_sums(sums)
    assert two.read().sums == sums


# radam's numbers of steps are on the CPU; test_device.py has the test that it reads nothing else.
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_nothing_is_read_from_the_device_in_a_step(optimizer: str, monkeypatch: pytest.MonkeyPatch):
    one = stepper(train__optimizer=optimizer, train__l1=1e-3, train__average_from=2)
    one.run(25, *batch())

    def refuse(*arguments: object) -> None:
        raise AssertionError("a step waits for the device")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, refuse)
    for step in (5, 15, 35):
        one.run(step, *batch())


# --- what is not finite ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "radam", "sgd"])
def test_after_a_step_that_is_not_finite_no_weight_changes_again(optimizer: str):
    one = stepper(train__optimizer=optimizer, train__weight_decay=0.1, train__l1=1e-3)
    one.run(0, *batch())
    before = state(one)
    one.run(1, torch.full((12, 1, 8, 8), math.nan), batch()[1])
    one.run(2, *batch())
    one.run(3, torch.full((12, 1, 8, 8), math.nan), batch()[1])
    assert equal(before, state(one))
    assert one.read().failed == 1


def test_the_failure_is_explained():
    one = stepper()
    with torch.no_grad():
        one.network.linear1.weight[0, 0] = math.nan
    one.run(7, *batch())
    assert one.read().failed == 7
    expected = r"step 7: loss is nan; the first layer with a value that is not finite is 'linear1_relu'"
    assert expected in one.explain(7, *batch())


def test_the_average_moves_by_its_decay():
    one = stepper(train__average=0.75)
    start = {name: tensor.clone() for name, tensor in one.result.state_dict().items()}
    one.run(25, *batch())
    now = one.network.state_dict()
    for name, mean in one.result.state_dict().items():
        expected = 0.75 * start[name] + 0.25 * now[name] if mean.is_floating_point() else now[name]
        assert torch.allclose(mean, expected, rtol=1e-5, atol=1e-7), name
    assert stepper().result is not one.network


# --- statistics ------------------------------------------------------------------------------------------


def test_with_centre_statistics_no_clean_batch_is_carried():
    one = stepper(train__batch_norm_statistics="centre")
    one.run(0, *batch())
    assert not {"natural_loss", "natural_accuracy"} & set(one.read().sums)


def test_both_statistics_agree_while_eps_is_zero():
    clean, centre = stepper(), stepper(train__batch_norm_statistics="centre")
    for one in (clean, centre):
        one.run(0, *batch())
    assert centre.read().sums["loss"] == pytest.approx(clean.read().sums["loss"], rel=1e-4)


# --- arithmetic ------------------------------------------------------------------------------------------


def test_bf16_reaches_the_convolutions_and_nothing_that_is_added_up():
    one, kinds = stepper(train__precision="bf16"), {}

    def watch(name: str) -> None:
        layer = dict(one.network.named_modules())[name]
        original = layer.forward

        def forward(x: Tensor) -> Tensor:
            kinds[name] = original(x).dtype
            return original(x)

        layer.forward = forward

    watch("conv1")
    one.run(25, *batch())
    assert kinds == {"conv1": torch.bfloat16}
    assert {tensor.dtype for tensor in one.network.state_dict().values()} == {torch.float32, torch.int64}
    assert all(parameter.grad.dtype == torch.float32 for parameter in one.network.parameters())
    assert all(math.isfinite(value) for value in one.read().sums.values())


def test_bf16_is_near_fp32():
    exact, coarse = stepper(), stepper(train__precision="bf16")
    for one in (exact, coarse):
        one.run(25, *batch())
    for name, value in exact.read().sums.items():
        if name.endswith("loss"):
            assert coarse.read().sums[name] == pytest.approx(value, rel=0.05, abs=0.05), name
    assert exact.read().sums["loss"] != coarse.read().sums["loss"]


@pytest.fixture
def flags() -> tuple[bool, bool]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_bf16_reduced_precision_reduction = True  # as PyTorch has it, whatever another test has left
    yield before
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize("allowed", [True, False])
def test_tensor_cores_are_switched_and_switched_back(allowed: bool, flags: tuple[bool, bool]):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.allow_tf32, cudnn.allow_tf32 = not allowed, not allowed
    with contextlib.suppress(KeyError), tensor_cores(allowed):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
        assert not matmul.allow_bf16_reduced_precision_reduction
        raise KeyError
    assert (matmul.allow_tf32, cudnn.allow_tf32) == (not allowed, not allowed)
    assert matmul.allow_bf16_reduced_precision_reduction


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_fp32_means_fp32(precision: str, allowed: bool, flags: tuple[bool, bool]):
    torch.backends.cudnn.allow_tf32 = True  # as PyTorch has it
    with arithmetic(precision, "cpu"):
        assert torch.backends.cudnn.allow_tf32 == allowed
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16")


def test_verification_is_in_full_precision(flags: tuple[bool, bool]):
    torch.backends.cudnn.allow_tf32, seen = True, []
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        verify(
            classifier(),
            images(),
            0.01,
            attack=PGD(2),
            on_examples=lambda points: seen.append(torch.backends.cudnn.allow_tf32),
        )
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_the_gradient_is_in_the_steps_arithmetic_too(flags: tuple[bool, bool]):
    torch.backends.cudnn.allow_tf32 = True  # as PyTorch has it
    one, seen = stepper(), []
    one.network.conv1.weight.register_hook(lambda gradient: seen.append(torch.backends.cudnn.allow_tf32))
    one.run(25, *batch())
    assert seen
    assert not any(seen)


@pytest.mark.parametrize(("precision", "device"), [("fp32", "cpu"), ("bf16", "cpu"), ("tf32", "cuda")])
def test_devices_have_their_arithmetic(precision: str, device: str):
    check_precision(precision, device)


def test_tf32_on_a_cpu_is_an_error():
    with pytest.raises(DeviceError, match="choose fp32 or bf16"):
        check_precision("tf32", "cpu")


def test_the_optimiser_is_the_fused_adam():
    assert stepper().optimizer.param_groups[0]["fused"]
    assert isinstance(stepper().network, nn.Sequential)


# --- linear bounds ---------------------------------------------------------------------------------------


def robust_losses(steps: list[int], **changes: object) -> list[float]:
    """The robust loss of each step alone, all from the same weights and batch."""
    losses = []
    for step in steps:
        one = stepper(**changes)
        one.run(step, *batch())
        losses.append(one.read().sums["robust_loss"] / 12)
    return losses


NATURAL, RAMP, END = 5, 20, 35


@pytest.mark.parametrize("loss_fusion", [True, False])
def test_linear_bounds_take_part_while_the_radius_rises(loss_fusion: bool):
    plain = robust_losses([NATURAL, RAMP, END])
    found = robust_losses([NATURAL, RAMP, END], objective__name="crown-ibp", objective__loss_fusion=loss_fusion)
    assert (found[0], found[2]) == (plain[0], plain[2])
    assert found[1] < plain[1]


def test_linear_bounds_are_left_out_where_they_have_no_weight(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object) -> None:
        raise AssertionError("a pass back whose result has no weight")

    one = stepper(objective__name="crown-ibp")
    monkeypatch.setattr("certtrain.training.objectives.interval.fused_cross_entropy", refuse)
    for step in (NATURAL, END):
        one.run(step, *batch())
    with pytest.raises(AssertionError, match="pass back"):
        one.run(RAMP, *batch())


def test_linear_bounds_go_with_the_centres_statistics_too():
    changes = {"objective__name": "crown-ibp", "train__batch_norm_statistics": "centre"}
    assert robust_losses([RAMP], **changes)[0] < robust_losses([RAMP], train__batch_norm_statistics="centre")[0]


@pytest.mark.parametrize("loss_fusion", [True, False])
def test_linear_bounds_in_bf16_are_close_to_those_in_fp32(loss_fusion: bool):
    changes = {"objective__name": "crown-ibp", "objective__loss_fusion": loss_fusion}
    full, half = (robust_losses([RAMP], train__precision=precision, **changes) for precision in ("fp32", "bf16"))
    assert half == pytest.approx(full, rel=0.05)


def test_two_threads_give_the_same_bits_in_every_run():
    """torch's gradient of an index adds in the order in which its threads come to it; 128 × 512 values take two."""
    preset = load_preset(
        "digits", {"model.channels": [4], "model.kernels": [3], "model.strides": [2], "model.linear": [512]}
    )
    network = build_model(preset.model, InputSpec((1, 8, 8), 10, (0.5,), (0.25,)))
    x, labels = batch(size=128)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [gradients(Stepper(preset, copy.deepcopy(network), PER_EPOCH), x, labels) for _ in range(12)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in itertools.pairwise(found))


def gradients(of: Stepper, x: Tensor, labels: Tensor) -> Tensor:
    """All gradients of a certified step."""
    of.run(6 * PER_EPOCH, x, labels)
    return torch.cat([weight.grad.flatten() for weight in of.network.parameters()])
