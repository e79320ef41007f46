"""A training step keeps to its device and never waits for it, tried on torch's device without values, "meta".

Whatever needs a value there is an error, and so is an operation on tensors of
two devices: what a GPU would only be slow at, or fail at, fails here.
"""

from collections.abc import Iterable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from certtrain.data import Augmentation, Batches
from certtrain.network.models import InputSpec, build_model
from certtrain.spec.preset import TrainSection, load_preset
from certtrain.training import step as steps
from certtrain.training.step import Stepper

SHAPE, DEVICE, PER_EPOCH = (3, 32, 32), torch.device("meta"), 4
# This device draws no random numbers by a seed.
CENTRE = {"objective.attack.start": 0}
LATENT_CENTRE = {"objective.latent_attack.start": 0}
CHOICES = {
    "as the paper has it": {},
    "centre statistics": {"train.batch_norm_statistics": "centre"},
    "a moving average": {"train.average": 0.99},
    "a mean of epochs": {"train.average_from": 1},
    "L1": {"train.l1": 1e-5},
    "parts of a batch": {"train.micro_batch": 4},
    "linear bounds": {"objective.name": "crown-ibp"},
    "linear bounds by class": {"objective.name": "crown-ibp", "objective.loss_fusion": False},
    "two losses": {"objective.name": "mtl-ibp", "objective.attack.restarts": 2, **CENTRE},
    "small boxes": {
        "objective.name": "sabr",
        "objective.attack.keep": "best",
        **CENTRE,
        "objective.relu_shrinkage": 0.5,
    },
    "a latent attack": {"objective.name": "staps", **CENTRE, **LATENT_CENTRE},
    "a latent attack in parts": {"objective.name": "taps", "train.micro_batch": 4, **LATENT_CENTRE},
}


class Still(torch.optim.SGD):
    """In place of the fused optimisers, which this device has not: it changes nothing."""

    def __init__(self, settings: TrainSection, parameters: Iterable[nn.Parameter], bad: Tensor) -> None:
        super().__init__(parameters)
        self.param_groups[0]["lr"] = torch.tensor(settings.learning_rate, device=bad.device)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Nothing."""


def stepper(**changes: object) -> Stepper:
    small = {"model.name": "cnn", "model.channels": [4, 4], "model.strides": [2, 2], "model.linear": [8]}
    small |= {"model.kernels": [3, 3], "train.batch_size": 8, "eps.start": 1, "eps.length": 2}
    preset = load_preset("cifar10-160ep", small | changes)
    network: nn.Module = build_model(preset.model, InputSpec(SHAPE, 10, (0.5,) * 3, (0.25,) * 3))
    return Stepper(preset, network.to(DEVICE, memory_format=torch.channels_last), PER_EPOCH)


def batches() -> Batches:
    images, labels = torch.zeros(32, *SHAPE, dtype=torch.uint8), torch.zeros(32, dtype=torch.int64)
    return Batches(images, labels, batch_size=8, seed=0, augmentation=Augmentation(True, 2), device=DEVICE)


@pytest.mark.parametrize("changes", CHOICES.values(), ids=CHOICES)
def test_a_step_keeps_to_its_device_and_reads_nothing(monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]):
    monkeypatch.setattr(steps, "make_optimizer", Still)
    monkeypatch.setattr(steps, "arithmetic", lambda *_: nullcontext())  # the device has no torch.autocast
    one, data = stepper(**changes), batches()
    for step in (0, 2 * PER_EPOCH + 1):  # in the ramp and after it
        one.run(step, *data.batch(0, step % PER_EPOCH))
    assert {parameter.grad.device for parameter in one.network.parameters() if parameter.grad is not None} == {DEVICE}
    assert one.sums.values.device == DEVICE


@pytest.mark.parametrize("foreach", [False, True])
def test_radam_which_is_not_fused_reads_nothing_either(monkeypatch: pytest.MonkeyPatch, foreach: bool):
    monkeypatch.setattr(steps, "arithmetic", lambda *_: nullcontext())
    one, data = stepper(**{"train.optimizer": "radam", "train.weight_decay": 0.01}), batches()
    one.optimizer.param_groups[0]["foreach"] = foreach  # which torch chooses on a GPU
    for step in range(8):  # the sixth is the first with the rectified rate
        one.run(step, *data.batch(0, step % PER_EPOCH))
    states = list(one.optimizer.state.values())
    assert {(state["exp_avg"].device, state["step"].item()) for state in states} == {(DEVICE, 8.0)}


def test_what_is_read_or_left_behind_would_be_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steps, "make_optimizer", Still)
    monkeypatch.setattr(steps, "arithmetic", lambda *_: nullcontext())
    one, (x, labels) = stepper(), batches().batch(0, 0)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        one.read()
    with pytest.raises(RuntimeError, match="device"):
        one.run(0, torch.zeros(x.shape), labels)
