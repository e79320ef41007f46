"""Reference values of the training objectives, carried in tests/oracles: losses, gradients, and the attacked inputs."""

import re
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from certtrain.bounds.graph import LayerGraph
from certtrain.spec.objective import AnyObjective, ObjectiveSection
from certtrain.spec.preset import Preset, load_preset
from certtrain.training.objectives import objective_of
from certtrain.training.objectives.base import Objective, RobustLosses
from certtrain.training.passes import Passes, SignedAscent
from helpers.oracles import EPS, FOLDER

NETS, EXAMPLES = ("mlp", "cnn4_bn"), 6
_SECTIONS: TypeAdapter[Any] = TypeAdapter(AnyObjective)
_FIELDS = {"alpha": "alpha", "lambda": "subselection_ratio", "shrink": "relu_shrinkage", "scale": "gradient_scale"}


class Oracle(NamedTuple):
    """One objective of one network: ε as the files write it, and the key of its values."""

    net: str
    eps: str
    key: str

    def __str__(self) -> str:
        return f"{self.net} {self.eps} {self.key}"

    @property
    def radius(self) -> float:
        return EPS[self.eps]

    def value(self, name: str) -> Tensor:
        """One tensor under the key."""
        return values(self.net)[f"eps={self.eps}/{self.key}/{name}"]

    def gradients(self) -> dict[str, Tensor]:
        """By parameter; the files leave out the largest one."""
        start = f"eps={self.eps}/{self.key}/grad/"
        return {key.removeprefix(start): t for key, t in values(self.net).items() if key.startswith(start)}

    def found(self) -> tuple[Tensor, ...]:
        """What an attack is taken to have found."""
        shared = values(self.net)[f"eps={self.eps}/x_adv"]
        return (self.value("share"),) if self.key.startswith("taps") else (shared,)

    def section(self, graph: LayerGraph) -> ObjectiveSection:
        """The preset's section of this objective."""
        name, *settings = self.key.split("/")
        fields: dict[str, Any] = {"name": name}
        for setting in settings:
            what, number = setting.split("=")
            if what == "cut":
                fields["split"] = graph.calls[int(number) - 1].name
            else:
                fields[_FIELDS[what]] = float(number)
        section: ObjectiveSection = _SECTIONS.validate_python(fields)
        return section


@cache
def values(net: str) -> dict[str, Tensor]:
    """All that one file holds."""
    return load_file(FOLDER / f"objectives_{net}.safetensors")


def oracles() -> list[Oracle]:
    """All objectives of all networks."""
    found = []
    for net in NETS:
        keys = (re.fullmatch(r"eps=([^/]*)/(.*)/loss", key) for key in values(net))
        found += [Oracle(net, *match.groups()) for match in keys if match]
    return sorted(found)


class Given(Objective):
    """An objective whose attack finds what it is given."""

    attacks = True

    def __init__(self, objective: Objective, found: tuple[Tensor, ...]) -> None:
        self.objective, self.found = objective, found

    def prepare(self, passes: Passes, ascent: SignedAscent) -> tuple[Tensor, ...]:
        """The rows of these examples."""
        return tuple(tensor[ascent.rows] for tensor in self.found) if self.objective.attacks else ()

    def robust(self, passes: Passes, found: tuple[Tensor, ...]) -> RobustLosses:
        """That of the objective."""
        return self.objective.robust(passes, found)


def given(oracle: Oracle, graph: LayerGraph) -> Given:
    """The objective with the attacked inputs of the file."""
    return Given(objective_of(oracle.section(graph), graph), oracle.found())


def preset_of(oracle: Oracle, **train: object) -> Preset:
    """A run with the oracle's ε from the first step on, without regularisers and without clipping."""
    changes = {"eps.max": oracle.radius, "eps.start": 1, "eps.length": 0, "regularizer.weight": 0.0}
    changes |= {"train.clip_norm": 1e30, "train.batch_size": EXAMPLES}
    return load_preset("digits", changes | {f"train.{name}": value for name, value in train.items()})


def largest(gradients: dict[str, Tensor]) -> float:
    """The scale that a gradient is compared at."""
    return max(float(gradient.abs().max()) for gradient in gradients.values())


def assert_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """All gradients agree to 1e-9 of the largest."""
    assert expected
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-9 * largest(expected), msg=name)


def assert_step(oracle: Oracle, gradients: dict[str, Tensor], sums: dict[str, float]) -> None:
    """A step over all examples has the references' gradient and loss."""
    assert_gradients(gradients, oracle.gradients())
    assert sums["robust_loss"] / EXAMPLES == pytest.approx(float(oracle.value("loss")), rel=1e-9)
