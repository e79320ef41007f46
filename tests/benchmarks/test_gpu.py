"""A network that comes back in parts is the trained one, its weights rounded to 16 bits of mantissa."""

from pathlib import Path

import pytest
import torch

from certtrain import load_model
from certtrain.network.modelfile import write_model
from helpers.commands_of_benchmarks import benchmark
from helpers.tiny_classifier import metadata, network

gpu = benchmark("gpu")


def test_parts_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "PIECE", 200)
    described = metadata()
    original = network(described)
    write_model(tmp_path / "model.safetensors", original, described)
    gpu.split(tmp_path / "model.safetensors", tmp_path / "parts")
    assert len(list(tmp_path.glob("parts.*.part"))) > 1
    gpu.join(tmp_path / "parts", tmp_path / "joined.safetensors")
    joined = load_model(tmp_path / "joined.safetensors")
    assert joined.metadata == described
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(joined.state_dict()[name], tensor, rtol=2**-16, atol=0)
