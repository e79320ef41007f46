"""certtrain train"""

import signal
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    Device,
    DeviceName,
    Eps,
    Overrides,
    PresetName,
    Seed,
    check_data,
    compute_device,
    resolve_preset,
)
from certtrain.cli.stopping import Stopper, seconds

if TYPE_CHECKING:
    from certtrain.spec.preset import Preset
    from certtrain.training.events import Event, Listener


class Precision(StrEnum):
    """In which arithmetic to train."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"


class Compile(StrEnum):
    """Whether to compile the training step."""

    auto = "auto"
    on = "on"
    off = "off"


TimeBudget = Annotated[
    float | None,
    typer.Option(
        parser=seconds,
        metavar="TIME",
        help="Stop at a checkpoint so long after the start of the command, like 9m. The step under way is finished "
        "first, and the first step with its compiling.",
    ),
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write event files into the run's folder.")]


def train(
    preset: PresetName = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with the run in this folder.")] = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new run; one under runs/ if not given.")] = None,
    eps: Eps = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Train for so many epochs.")] = None,
    seed: Seed = None,
    overrides: Overrides = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Arithmetic of the training; tf32 is for NVIDIA GPUs.")
    ] = None,
    compile_: Annotated[
        Compile | None, typer.Option("--compile", help="Compile the training step; auto does where a run repays it.")
    ] = None,
    device: DeviceName = Device.auto,
    time_budget: TimeBudget = None,
    tensorboard: TensorBoard = False,
    as_json: AsJson = False,
) -> None:
    """Train a network, certify it on the test set, and write model and report.

    Stopped by Ctrl-C or --time-budget, a run ends at a checkpoint and says how to go on.
    """
    changes: dict[str, Any] = {"eps__max": eps, "train__epochs": epochs, "seed": seed}
    changes |= {"train__precision": precision and precision.value, "train__compile": compile_ and compile_.value}
    if resume is not None and (preset or out or overrides or any(value is not None for value in changes.values())):
        message = "a run goes on as it was begun; it takes no preset, no --out and no changed field"
        raise typer.BadParameter(message, param_hint="--resume")
    resolved = resolve_preset(preset, overrides, **changes) if resume is None else None
    if resolved is not None:
        check_data(resolved, data_dir)
    _check_run(resume, out)
    stop = Stopper(time_budget)
    from certtrain import render
    from certtrain.training import api
    from certtrain.training.context import RunContext
    from certtrain.training.distributed import process_group

    place = compute_device(device)
    with process_group(place) as group, render.training_view(as_json, silent=not group.is_leader) as view:
        listeners = [view, *_tensorboard(tensorboard)]
        context = RunContext(data_dir, place, stop.reason, _all(listeners), group)
        if resolved is not None:
            api.train(resolved, out or _new_folder(resolved), context)
        elif resume is not None:
            api.resume(resume, context)
    if stop.interrupted:
        raise typer.Exit(128 + signal.SIGINT)


def _check_run(resume: Path | None, out: Path | None) -> None:
    """See, before torch is loaded, that there is a run to go on with, or room for a new one."""
    from certtrain.storage import check_new_run, check_unfinished_run

    if resume is not None:
        check_unfinished_run(resume)
    elif out is not None:
        check_new_run(out)


def _tensorboard(wanted: bool) -> "list[Listener]":
    if not wanted:
        return []
    from certtrain.training.tensorboard import TensorBoardLog

    return [TensorBoardLog()]


def _all(listeners: Sequence["Listener"]) -> "Listener":
    def emit(event: "Event") -> None:
        for listener in listeners:
            listener(event)

    return emit


def _new_folder(preset: "Preset") -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{preset.name}-seed{preset.seed}-{stamp}"
