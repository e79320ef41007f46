"""A whole training against a second implementation of the paper's, in float64, with autograd alone.

Shi et al. 2021: the ramp of ε, BatchNorm's statistics of the clean batch, the certified cross-entropy, both
regularisers, clipping, Adam and the milestones. It shares no code with certtrain but the batches and the first weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.network.initialization import ibp_init_
from certtrain.network.models import InputSpec, build_model
from certtrain.spec.preset import Preset, load_preset
from certtrain.training.step import Stepper

MEAN, STD, LAYERS = 0.4, 0.3, ("conv1", "conv2", "linear1")
EPOCHS, PER_EPOCH, BATCH, START, LENGTH = 6, 10, 16, 2, 3
RATE, DECAY, MILESTONE, CLIP, WEIGHT, TOLERANCE, RADIUS = 2e-3, 0.2, 5, 10.0, 0.5, 0.5, 0.1


def preset() -> Preset:
    return load_preset(
        "digits",
        {
            "model.channels": [4, 6], "model.kernels": [3, 3], "model.strides": [1, 2], "model.linear": [8],
            "train.epochs": EPOCHS, "train.learning_rate": RATE, "train.milestones": [MILESTONE], "train.decay": DECAY,
            "train.clip_norm": CLIP, "train.schedule": "steps", "train.batch_norm_statistics": "clean",
            "eps.max": RADIUS, "eps.start": START, "eps.length": LENGTH,
            "regularizer.weight": WEIGHT, "regularizer.tolerance": TOLERANCE,
        },
    )  # fmt: skip


def batches() -> Iterator[tuple[int, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for step in range(EPOCHS * PER_EPOCH):
        labels = torch.randint(10, (BATCH,), generator=generator)
        noise = torch.rand(BATCH, 1, 8, 8, generator=generator, dtype=torch.float64)
        yield step, (noise + labels.view(-1, 1, 1, 1) / 10) / 2, labels


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build_model(preset().model, InputSpec((1, 8, 8), 10, (MEAN,), (STD,))).double()
    ibp_init_(made, torch.Generator().manual_seed(0))
    return made


@dataclass
class Reference:
    """The weights by certtrain's names, and the paper's formulas for them."""

    weights: dict[str, Tensor]

    def affine(self, name: str, x: Tensor, *, radius: bool = False) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        weight, bias = (weight.abs(), torch.zeros_like(bias)) if radius else (weight, bias)
        if weight.dim() == 2:
            return F.linear(x.flatten(1), weight, bias)
        return F.conv2d(x, weight, bias, stride=2 if name == "conv2" else 1, padding=1)

    def layer(self, name: str, clean: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A linear layer and its BatchNorm, with the statistics of the clean batch, which take part in the gradient."""
        values = self.affine(name, clean)
        over = [0, 2, 3] if values.dim() == 4 else [0]
        mean, variance = values.mean(over, keepdim=True), values.var(over, unbiased=False, keepdim=True)
        scale = self.weights[f"{name}_bn.weight"].view(mean.shape) / torch.sqrt(variance + 1e-5)
        shift = self.weights[f"{name}_bn.bias"].view(mean.shape) - mean * scale
        centre = self.affine(name, (lower + upper) / 2) * scale + shift
        radius = self.affine(name, (upper - lower) / 2, radius=True) * scale.abs()
        return values * scale + shift, centre - radius, centre + radius

    def margins(self, labels: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Lower bounds of the label's logit minus each logit; for the label itself it is zero."""
        weight, bias = self.weights["head.weight"], self.weights["head.bias"]
        difference = weight[labels].unsqueeze(1) - weight
        centre = torch.einsum("bkf,bf->bk", difference, ((lower + upper) / 2).flatten(1))
        radius = torch.einsum("bkf,bf->bk", difference.abs(), ((upper - lower) / 2).flatten(1))
        return centre - radius + bias[labels].unsqueeze(1) - bias

    def loss(self, x: Tensor, labels: Tensor, eps: float) -> Tensor:
        """Natural before the ramp, else certified, with the regularisers, whose weight falls with ε."""
        width = max(eps, 1e-6)  # before the ramp the regularisers see boxes that are almost points
        clean, lower, upper = ((z - MEAN) / STD for z in (x, (x - width).clamp(min=0), (x + width).clamp(max=1)))
        first, penalties = (upper - lower).mean() / 2, []
        for name in LAYERS:
            clean, lower, upper = self.layer(name, clean, lower, upper)
            penalties.append(penalty(lower, upper, first))
            clean, lower, upper = clean.relu(), lower.relu(), upper.relu()
        logits = F.linear(clean.flatten(1), self.weights["head.weight"], self.weights["head.bias"])
        robust = F.cross_entropy(-self.margins(labels, lower, upper), labels)
        fitted = robust if eps > 0 else F.cross_entropy(logits, labels)
        return fitted + WEIGHT * (1 - eps / RADIUS) * torch.stack(penalties).mean()


def penalty(lower: Tensor, upper: Tensor, first: Tensor) -> Tensor:
    """A ReLU layer's tightness and balance; a layer without active or without inactive ReLUs has no balance."""
    centre, radius = (lower + upper) / 2, (upper - lower).mean() / 2
    tightness = F.relu(TOLERANCE - first / radius) / TOLERANCE
    active, inactive = lower > 0, upper < 0
    if not active.any() or not inactive.any():
        return tightness
    deviation = (centre - centre.mean()) ** 2
    mean = (centre * active).mean() / -(centre * inactive).mean()
    variance = (deviation * active).sum() / (deviation * inactive).sum()
    low = [F.relu(TOLERANCE - torch.min(ratio, 1 / ratio)) for ratio in (mean, variance)]
    return tightness + (low[0] + low[1]) / TOLERANCE


def ramp(step: int) -> float:
    """The smoothed schedule of Gowal et al. 2018: a power of 4 for a quarter of the ramp, then a line of its slope."""
    passed, length = step - (START - 1) * PER_EPOCH, LENGTH * PER_EPOCH
    bend = int(length / 4)
    factor = RADIUS / ((length - bend) * 4 * bend**3 + bend**4)
    if passed <= 0:
        return 0.0
    if passed < bend:
        return float(factor * passed**4)
    return min(factor * bend**4 + (RADIUS - factor * bend**4) * (passed - bend) / (length - bend), RADIUS)


def reference_training(first: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {name: tensor.clone().requires_grad_() for name, tensor in first.items()}
    reference, optimizer = Reference(weights), torch.optim.Adam(weights.values(), RATE)
    for step, x, labels in batches():
        optimizer.param_groups[0]["lr"] = RATE * (DECAY if step // PER_EPOCH >= MILESTONE else 1.0)
        optimizer.zero_grad()
        reference.loss(x, labels, ramp(step)).backward()
        nn.utils.clip_grad_norm_(list(weights.values()), CLIP)
        optimizer.step()
    return {name: tensor.detach() for name, tensor in weights.items()}


def test_a_training_ends_with_the_weights_of_the_papers_formulas():
    trained = network()
    first = {name: tensor.detach().clone() for name, tensor in trained.named_parameters()}
    stepper = Stepper(preset(), trained, PER_EPOCH)
    for step, x, labels in batches():
        stepper.run(step, x, labels)
    expected = reference_training(first)
    for name, tensor in trained.named_parameters():
        moved = (expected[name] - first[name]).norm()
        assert (tensor - expected[name]).norm() <= 1e-6 * moved + 1e-8, name
    assert expected["head.weight"].sub(first["head.weight"]).norm() > 0.1
