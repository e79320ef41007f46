"""Reference values of the training objectives, carried in tests/oracles: losses, gradients, and the attacked inputs."""

import re
from functools import cache
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from certtrain.bounds.graph import LayerGraph
from certtrain.spec.objective import AnyObjective, ObjectiveSection
from certtrain.training.objectives import objective_of
from certtrain.training.objectives.base import Objective, RobustLosses
from certtrain.training.passes import Passes, SignedAscent
from helpers.oracles import EPS, FOLDER

NETS = ("mlp", "cnn4_bn")
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


def largest(gradients: dict[str, Tensor]) -> float:
    """The scale that a gradient is compared at."""
    return max(float(gradient.abs().max()) for gradient in gradients.values())


def assert_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """All gradients agree to 1e-9 of the largest."""
    assert expected
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-9 * largest(expected), msg=name)
