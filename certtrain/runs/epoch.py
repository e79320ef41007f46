"""The records of an epoch of a run, which is a line of metrics.jsonl, and of a ReLU layer's state; without torch.

A training writes them, and everything else reads the same records.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

END_EXAMPLES = 2000  # training examples on which an epoch's end measures what its steps do not
STANDARD = frozenset(
    {"loss", "robust_loss", "natural_loss", "tightness_loss", "relu_balance_loss"}
    | {"natural_accuracy", "certified_accuracy", "validation_natural_accuracy", "validation_certified_accuracy"}
)


def losses_and_accuracies(measured: Mapping[str, float | None]) -> dict[str, float]:
    """Those of an epoch's measures that are losses or accuracies, by name: the accuracies first."""
    known = {name: value for name, value in measured.items() if value is not None}
    return {name: known[name] for kind in ("accuracy", "loss") for name in known if name.endswith(kind)}


def own_measures(measured: Mapping[str, float | None]) -> dict[str, float]:
    """The losses and accuracies that the objective adds to those of every training, by name."""
    kinds = ("_loss", "_accuracy")
    return {n: v for n, v in measured.items() if v is not None and n.endswith(kinds) and n not in STANDARD}


@dataclass(frozen=True)
class LayerState:
    """The state of a ReLU layer over some data: statistics of the bounds of its inputs.

    active, inactive, unstable: shares of (example, unit) pairs whose bounds are
        above zero (lower > 0), at most zero (upper ≤ 0), or neither.
    dead: share of units that are inactive for every example.
    centre, width: means of (upper + lower)/2 and of upper − lower.
    growth: mean width divided by that of the normalised network input; None if the input has no width.
    mean_ratio, variance_ratio: the balance ratios r_m and r_v of Shi et al. 2021, or their inverses if these are
        smaller; None if no ReLU is active or inactive.
    dead_channels: share of channels whose units are all dead, so that nothing trains them; in a linear layer each unit
        is a channel. None in files of earlier versions.
    """

    name: str
    units: int
    active: float
    inactive: float
    unstable: float
    dead: float
    centre: float
    width: float
    growth: float | None
    mean_ratio: float | None
    variance_ratio: float | None
    dead_channels: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class Epoch:
    """One epoch as it was trained.

    epoch: its number, from 1. step: steps done since the run began. eps: ε at its last step.
    measured: the measures of its steps and of its end, by their names in the file; certified_accuracy at least.
    layers: the state of each ReLU layer at its end, over training data in boxes of radius eps.

    Raises ValueError without a certified accuracy.
    """

    epoch: Annotated[int, Field(ge=1)]
    step: Annotated[int, Field(ge=1)]
    eps: Annotated[float, Field(ge=0)]
    measured: Mapping[str, float | None]
    layers: tuple[LayerState, ...]

    def __post_init__(self) -> None:
        if self.measured.get("certified_accuracy") is None:
            raise ValueError("certified_accuracy is missing")

    @property
    def numbers(self) -> dict[str, float | None]:
        """Step, ε and all measures, by their names in the file and in its order."""
        return {"step": self.step, "eps": self.eps, **self.measured}

    @property
    def certified_accuracy(self) -> float:
        """The certified accuracy on training examples.

        By the steps, each at its ε; if the objective does not bound the whole box, by the network at the epoch's end.
        """
        return self.measured["certified_accuracy"] or 0.0

    def to_dict(self) -> dict[str, Any]:
        """The epoch's line in metrics.jsonl."""
        return {"epoch": self.epoch, **self.numbers, "layers": [layer.to_dict() for layer in self.layers]}
