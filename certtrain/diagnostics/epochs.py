"""The epochs of a run: the findings about the layers in each epoch, and the worst of them; without torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certtrain.diagnostics.findings import Finding, findings_at, layer_means, worst_of_kinds
from certtrain.errors import RunError
from certtrain.formats import count_of
from certtrain.runs.epoch import Epoch, own_measures
from certtrain.runs.history import METRICS, REPORT, read_epochs
from certtrain.spec.objective import ObjectiveSection, described_objective
from certtrain.spec.preset import Preset, load_preset

EPOCH_ACCURACIES = ("natural_accuracy", "certified_accuracy", "validation_certified_accuracy")


@dataclass(frozen=True)
class History:
    """A run's finished epochs; `cut_short` says whether the metrics end with an incomplete line."""

    epochs: tuple[Epoch, ...]
    cut_short: bool

    @property
    def steps_per_epoch(self) -> int | None:
        """None before the first epoch is finished."""
        return self.epochs[0].step // self.epochs[0].epoch if self.epochs else None

    def worst_epochs(self) -> list[tuple[int, Finding]]:
        """For each kind of finding, the epoch and the finding where it was worst; the worst kind first."""
        return worst_of_kinds((epoch.epoch, finding) for epoch in self.epochs for finding in epoch_findings(epoch))


@dataclass(frozen=True)
class Trained:
    """How a run trains: objective, epochs, largest ε, and the last finished epoch, which is None before the first.

    finished: whether the run is, with its verification.
    """

    objective: ObjectiveSection
    epochs: int
    eps_max: float
    last: Epoch | None
    finished: bool = True

    @property
    def progress(self) -> str:
        """How far a run is, in words; empty if it is finished."""
        return "" if self.finished else progress_words(self.last, self.epochs)

    @property
    def on_ramp(self) -> bool:
        """Whether ε has not reached its largest value yet."""
        return not self.finished if self.last is None else self.last.eps < self.eps_max

    @property
    def title(self) -> str:
        """The objective in one line."""
        return described_objective(self.objective)

    def to_dict(self) -> dict[str, Any]:
        """The objective's fields, and the numbers of the last epoch, by name."""
        last = None if self.last is None else {"epoch": self.last.epoch, **self.last.numbers}
        return {"objective": self.objective.model_dump(mode="json"), "finished": self.finished, "last_epoch": last}


def progress_words(last: Epoch | None, epochs: int) -> str:
    """How far a run is that is not finished, after its `last` finished epoch."""
    return f"the run is not finished: {0 if last is None else last.epoch} of {count_of(epochs, 'epoch')} done"


def read_trained(run: Path) -> Trained:
    """How the run in that folder trains. Raises PresetError, and RunError as `read_history`."""
    preset, epochs = load_preset(str(run / "preset.json")), read_history(run).epochs
    last = epochs[-1] if epochs else None
    return Trained(preset.objective, preset.train.epochs, preset.eps.max, last, (run / REPORT).is_file())


def epoch_findings(epoch: Epoch, preset: Preset | None = None) -> list[Finding]:
    """The findings about the layers of an epoch, the worst first; none before the ramp.

    What a run with this preset uses already is not advised.
    """
    return findings_at(epoch.eps, epoch.layers, preset)


def epoch_numbers(epoch: Epoch) -> dict[str, float | None]:
    """Epoch, step, ε, the accuracies by name, None for one that was not measured, and the objective's own measures."""
    measured = {name: epoch.measured.get(name) for name in EPOCH_ACCURACIES} | own_measures(epoch.measured)
    return {"epoch": epoch.epoch, "step": epoch.step, "eps": epoch.eps, **measured}


def epoch_summary(epoch: Epoch) -> dict[str, Any]:
    """The numbers of `epoch_numbers`, the layers' means, the findings and the layers, as plain values by name."""
    findings = [finding.to_dict() for finding in epoch_findings(epoch)]
    layers = [layer.to_dict() for layer in epoch.layers]
    means = layer_means(epoch.layers).to_dict()
    return epoch_numbers(epoch) | {"means": means, "findings": findings, "layers": layers}


def read_history(run: Path) -> History:
    """The epochs in `metrics.jsonl` in the run's folder; none if the file does not exist yet.

    Raises RunError as `read_epochs`, and if a number is not finite.
    """
    path = run / METRICS
    epochs = read_epochs(run)
    for epoch in epochs:
        _check_finite(path, epoch)
    rest = path.read_bytes().rpartition(b"\n")[2] if path.is_file() else b""
    return History(epochs, cut_short=bool(rest))


def _check_finite(path: Path, epoch: Epoch) -> None:
    try:
        json.dumps(epoch.to_dict(), allow_nan=False)
    except ValueError as error:
        raise RunError(f"epoch {epoch.epoch} of {path} holds a number that is not finite") from error
