"""The reference values carried in tests/oracles, and the networks they belong to."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from oracles.nets import NETS
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "oracles"

# How the files write ε, and what it is.
EPS = {
    "0.000000": 0.0,
    "0.000392": 0.1 / 255,
    "0.007843": 2 / 255,
    "0.015686": 4 / 255,
    "0.031373": 8 / 255,
    "0.100000": 0.1,
}


@cache
def tensors(net: str) -> dict[str, Tensor]:
    """All that one file holds."""
    return load_file(FOLDER / f"{net}.safetensors")


def below(net: str, prefix: str) -> dict[str, Tensor]:
    """The tensors whose key starts with `prefix`, by the rest of their key."""
    return {key.removeprefix(prefix): t for key, t in tensors(net).items() if key.startswith(prefix)}


def network(net: str) -> nn.Module:
    """A fresh copy of the network with its weights, in float64 and evaluation mode."""
    model = NETS[net]().double()
    model.load_state_dict(below(net, "weight/"))
    return model.eval()


def inputs(net: str) -> tuple[Tensor, Tensor]:
    """The six inputs in [0, 1], and their labels."""
    return tensors(net)["x"], tensors(net)["y"]


def schedules() -> list[dict[str, Any]]:
    """Settings of the ε schedule, with its values at some steps."""
    return json.loads((FOLDER / "eps_schedule.json").read_text(encoding="utf-8"))
