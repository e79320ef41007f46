"""The reference values carried in tests/oracles, the networks they belong to, and comparisons with them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.oracle_networks import NETS

FOLDER = Path(__file__).parents[1] / "oracles"

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


TOLERANCE = 1e-9

SEARCHED = "alpha-CROWN"  # a figure to reach, not to equal

OURS = ("IBP", "CROWN-IBP", "CROWN")


def cases(*start: str) -> list[tuple[str, str]]:
    """Each (net, ε as the files write it) for which there are keys with such a `start`: kind, and method if any."""
    keys = [(net, key.split("/")) for net in NETS for key in tensors(net)]
    return sorted({(net, k[1].removeprefix("eps=")) for net, k in keys if k[0] == start[0] and start[1:] == _method(k)})


def _method(key: list[str]) -> tuple[str, ...]:
    return (key[2],) if key[0] == "eval" else ()


TRAINED = cases("train")

EVALUATED = [(net, eps, method) for method in OURS for net, eps in cases("eval", method)]

REACHED = cases("eval", SEARCHED)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], scale: float | None = None) -> None:
    """Every expected tensor is found, within the tolerance of `scale` or else of its own largest entry."""
    assert expected
    for name, value in expected.items():
        allowed = TOLERANCE * (value.abs().max().item() if scale is None else scale)
        assert found[name].shape == value.shape, name
        assert (found[name] - value).abs().max().item() <= allowed, name


def without_own_column(margins: Tensor, labels: Tensor) -> Tensor:
    """The files leave out the label's column, where this engine has 0."""
    return torch.stack([torch.cat([row[:y], row[y + 1 :]]) for row, y in zip(margins, labels.tolist(), strict=True)])


LOSSES = {"robust_ce": "robust", "natural_ce": "natural", "loss": "total"}


LOSSES |= {name: name for name in ("tightness", "relu_balance")}
