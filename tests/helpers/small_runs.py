"""A small training of the digits, and what its folder holds."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from certtrain.attack import PGD
from certtrain.spec.preset import Preset, load_preset
from certtrain.training.context import RunContext
from certtrain.training.pacing import Pacing

EPS = 0.004
SMALL = {
    "train.epochs": 3,
    "train.batch_size": 60,
    "train.milestones": [2],
    "eps.max": EPS,
    "eps.length": 1,
    "model.channels": [4, 8],
    "model.linear": [32],
    "data.crop_padding": 1,
    "data.validation": 237,
    "data.examples": 600,
}
PER_EPOCH, STEPS = 10, 30
STATE_EXAMPLES = 60
FREQUENT = Pacing(reading=0.0, epoch_checkpoint=0.0, checkpoint_share=math.inf)


def small(**changes: Any) -> Preset:
    """The digits preset, shrunk; underscores stand for dots. Without steps of the rate there are no milestones."""
    fields = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    if fields.get("train.schedule", "steps") != "steps":
        del fields["train.milestones"]
    return load_preset("digits", fields)


def frequent(**changes: Any) -> RunContext:
    """The context of a run that is read after every step and saved at the end of every epoch."""
    return RunContext(**{"device": "cpu", "pacing": FREQUENT, **changes})


def stop_before(step: int) -> Callable[[], str | None]:
    """Called before each step: stop before the 0-based `step` of this session."""
    calls = iter(range(10**9))
    return lambda: "time is up" if next(calls) >= step else None


@contextmanager
def without_pages() -> Iterator[None]:
    """Let runs write a page without drawing it, which takes longer than they do; reports/test_report.py draws pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("certtrain.training.completion.write_report", lambda run, path: path.write_text("drawn"))
        patch.setattr("certtrain.training.completion.write_sheets", lambda model, images, report, folder: None)
        yield


@contextmanager
def quick_ends() -> Iterator[None]:
    """Runs that attack in few steps at their end and draw no test images, whose layers' states are of few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("certtrain.training.completion.write_sheets", lambda model, images, report, folder: None)
        patch.setattr("certtrain.training.completion.PGD", partial(PGD, steps=2))
        patch.setattr("certtrain.training.layer_diagnostics.STATE_EXAMPLES", STATE_EXAMPLES)
        yield


@contextmanager
def short_runs() -> Iterator[None]:
    """The same, without pages."""
    with without_pages(), quick_ends():
        yield


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def without_seconds(value: Any) -> Any:
    """The same plain values but for all times and dates."""
    if isinstance(value, dict):
        timeless = [key for key in value if "seconds" not in key and key != "finished"]
        return {key: without_seconds(value[key]) for key in timeless}
    return value


def assert_same_run(folder: Path, other: Path) -> None:
    """Bit for bit, but for the clock."""
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert list(map(without_seconds, metrics(folder))) == list(map(without_seconds, metrics(other)))
    assert without_seconds(report(folder)) == without_seconds(report(other))
