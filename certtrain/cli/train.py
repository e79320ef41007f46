"""certtrain train: start a run from a preset, or resume one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certtrain.cli.exit_codes import ExitCode
from certtrain.cli.options import (
    NO_TIMEOUT,
    AsJson,
    DataDir,
    DeviceOption,
    Eps,
    Overrides,
    PresetName,
    Seed,
    Threads,
    check_data,
    compute_device,
    example_limit,
    resolve_preset,
    seconds,
    seconds_or_none,
)
from certtrain.cli.seeds import Seeds, resumed_seeds, train_and_compare, wanted_seeds
from certtrain.cli.stopping import Stopper
from certtrain.runtime.deadline import DEFAULT_TIMEOUT
from certtrain.spec.choices import Compile, MethodName, Precision

if TYPE_CHECKING:
    from certtrain.spec.preset import Preset
    from certtrain.training.events import Event, Listener

MORE_EPOCHS = "train.epochs="  # the one field of a resumed run that may be set
OPTION_OF = {"start": "--from", "max": "--eps"}  # of a field, where it is not named after it


@dataclass(frozen=True)
class RunOptions:
    """The run."""

    preset: PresetName = None
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="A model file, or a finished run, with weights to start from; the same network.",
        ),
    ] = None
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Resume the run in this folder, or the runs of several seeds. With --set train.epochs=N it has N "
            "epochs in all, even if it is finished.",
        ),
    ] = None
    out: Annotated[Path | None, typer.Option(help="Folder for the new run; a new one in runs/ if not given.")] = None
    data_dir: DataDir = None


@dataclass(frozen=True)
class ChangeOptions:
    """Changes to the preset."""

    eps: Eps = None
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of epochs; the preset's if not given. The ramp of ε, the milestones and all else that counts "
            "epochs are scaled with it, apart from what --set sets.",
        ),
    ] = None
    seed: Seed = None
    seeds: Seeds = None
    precision: Annotated[
        Precision | None, typer.Option(help="Arithmetic of the training steps; tf32 is for NVIDIA GPUs.")
    ] = None
    compile_: Annotated[
        Compile | None,
        typer.Option("--compile", help="Compile the training step; auto does so if it saves time overall."),
    ] = None
    overrides: Overrides = None

    def fields(self) -> dict[str, Any]:
        """The preset's fields that have options of their own, as `resolve_preset` takes them."""
        train = {"epochs": self.epochs, "precision": self.precision, "compile": self.compile_}
        return {"eps__max": self.eps, "seed": self.seed} | {f"train__{name}": value for name, value in train.items()}

    def scaled(self, preset: str) -> str:
        """What --epochs changes in the preset of that name beside them, in a sentence; empty if it changes nothing."""
        from certtrain.spec.epochs import scaled_sentence
        from certtrain.spec.preset import epoch_changes, parse_override

        if self.epochs is None:
            return ""
        replaced = {parse_override(text)[0] for text in self.overrides or []}
        changes = epoch_changes(preset, self.epochs)
        epochs = changes.pop("train.epochs")
        changes = {path: c for path, c in changes.items() if not {path, path.partition(".")[0]} & replaced}
        return scaled_sentence(epochs, changes) if changes else ""


@dataclass(frozen=True)
class TrainingOptions:
    """Device, time and output."""

    device: DeviceOption = "auto"
    threads: Threads = None
    time_budget: Annotated[
        float | None,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            help="Stop at a checkpoint this long after the command started, like 9m. The current step is finished "
            "first; a compilation is ended.",
        ),
    ] = None
    verify_method: Annotated[
        MethodName,
        typer.Option(
            help="How the trained network is certified; auto goes on to tighter methods for what ibp leaves open."
        ),
    ] = "ibp"
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=seconds_or_none,
            metavar="TIME|none",
            help="Time limit for each example in the methods beyond ibp, like 10s, as for `certtrain verify`; "
            f"{DEFAULT_TIMEOUT:.0f}s if not given.",
        ),
    ] = None
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files into the run's folder.")] = False
    mlflow: Annotated[
        bool,
        typer.Option(
            "--mlflow",
            help="Log to MLflow; MLflow's environment variables name the server and the experiment, which is "
            "`certtrain` if not set.",
        ),
    ] = False
    wandb: Annotated[
        bool,
        typer.Option("--wandb", help="Log to Weights & Biases, in project certtrain unless WANDB_PROJECT is set."),
    ] = False
    as_json: AsJson = False

    def check(self) -> None:
        """Raise BadParameter if there is a limit for methods that are not used."""
        if self.timeout is not None and self.verify_method == "ibp":
            raise typer.BadParameter(NO_TIMEOUT.format("--verify-method auto"), param_hint="--timeout")


def train_command(run: RunOptions, changes: ChangeOptions, training: TrainingOptions) -> None:
    """Train a network, certify it on the test set, and write the model and a report.

    A run that Ctrl-C or --time-budget stops ends at a checkpoint, and says how to resume it.
    """
    preset, more = _preset(run, changes), _more_epochs(run, changes)
    training.check()
    if changes.seed is not None and isinstance(changes.seeds, tuple):
        raise typer.BadParameter("it has no effect with a list of seeds", param_hint="--seed")
    many = wanted_seeds(preset, changes.seeds, run.out) or resumed_seeds(run.resume)
    if many is None:
        _check_run(run.resume, run.out, extended=more is not None)
    elif more is not None:
        raise typer.BadParameter("the runs of several seeds get more epochs one by one", param_hint="--set")
    stop = Stopper(training.time_budget)
    from certtrain import render
    from certtrain.training import api
    from certtrain.training.context import FinalVerification, RunContext
    from certtrain.training.distributed import process_group
    from certtrain.training.events import Stopping
    from certtrain.verification.cascade import Limits

    device = compute_device(training.device)
    with process_group(device) as group, render.training_view(training.as_json, silent=not group.is_leader) as view:
        stop.on_interrupt = lambda: view(Stopping())
        listeners = [view, *_loggers(training)] if group.is_leader else [view]
        verification = FinalVerification(training.verify_method, Limits(example_limit(training.timeout)))
        emit = _with_note(_combined(listeners), changes.scaled(run.preset) if run.preset else "")
        context = RunContext(
            run.data_dir, device, stop.reason, emit, group, verification=verification, interruptible=stop.at_once
        )
        if many is not None:
            train_and_compare(many, context, as_json=training.as_json)
        elif preset is not None:
            api.start_run(preset, run.out or _new_folder(preset), context)
        elif run.resume is not None:
            api.resume_run(run.resume, context, epochs=more)
    if stop.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)


def _preset(run: RunOptions, changes: ChangeOptions) -> "Preset | None":
    """The preset of a new run; None for a resumed run, which has its own. Raises BadParameter for a change to that."""
    from certtrain.runs.runfiles import model_of
    from certtrain.storage import check_model_file

    start = None if run.start is None else model_of(run.start)
    fields = changes.fields() | {"start": start and {"file": str(start)}}
    if run.resume is None:
        if start is not None:
            check_model_file(start)
        preset = resolve_preset(run.preset, changes.overrides, **fields)
        check_data(preset, run.data_dir)
        return preset
    fields |= {"seeds": changes.seeds}
    changed = [text for text in changes.overrides or [] if not text.startswith(MORE_EPOCHS)]
    given = {"preset": run.preset, "out": run.out} | {path.rpartition("__")[2]: value for path, value in fields.items()}
    names = [OPTION_OF.get(name, f"--{name}") for name, value in given.items() if value is not None]
    if refused := [*names, *(f"--set {text}" for text in changed)]:
        message = (
            "a resumed run keeps its preset and its folder, so that it ends as if it had never stopped; leave out "
            f"{' and '.join(refused)}. For more epochs: --set {MORE_EPOCHS}N. For other settings: a new run"
        )
        raise typer.BadParameter(message, param_hint="--resume")
    return None


def _more_epochs(run: RunOptions, changes: ChangeOptions) -> int | None:
    """The number of epochs that a resumed run is to have in all, if it is given. Raises BadParameter."""
    if run.resume is None or not changes.overrides:
        return None
    text = changes.overrides[-1].removeprefix(MORE_EPOCHS)
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is not a number of epochs", param_hint="--set")
    return int(text)


def _check_run(resume: Path | None, out: Path | None, *, extended: bool) -> None:
    """Check, before torch is loaded, that the run to resume exists, or that the folder of a new one is free."""
    from certtrain.runs.runfiles import check_run
    from certtrain.storage import check_new_run, check_unfinished_run

    if resume is not None:
        (check_run if extended else check_unfinished_run)(resume)
    elif out is not None:
        check_new_run(out)


def _loggers(training: TrainingOptions) -> "list[Listener]":
    """The listeners that log to other programs. Raises MissingExtra."""
    from certtrain.training.tensorboard import TensorBoardLog
    from certtrain.training.tracking import MLflow, TrackedRun, WeightsAndBiases

    loggers: list[Listener] = [TensorBoardLog()] if training.tensorboard else []
    loggers += [TrackedRun(MLflow())] if training.mlflow else []
    return loggers + ([TrackedRun(WeightsAndBiases())] if training.wandb else [])


def _combined(listeners: Sequence["Listener"]) -> "Listener":
    """One listener that passes each event to all."""

    def emit(event: "Event") -> None:
        for listener in listeners:
            listener(event)

    return emit


def _with_note(listener: "Listener", text: str) -> "Listener":
    """The listener, which gets a note with this text after the start of the run, if there is any text."""
    from certtrain.training.events import Note, Started

    def emit(event: "Event") -> None:
        listener(event)
        if text and isinstance(event, Started):
            listener(Note(text))

    return emit


def _new_folder(preset: "Preset") -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{preset.name}-seed{preset.seed}-{stamp}"
