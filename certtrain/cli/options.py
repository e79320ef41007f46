"""The options that several commands share, and the values that they stand for."""

import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import typer

from certtrain.cli.exit_codes import ExitCode
from certtrain.errors import EpsilonError, StorageError
from certtrain.runtime.deadline import DEFAULT_TIMEOUT
from certtrain.runtime.threads import use_threads
from certtrain.spec.choices import DeviceName, SplitName
from certtrain.spec.epsilon import parse_eps

if TYPE_CHECKING:
    from certtrain.data import ImageSet
    from certtrain.network.modelfile import Classifier
    from certtrain.spec.preset import Preset

BYTES = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
SECONDS = {"s": 1, "m": 60, "h": 3600}
NO_TIMEOUT = "it limits the methods beyond interval bounds; choose one, as in {}"


def _eps(text: str) -> float:
    try:
        return parse_eps(text)
    except EpsilonError as error:
        raise typer.BadParameter(str(error)) from error


def memory_size(text: str | int) -> int:
    """Bytes from 500MB, 1.5GiB or 100000000."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([kmgt]i?b|b)?", str(text).lower())
    size = int(float(found[1]) * BYTES.get(found[2], 1)) if found else 0
    if size < 1:
        raise typer.BadParameter(f"{text!r} is not an amount of memory; write it like 500MB, 2GiB or 100000000")
    return size


def seconds(text: str) -> float:
    """Seconds from 90, 90s, 9m or 2h."""
    unit = SECONDS.get(text[-1:])
    try:
        value = float(text[:-1] if unit else text) * (unit or 1)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a time; write it like 90s, 9m or 2h") from error
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{text!r} is not a time above zero")
    return value


def seconds_or_none(text: str) -> float:
    """Seconds as `seconds` reads them; infinity for "none"."""
    return math.inf if str(text) in ("none", "inf") else seconds(text)


def example_limit(timeout: float | None) -> float | None:
    """The limit for each example, from what `seconds_or_none` read; the default if --timeout was not given."""
    limit = DEFAULT_TIMEOUT if timeout is None else timeout
    return None if limit == math.inf else limit


def _png_file(text: str) -> Path:
    if not text.endswith(".png"):
        raise typer.BadParameter(f"{text!r} does not end in .png")
    return Path(text)


def completed_presets(incomplete: str) -> list[tuple[str, str]]:
    """The shipped presets whose names begin like that, and their descriptions, for the completion in a shell."""
    from certtrain.spec.preset_file import own_fields, preset_names

    names = [name for name in preset_names() if name.startswith(incomplete)]
    return [(name, str(own_fields(name).get("description", ""))) for name in names]


DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="CERTTRAIN_DATA_DIR",
        help="Folder with the data: torchvision's layout, or train/<class>/* and test/<class>/*. "
        "Without it, the folder that the run was trained from, if there is one; else data are downloaded where "
        "torchvision can do so. The digits come with certtrain.",
    ),
]
Eps = Annotated[
    float | None, typer.Option("--eps", parser=_eps, metavar="RADIUS", help="Radius ε of the box, like 8/255 or 0.3.")
]
ModelFile = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model file that certtrain wrote, or the folder of a run.")
]
ModelOrNewest = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A model file that certtrain wrote, a checkpoint, or the folder of a run, for its model or, without one, "
        "its newest checkpoint. If not given, the newest run in the folder runs.",
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME|FILE",
        help="A shipped preset, or a .toml file.",
        autocompletion=completed_presets,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set any field of the preset, like train.epochs=20."),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Random seed; the preset's if not given.")]
SplitOption = Annotated[SplitName, typer.Option(help="Which part of the data set.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Number of examples, starting with the first; all if not given.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Number of examples at a time.")]
PgdRestarts = Annotated[int, typer.Option(min=1, help="Number of random starts of the attack.")]
AttackSeed = Annotated[int, typer.Option(min=0, help="Seed of the attack's random starts.")]
Memory = Annotated[
    int | None,
    typer.Option(
        parser=memory_size,
        metavar="SIZE",
        help="Memory limit for the linear bounds, like 500MB; 1GiB if not given. It does not change the bounds, but "
        "complete leaves an example open if its domains need more.",
    ),
]
DeviceOption = Annotated[DeviceName, typer.Option(help="Where to compute; auto takes a GPU where there is one.")]


def _use_threads(count: int | None) -> int | None:
    """Called when the option is read, and so before torch is loaded."""
    use_threads(count)
    return count


Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        callback=_use_threads,
        help="Number of threads on a CPU; if not given, one for small work and else one for each core. Use "
        "fewer where other programs need the cores.",
    ),
]
PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", parser=_png_file, metavar="FILE.png", help="Write a picture of the results to this file."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def given(context: typer.Context) -> dict[str, str]:
    """The options on the command line itself, not from the environment: each spelling by its parameter's name."""
    sources = {str(option.name): context.get_parameter_source(str(option.name)) for option in context.command.params}
    on_command_line = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return {str(option.name): option.opts[0] for option in context.command.params if option.name in on_command_line}


def options_for(command: Callable[..., None], context: typer.Context) -> list[str]:
    """The options on the command line that another `command` accepts too, with these values, as words."""
    accepted, words = get_type_hints(command), list[str]()
    for name, spelling in given(context).items():
        value = context.params[name]
        if name in accepted and spelling.startswith("-") and _accepts(accepted[name], value):
            words += (
                [spelling] if value is True else [spelling, f"{value:g}" if isinstance(value, float) else str(value)]
            )
    return words


def _accepts(kind: Any, value: Any) -> bool:
    """Whether an option of that type takes the value: a choice must be one of its words, and no limit is infinite."""
    return value in get_args(kind) if get_origin(kind) is Literal else value != math.inf


def wrong_usage(problem: str, *words: object) -> NoReturn:
    """End the command with the exit code for a wrong command line, and show the command to use instead."""
    from certtrain import render

    render.error(f"{problem}; type: {shlex.join(map(str, words))}")
    raise typer.Exit(ExitCode.USAGE)


def resolve_preset(name: str | None, overrides: list[str] | None, **named: Any) -> "Preset":
    """The preset, with fields replaced by --set and by options of their own, which take precedence.

    With train__epochs, the ramp of ε and the learning rate are scaled with the epochs, apart from what --set replaces.
    """
    from certtrain.spec.preset import load_preset, parse_override, preset_names

    if name is None:
        raise typer.BadParameter(
            "missing. Begin with --preset digits, which needs no download, or --preset mnist-cpu; "
            f"`certtrain presets` lists all {len(preset_names())}, and a .toml file of your own is one too",
            param_hint="--preset",
        )
    changes = dict(parse_override(text) for text in overrides or [])
    changes |= {path.replace("__", "."): value for path, value in named.items() if value is not None}
    resolved = load_preset(name, changes, epochs=named.get("train__epochs"))
    _check_source(resolved)
    return resolved


def check_data(preset: "Preset", data_dir: Path | None) -> None:
    """Check, before torch is loaded, that the data folder exists, and that the data set has one. Raises DataError."""
    from certtrain.errors import DataError
    from certtrain.storage import check_data_folder

    if preset.data.name == "digits" and data_dir is not None:
        raise DataError(
            "the data set digits is part of certtrain and is not read from --data-dir; leave it out, or name the data "
            "set that is in the folder: --set data.name=folder for your own images."
        )
    check_data_folder(preset.data.name, data_dir)


def _check_source(preset: "Preset") -> None:
    """Check, before torch is loaded, that the files of a user's own network and objective exist.

    Raises NetworkError or PresetError.
    """
    from certtrain.errors import NetworkError, PresetError
    from certtrain.spec.layers import ModuleSection
    from certtrain.spec.objective import CustomSection
    from certtrain.storage import check_source

    if isinstance(preset.model, ModuleSection) and isinstance(preset.model.source, str):
        check_source(Path(preset.model.source.rpartition(":")[0]), NetworkError)
    if isinstance(preset.objective, CustomSection):
        check_source(Path(preset.objective.source.rpartition(":")[0]), PresetError)


def compute_device(device: DeviceName) -> str:
    """ "cpu" or "cuda". Raises DeviceError."""
    from certtrain.runtime.allocator import keep_freed_memory
    from certtrain.runtime.device import choose_device

    keep_freed_memory()
    return choose_device(device)


def newest_if_none(path: Path | None) -> Path:
    """The path itself or, for None, the newest run in the folder runs, with a note that names it. Raises RunError."""
    from certtrain import render
    from certtrain.runs.runfiles import newest_run

    if path is None:
        path = newest_run()
        render.note(f"the newest run, {path}")
    return path


def data_folder(given: Path | None, model: Path) -> Path | None:
    """The folder given or else, with a note, that from which the run of the model or folder at `model` read its images.

    None if the run was not given one, or that is gone.
    """
    if given is not None:
        return given
    from certtrain import render
    from certtrain.runs.runfiles import recorded_data_folder

    folder = recorded_data_folder(model)
    if folder is not None:
        render.note(f"the images are read from {folder}, as by the run; --data-dir names another folder")
    return folder


def network_file(path: Path) -> Path:
    """The path itself or, for the folder of a run, its model, or else its newest checkpoint, with a note.

    Raises RunError for another folder.
    """
    from certtrain import render
    from certtrain.runs.runfiles import find_networks
    from certtrain.storage import is_folder

    if not is_folder(path):
        return path
    file = find_networks(path)[0]
    if file.run is not None:
        render.note(f"the run in {path} is not finished; its newest checkpoint, {file.path.name}")
    return file.path


def open_model(path: Path, device: DeviceName, data_dir: Path | None = None) -> "Classifier":
    """The network in a model file that certtrain wrote, or in the checkpoint of a run.

    Raises ModelFileError, and for a checkpoint DataError if the run's data are missing.
    """
    from certtrain.errors import ModelFileError
    from certtrain.interchange.packed import ending
    from certtrain.storage import check_model_file

    check_model_file(path)  # before torch is loaded
    if ending(path) == ".onnx":
        decide = shlex.join(["certtrain", "decide", str(path), "PROPERTY"])
        raise ModelFileError(f"{path} is an ONNX file; this command needs certtrain's own. For a property: {decide}")
    from certtrain import render

    with render.loading("reading the network") as report:
        from certtrain.diagnostics.networks import NetworkLoader  # which loads torch, for some seconds
        from certtrain.runs.runfiles import find_networks

        return NetworkLoader(data_dir, report).load(find_networks(path)[0]).to(compute_device(device))


def open_split(model: "Classifier", split: SplitName, data_dir: Path | None, limit: int | None) -> "ImageSet":
    """The first `limit` examples of a split of the model's data set. Raises DataError."""
    from certtrain import render
    from certtrain.network.assembly import load_split

    with render.loading("reading the images") as report:
        return load_split(model.metadata, split, data_dir, report).take(limit)


def check_targets(force: bool, *paths: Path | None) -> None:
    """Raise StorageError, before any work is done, if a file cannot be written, or exists and `force` is not set."""
    from certtrain.storage import check_writable

    for path in filter(None, paths):
        if path.exists() and not force:
            raise StorageError(f"{path} exists already; give another name, or --force to replace it")
        check_writable(path)
