"""A model as one safetensors file that says what it is."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from certtrain.errors import CerttrainError, ModelFileError
from certtrain.models import InputSpec, build_model
from certtrain.preset import Architecture
from certtrain.storage import write_atomic

KEY = "certtrain"


class Metadata(BaseModel):
    """What a model file says of itself. `eps` is the radius it was trained for, `preset` the run it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    architecture: Architecture
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...] = Field(min_length=2)
    dataset: str
    eps: float = Field(ge=0, le=1)
    seed: int
    versions: dict[str, str]
    preset: dict[str, Any]
    results: dict[str, Any] | None = None
    """Measured on the test set at the end of the training; None before."""


class Classifier(nn.Module):
    """A network with the metadata of its file. Takes pixels (B, C, H, W) in [0, 1], gives logits (B, K)."""

    def __init__(self, network: nn.Sequential, metadata: Metadata) -> None:
        super().__init__()
        self.network = network
        self.metadata = metadata

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {name: _version(name) for name in ("certtrain", "torch", "torchvision")}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        from certtrain import __version__

        return f"{__version__} (not installed)"
