"""A run followed over its epochs: what its metrics say of the layers, and when these were at their worst."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from certtrain.diagnostics.findings import Finding, LayerMeans, LayerState, layer_means, worst, worst_of_kinds
from certtrain.errors import RunError
from certtrain.runs.history import Epoch, read_epochs
from certtrain.spec.preset import explain


class EpochRecord(BaseModel):
    """One epoch as it was trained: numbers over all its steps, its last ε, and the layers after it on training data."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    epoch: int = Field(ge=1)
    step: int = Field(ge=1)
    """Steps done since the run began."""
    eps: float = Field(ge=0)
    natural_accuracy: float | None = None
    certified_accuracy: float
    validation_certified_accuracy: float | None = None
    layers: tuple[LayerState, ...]

    @property
    def means(self) -> LayerMeans:
        """Over the layers."""
        return layer_means(self.layers)

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with each bad layer, the worst first; nothing before the ramp, when no box has a width."""
        return worst(self.layers) if self.eps > 0 else []

    def to_dict(self) -> dict[str, Any]:
        """All of it by name."""
        layers = [layer.to_dict() for layer in self.layers]
        findings = [finding.to_dict() for finding in self.findings]
        numbers = self.model_dump(exclude={"layers"})
        return numbers | {"means": self.means.to_dict(), "findings": findings, "layers": layers}


@dataclass(frozen=True)
class History:
    """A run's finished epochs; `cut_short` says whether there was a last line that had not been written whole."""

    epochs: tuple[EpochRecord, ...]
    cut_short: bool

    @property
    def steps_per_epoch(self) -> int | None:
        """None before the first epoch is over."""
        return self.epochs[0].step // self.epochs[0].epoch if self.epochs else None

    def worst_epochs(self) -> list[tuple[int, Finding]]:
        """Of each kind of trouble the epoch and the layer where it was worst, the worst kind first."""
        return worst_of_kinds((record.epoch, finding) for record in self.epochs for finding in record.findings)


def read_history(run: Path) -> History:
    """The epochs that `metrics.jsonl` in the run's folder holds; none if it is not there yet.

    Raises RunError as `read_epochs`, and where an epoch lacks a number that is needed or holds one that is not finite.
    """
    path = run / "metrics.jsonl"
    epochs = tuple(_record(path, epoch) for epoch in read_epochs(run))
    rest = path.read_bytes().rpartition(b"\n")[2] if path.is_file() else b""
    return History(epochs, cut_short=bool(rest))


def _record(path: Path, epoch: Epoch) -> EpochRecord:
    layers = [LayerState(**layer.model_dump()) for layer in epoch.layers]
    try:
        json.dumps(epoch.model_dump(), allow_nan=False)
        return EpochRecord.model_validate({**epoch.numbers, "epoch": epoch.epoch, "layers": layers})
    except ValidationError as error:
        raise RunError(f"epoch {epoch.epoch} of {path} is not as certtrain writes it:\n{explain(error)}") from error
    except ValueError as error:
        raise RunError(f"epoch {epoch.epoch} of {path} holds a number that is not finite") from error
