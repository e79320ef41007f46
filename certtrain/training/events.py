"""The events of a training, as plain values; the callback `emit` of a `RunContext` is called with each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that a view can import the events without loading torch
    from certtrain.runs.epoch import Epoch, LayerState
    from certtrain.spec.preset import Preset
    from certtrain.verification.verify import Report


@dataclass(frozen=True)
class Started:
    """A run begins, or is resumed at `step` of `steps`.

    seconds_left: an estimate for the steps, on a CPU; None if the run is short. forecast: the same in a sentence, with
    what would be faster; empty if it is not long.
    """

    preset: Preset
    folder: Path
    device: str
    parameters: int
    examples: int
    steps_per_epoch: int
    step: int
    steps: int
    seconds_left: float | None = None
    forecast: str = ""


@dataclass(frozen=True)
class Loading:
    """Data are being read: what is done, how much of it, and the total."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Compiling:
    """The training step is being compiled, until the first step is done."""


@dataclass(frozen=True)
class StepDone:
    """`step` steps are done. The averages are over the epoch so far; the layer states were computed recently."""

    step: int
    epoch: int
    eps: float
    learning_rate: float
    averages: dict[str, float]
    layers: tuple[LayerState, ...]


@dataclass(frozen=True)
class EpochDone:
    """An epoch is done; `record` is its line in metrics.jsonl."""

    record: Epoch


@dataclass(frozen=True)
class Note:
    """A sentence about the run for the user."""

    text: str


@dataclass(frozen=True)
class Verifying:
    """The trained network is being verified on `split`, "test" or "validation"."""

    split: str
    done: int
    total: int


@dataclass(frozen=True)
class Stopping:
    """The user asked for a stop; the run will end at a checkpoint when its current step is done."""


@dataclass(frozen=True)
class Stopped:
    """The run stopped before its end, at a checkpoint; `data_dir` is that of the context.

    seconds_left: an estimate for the steps that are left; None if there is none. estimated: whether it is from before
    the first step.
    """

    reason: str
    step: int
    steps: int
    folder: Path
    data_dir: str | Path | None
    seconds_left: float | None = None
    estimated: bool = False


@dataclass(frozen=True)
class Finished:
    """The run is finished: its model file, its results, and its page, None if that could not be written."""

    model: Path
    report: Report
    seconds: float
    page: Path | None = None


Event = Started | Loading | Compiling | StepDone | EpochDone | Note | Verifying | Stopping | Stopped | Finished
Listener = Callable[[Event], None]
