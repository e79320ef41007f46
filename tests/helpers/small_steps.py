"""Training steps of a small network with BatchNorm, on random batches."""

from typing import Any

import torch
from torch import Tensor, nn

from certtrain.network.initialization import ibp_init_
from certtrain.network.models import InputSpec, build_model
from certtrain.spec.preset import Preset, load_preset

SHAPE, CLASSES, BATCH = (2, 6, 6), 4, 11
PER_EPOCH = 10
WITHOUT_GRADIENT = {"conv1.bias", "conv2.bias", "linear1.bias"}  # before BatchNorm: theirs is rounding alone


def preset(objective: dict[str, Any] | None = None, **train: Any) -> Preset:
    """ε rises in the second of three epochs; all layers are below the regularisers' tolerance of 1."""
    changes = {f"train.{name}": value for name, value in train.items()}
    changes |= {f"objective.{name}": value for name, value in (objective or {}).items()}
    return load_preset(
        "digits",
        {
            "model.channels": [3, 5],
            "model.linear": [7],
            "eps.max": 0.05,
            "eps.length": 1,
            "train.epochs": 3,
            "train.clip_norm": 1e9,
            "regularizer.tolerance": 1.0,
        }
        | changes,
    )


def network(settings: Preset) -> nn.Sequential:
    """With shifts after BatchNorm, so that no balance ratio is 1, where it has a kink."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_model(settings.model, InputSpec(SHAPE, CLASSES, (0.4, 0.5), (0.2, 0.3)))
        ibp_init_(model, torch.Generator().manual_seed(2))
        for layer in model:
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(layer.bias, std=0.3)
    return model.double()


def batch(step: int = 0, count: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(count, *SHAPE, generator=generator), torch.randint(CLASSES, (count,), generator=generator)
