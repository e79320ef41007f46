"""A run, finished or not, read from the files in its folder; without torch."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from certtrain.errors import RunError, reason
from certtrain.runs.epoch import Epoch, LayerState
from certtrain.spec.preset import Preset, explain, load_preset

_T = TypeVar("_T")

METRICS, REPORT = "metrics.jsonl", "report.json"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "normalize.mean", "normalize.std")


class _Record(BaseModel):
    """A part of report.json. Fields that are not known here, as of a newer certtrain, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


ATTACKED = Field(validation_alias=AliasChoices("attacked_accuracy", "pgd_accuracy"))  # the name in earlier versions


class Results(_Record):
    """The results of the verification at the end of a run: fields of `certtrain.verification.verify.Report`."""

    dataset: str
    split: str
    eps: float
    examples: int = Field(ge=1)
    certified: int
    open: int
    falsified: int
    misclassified: int
    method: str
    attack: dict[str, int | float | str]
    assumptions: tuple[str, ...]
    natural_accuracy: float
    attacked_accuracy: float = ATTACKED
    certified_accuracy: float
    verified_error: float
    arithmetic: str = "float32"
    """The arithmetic of the network that the certificates are about."""
    certified_by: dict[str, int] = Field(default_factory=dict)
    """The number of certified examples by the step that certified them; empty in runs of earlier versions."""


class Training(_Record):
    """The steps of the training, their seconds, and the device."""

    steps: int
    seconds: float
    device: str
    processes: int = 1
    finished: str | None = None
    """Date and time of the end, in UTC; None in runs of earlier versions."""


class ClassAccuracies(_Record):
    """The accuracies of the examples of one class; None for a class without examples."""

    class_name: str = Field(alias="class")
    examples: int
    natural_accuracy: float | None
    attacked_accuracy: float | None = ATTACKED
    certified_accuracy: float | None

    @property
    def accuracies(self) -> tuple[float | None, float | None, float | None]:
        """Natural, attacked, certified."""
        return self.natural_accuracy, self.attacked_accuracy, self.certified_accuracy


class RunReport(_Record):
    """The contents of report.json."""

    results: Results
    training: Training
    verification_seconds: float
    versions: dict[str, str]
    classes: tuple[ClassAccuracies, ...] = ()
    """By class; empty in runs of earlier versions."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """By the right class, and by the class under attack: the number of examples; empty in runs of earlier versions."""


@dataclass(frozen=True)
class Weights:
    """The number of trained parameters in the newest file of weights, and the image shape and the classes.

    The latter are unknown, and empty, if that file is a checkpoint.
    """

    parameters: int
    input_shape: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run: its preset, its epochs so far, its weights if they can be read, its report if it is finished."""

    preset: Preset
    epochs: tuple[Epoch, ...]
    weights: Weights | None
    report: RunReport | None

    @property
    def measured(self) -> list[str]:
        """The names of the epochs' numbers, in the order of their first appearance."""
        return list(dict.fromkeys(name for epoch in self.epochs for name in epoch.numbers))

    def values(self, name: str) -> list[float | None]:
        """The number of that name in each epoch; None for an epoch without it."""
        return [epoch.numbers.get(name) for epoch in self.epochs]

    @property
    def layers(self) -> tuple[LayerState, ...]:
        """The states of the layers at the end of the last epoch."""
        return self.epochs[-1].layers if self.epochs else ()

    def layer_values(self, layer: str, of: Callable[[LayerState], float | None]) -> list[float | None]:
        """The value of `of` for the layer of that name in each epoch; None for an epoch without such a layer."""
        values = [[of(state) for state in epoch.layers if state.name == layer] for epoch in self.epochs]
        return [numbers[0] if numbers else None for numbers in values]

    @property
    def warm_up(self) -> tuple[int, int] | None:
        """The first and the last epoch of the ramp of ε; None without a ramp."""
        eps = self.preset.eps
        return (eps.start, eps.start + eps.length - 1) if eps.length else None


def read_run(folder: Path) -> Run:
    """The run in `folder`, which may be unfinished: an incomplete last line of the metrics is left out.

    Raises RunError if there is no run or one of its files is damaged, PresetError if its preset is.
    """
    if not (folder / "preset.json").is_file():
        raise RunError(f"{folder} holds no run; the folder of a run has a preset.json, which `certtrain train` writes")
    preset = load_preset(str(folder / "preset.json"))
    return Run(preset, read_epochs(folder), _weights(folder), _report(folder / REPORT))


def read_epochs(folder: Path) -> tuple[Epoch, ...]:
    """The epochs of the run in `folder`, as `read_run` gives them. Raises RunError."""
    path = folder / METRICS
    whole, newline, _ = _read(path).rpartition("\n") if path.is_file() else ("", "", "")
    lines = whole.splitlines() if newline else []
    return tuple(_epoch(f"line {number} of {path}", line) for number, line in enumerate(lines, start=1))


def _epoch(where: str, line: str) -> Epoch:
    measured = _object(where, line)
    fields = {name: measured.pop(name) for name in [*measured] if name in ("epoch", "step", "eps", "layers")}
    return _valid(_EPOCH, where, {"layers": [], "measured": measured} | fields)


def _report(path: Path) -> RunReport | None:
    return _valid(_REPORT, str(path), _object(str(path), _read(path))) if path.is_file() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {reason(error)}") from error


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RunError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{where} is not a JSON object")
    return value


_EPOCH, _REPORT = TypeAdapter(Epoch), TypeAdapter(RunReport)


def _valid(adapter: TypeAdapter[_T], where: str, value: dict[str, Any]) -> _T:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise RunError(f"{where} was not written by certtrain, or is damaged:\n{explain(error)}") from error


def _weights(folder: Path) -> Weights | None:
    """The weights of the model, or else of the newest checkpoint that can be read."""
    checkpoints = sorted((folder / "checkpoints").glob("step-*.safetensors"), reverse=True)
    for path in (folder / "model.safetensors", *checkpoints):
        try:
            return _header(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _header(path: Path) -> Weights:
    with safe_open(path, framework="np") as file:
        names = [name for name in file.keys() if not name.startswith(("optimizer/", "average/"))]  # noqa: SIM118
        trained = [name for name in names if not name.endswith(BUFFERS)]
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in trained)
        about = json.loads((file.metadata() or {}).get("certtrain", "{}"))
    return Weights(parameters, tuple(about.get("input_shape", ())), tuple(map(str, about.get("class_names", ()))))
