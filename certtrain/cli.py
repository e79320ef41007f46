"""The command line. Typer lives only here; torch is imported only by the commands that need it."""

import csv
import io
import signal
import sys
import time
import warnings
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certtrain import __version__
from certtrain.epsilon import format_eps, parse_eps
from certtrain.errors import CerttrainError, EpsilonError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certtrain.data import ImageSet
    from certtrain.diagnostics import LayerState
    from certtrain.events import Event, Listener
    from certtrain.modelfile import Classifier
    from certtrain.preset import Preset
    from certtrain.preset import Scheme as SchemeName

app = typer.Typer(
    name="certtrain",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Split(StrEnum):
    """Which part of a data set."""

    train = "train"
    validation = "validation"
    test = "test"


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


class Scheme(StrEnum):
    """How weights start."""

    ibp = "ibp"
    kaiming = "kaiming"
    xavier = "xavier"
    orthogonal = "orthogonal"


# --- what the commands have in common --------------------------------------------------------------------


def _eps(text: str) -> float:
    try:
        return parse_eps(text)
    except EpsilonError as error:
        raise typer.BadParameter(str(error)) from error


def _seconds(text: str) -> float:
    """Seconds from 90, 90s, 9m or 2h."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        seconds = float(text[:-1] if unit else text) * (unit or 1)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a time; write it like 90s, 9m or 2h") from error
    if not 0 < seconds < float("inf"):
        raise typer.BadParameter(f"{text!r} is not a time above zero")
    return seconds


def _png(text: str) -> Path:
    if not text.endswith(".png"):
        raise typer.BadParameter(f"{text!r} does not end in .png")
    return Path(text)


DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="CERTTRAIN_DATA_DIR",
        help="Folder with the data: torchvision's layout, or train/<class>/* and test/<class>/*. "
        "Without it data are downloaded where torchvision can; the digits are embedded and need none.",
    ),
]
Eps = Annotated[
    float | None, typer.Option("--eps", parser=_eps, metavar="RADIUS", help="Radius ε of the box, like 8/255 or 0.3.")
]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file that certtrain wrote.")]
PresetName = Annotated[
    str | None, typer.Option("--preset", "-p", metavar="NAME|FILE", help="A shipped preset, or a .toml file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set any field of the preset, like train.batch_size=64."),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed; the preset's if not given.")]
DeviceName = Annotated[Device, typer.Option(help="Where to compute; auto takes a GPU where there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", parser=_png, metavar="FILE.png", help="Draw states and growth into this file."),
]
FoldedFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Safetensors with BatchNorm folded; both files are written if neither is named."),
]
OnnxFile = Annotated[Path | None, typer.Option(metavar="FILE", help="ONNX file.")]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        parser=_seconds, metavar="TIME", help="Stop at a checkpoint so long after the start of the command, like 9m."
    ),
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write event files into the run's folder.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Look only at the first so many examples.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there already.")]


def _load_preset(name: str | None, overrides: list[str] | None, **named: Any) -> "Preset":
    """The preset with the fields that --set and the options of their own replace; the options win."""
    from certtrain.preset import load_preset, parse_override, preset_names

    if name is None:
        raise typer.BadParameter(f"missing; shipped presets: {', '.join(preset_names())}", param_hint="--preset")
    changes = dict(parse_override(text) for text in overrides or [])
    changes |= {path.replace("__", "."): value for path, value in named.items() if value is not None}
    resolved = load_preset(name, changes)
    _check_source(resolved)
    return resolved


def _check_source(preset: "Preset") -> None:
    """See, before torch is loaded, that the file of a network of the user's own is there."""
    from certtrain.layers import Module
    from certtrain.storage import check_source

    if isinstance(preset.model, Module) and isinstance(preset.model.source, str):
        check_source(Path(preset.model.source.rpartition(":")[0]))


def _device(device: Device) -> str:
    from certtrain.allocator import keep_freed_memory
    from certtrain.device import choose_device

    keep_freed_memory()
    return choose_device(device.value)


def _load_model(path: Path, device: Device) -> "Classifier":
    from certtrain.storage import check_model_file

    check_model_file(path)  # before torch is loaded
    from certtrain.modelfile import load_model

    return load_model(path).to(_device(device))


def _load_split(model: "Classifier", split: Split, data_dir: Path | None, limit: int | None) -> "ImageSet":
    from certtrain import render
    from certtrain.assemble import load_split

    with render.loading() as report:
        return load_split(model.metadata, split.value, data_dir, report).take(limit)


def _check_targets(force: bool, *paths: Path | None) -> None:
    """Before any work is done, see that its results can be written, and replace nothing unasked."""
    from certtrain.storage import check_writable

    for path in filter(None, paths):
        if path.exists() and not force:
            raise StorageError(f"{path} is there already; give another name, or --force to replace it")
        check_writable(path)


def _check_run(resume: Path | None, out: Path | None) -> None:
    """See, before torch is loaded, that there is a run to go on with, or room for a new one."""
    from certtrain.storage import check_new_run, check_unfinished_run

    if resume is not None:
        check_unfinished_run(resume)
    elif out is not None:
        check_new_run(out)


# --- the commands ----------------------------------------------------------------------------------------


@app.command()
def init(
    preset: PresetName = None,
    scheme: Annotated[Scheme | None, typer.Option(help="How weights start; the preset's if not given.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The model file; <preset>-<scheme>.safetensors if not given.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show all schemes side by side.")] = False,
    eps: Eps = None,
    seed: Seed = None,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Initialise a preset's network, save it, and show how its bounds grow from the input."""
    resolved = _load_preset(preset, overrides, init=scheme and scheme.value, eps__max=eps, seed=seed)
    out = out or Path(f"{resolved.name}-{resolved.init}.safetensors")
    _check_targets(force, out)
    from certtrain import render
    from certtrain.assemble import describe
    from certtrain.data import load_images
    from certtrain.inspection import inspect_initial
    from certtrain.modelfile import save_model
    from certtrain.source import settle

    with render.loading() as report:
        images = load_images(resolved.data.name, "train", data_dir=data_dir, on_progress=report)
    resolved = settle(resolved, images)
    others: list[SchemeName] = [s.value for s in Scheme if s.value != resolved.init] if compare else []
    names = [resolved.init, *others]
    networks = [inspect_initial(resolved, images, name, resolved.eps.max) for name in names]
    note = f"initialised by the {resolved.init} scheme, not trained"
    save_model(out, networks[0].network, describe(resolved, images, note=note))
    if as_json:
        render.show_json({"model": str(out), "eps": resolved.eps.max, "schemes": [n.to_dict() for n in networks]})
        return
    render.show_records(networks[0])
    title = f"{resolved.name}: mean width over the input's at each ReLU, ε = {format_eps(resolved.eps.max)}"
    render.show_initial(networks, title)
    render.say(f"wrote {out}")


@app.command()
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
    resolved = _load_preset(preset, overrides, **changes) if resume is None else None
    _check_run(resume, out)
    stop = _Stopper(time_budget)
    from certtrain import render, trainer
    from certtrain.distributed import joined

    place = _device(device)
    with joined(place) as group, render.training_view(as_json, silent=not group.leads) as view:
        listeners = [view, *_tensorboard(tensorboard)]
        surroundings = trainer.Surroundings(data_dir, place, stop.reason, _all(listeners), group)
        if resolved is not None:
            trainer.train(resolved, out or _new_folder(resolved), surroundings)
        elif resume is not None:
            trainer.resume(resume, surroundings)
    if stop.interrupted:
        raise typer.Exit(128 + signal.SIGINT)


@app.command()
def verify(
    model: ModelFile,
    eps: Eps = None,
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.test,
    limit: Limit = None,
    pgd_steps: Annotated[int, typer.Option(min=1, help="Steps of the attack.")] = 20,
    pgd_restarts: Annotated[int, typer.Option(min=1, help="Random starts of the attack.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the attack's random starts.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 200,
    points: Annotated[Path | None, typer.Option(help="Write a JSON line for each example to this file.")] = None,
    device: DeviceName = Device.auto,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Natural, attacked and certified accuracy of a model: a bracket around its robust accuracy."""
    _check_targets(force, points)
    network = _load_model(model, device)
    images = _load_split(network, split, data_dir, limit)
    from certtrain import render
    from certtrain.attack import PGD
    from certtrain.verify import Point, to_json_lines
    from certtrain.verify import verify as verify_model

    found: list[Point] = []
    radius = network.metadata.eps if eps is None else eps
    attack = PGD(pgd_steps, pgd_restarts, seed)
    with render.progress("verifying") as report:

        def on_points(batch: list[Point]) -> None:
            found.extend(batch)
            report(len(found), len(images))

        result = verify_model(network, images, radius, attack=attack, batch_size=batch_size, on_points=on_points)
    if as_json:
        render.show_json({"model": str(model), **result.to_dict()})
    else:
        render.show_report(result)
    if points is not None:
        to_json_lines(points, found)


@app.command()
def stats(
    model: ModelFile,
    eps: Eps = None,
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.train,
    limit: Limit = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 200,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the numbers to this CSV file.")] = None,
    plot: PlotFile = None,
    device: DeviceName = Device.auto,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """ReLU states, bound widths and the paper's balance ratios of each layer, over data at ε."""
    _check_targets(force, csv_file, plot)
    network = _load_model(model, device)
    images = _load_split(network, split, data_dir, limit)
    from certtrain import render
    from certtrain.inspection import inspect_model

    radius = network.metadata.eps if eps is None else eps
    with render.progress("looking") as report:
        layers = inspect_model(
            network, images, radius, batch_size=batch_size, on_progress=lambda done: report(done, len(images))
        )
    title = f"{model.name}: {images.name}, {images.split} set, {len(images):,} examples, ε = {format_eps(radius)}"
    if as_json:
        facts = {"dataset": images.name, "split": images.split, "examples": len(images), "eps": radius}
        render.show_json({"model": str(model), **facts, "layers": [layer.to_dict() for layer in layers]})
    else:
        render.show_states(layers, title)
    if csv_file is not None:
        _write_csv(csv_file, layers)
    if plot is not None:
        from certtrain.plot import plot_states

        plot_states(plot, layers, title)


@app.command()
def export(
    model: ModelFile,
    weights: FoldedFile = None,
    onnx: OnnxFile = None,
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data the exports are checked on.")] = Split.test,
    limit: Limit = 1000,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the network with BatchNorm folded in, as safetensors and ONNX, each checked on real data."""
    if weights is None and onnx is None:
        weights, onnx = model.with_name(f"{model.stem}-folded.safetensors"), model.with_suffix(".onnx")
    _check_targets(force, weights, onnx)
    network = _load_model(model, Device.cpu)
    images = _load_split(network, split, data_dir, limit)
    from certtrain import render
    from certtrain.export import export as export_model

    comparisons = export_model(network, images, weights=weights, onnx=onnx)
    files = [str(path) for path in (weights, onnx) if path is not None]
    if as_json:
        pairs = zip(files, comparisons, strict=True)
        render.show_json([{"file": file, **comparison.to_dict()} for file, comparison in pairs])
        return
    render.show_comparisons(comparisons)
    for file in files:
        render.say(f"wrote {file}")


# --- helpers of single commands --------------------------------------------------------------------------


class _Stopper:
    """Asks a training to stop when its time is over or the user interrupts; a second interrupt is not held back."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.start, self.interrupted = seconds, time.monotonic(), False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(number, signal.SIG_DFL)

    def reason(self) -> str | None:
        if self.interrupted:
            return "interrupted"
        over = self.seconds is not None and time.monotonic() - self.start >= self.seconds
        return "the time budget is spent" if over else None


def _tensorboard(wanted: bool) -> "list[Listener]":
    if not wanted:
        return []
    from certtrain.tensorboard import TensorBoardLog

    return [TensorBoardLog()]


def _all(listeners: "Sequence[Listener]") -> "Listener":
    def emit(event: "Event") -> None:
        for listener in listeners:
            listener(event)

    return emit


def _new_folder(preset: "Preset") -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{preset.name}-seed{preset.seed}-{stamp}"


def _write_csv(path: Path, layers: "list[LayerState]") -> None:
    from certtrain.storage import write_atomic

    text = io.StringIO()
    rows = [layer.to_dict() for layer in layers]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"certtrain {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train image classifiers whose robustness is proved, and look into the proof."""


def main() -> None:
    """Run the command line; an error that a user can cause ends it with one message and exit code 1."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        app()
    except CerttrainError as error:
        from certtrain import render

        render.error(str(error))
        sys.exit(1)


def _show_warning(message: Warning | str, *place: object) -> None:
    from certtrain import render

    render.note(str(message))
