"""Networks on disk: model files, run folders, and the checkpoints in them; without torch."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certtrain.errors import RunError
from certtrain.storage import check_model_file, is_folder, write_json

MODEL, CHECKPOINTS, KEPT_EPOCHS = "model.safetensors", "checkpoints", "epochs"
TRACKING = "tracking.json"  # the run's ids in other programs, by their names
DATA = "data.json"  # where the run read its images, if that was a folder of the user's
MOST_LISTED = 5  # runs that a message lists
RUNS = Path("runs")  # where `certtrain train` makes the folder of a new run


@dataclass(frozen=True)
class NetworkFile:
    """A network on disk: a model file, or a checkpoint, for which `run` is the folder of its run."""

    path: Path
    run: Path | None = None


@dataclass(frozen=True)
class RunNetwork:
    """A network of a run after `step` steps, `epoch` epochs; one of them is None if the steps per epoch are unknown."""

    file: NetworkFile
    step: int | None
    epoch: float | None


def find_networks(path: Path) -> list[NetworkFile]:
    """The file at `path`, a model or a checkpoint; for the folder of a run, its model, or else its checkpoints.

    The newest checkpoint is first; the older ones are for the case that it is damaged. Raises ModelFileError if there
    is no such file, RunError if the run has no network yet.
    """
    if not is_folder(path):
        check_model_file(path)
        return [NetworkFile(path, _run_of(path))]
    if (path / MODEL).is_file():  # of a run, or a folder that somebody keeps a model in
        return [NetworkFile(path / MODEL)]
    check_run(path)
    checkpoints = [NetworkFile(file, path) for file in reversed(_numbered(path / CHECKPOINTS))]
    if not checkpoints:
        raise RunError(f"the run in {path} has no checkpoint yet; try again in a moment")
    return checkpoints


def model_of(path: Path) -> Path:
    """The model of the finished run in the folder `path`; any other path itself."""
    return path / MODEL if is_folder(path) and (path / MODEL).is_file() else path


def newest_run(runs: Path = RUNS) -> Path:
    """The run in the folder `runs` whose network was written last. Raises RunError if there is none."""
    found = runs_in(runs)
    if not found:
        raise RunError(
            f"there is no run with a network in the folder {runs}; give a model file or the folder of a run, "
            "or train one: certtrain train --preset digits"
        )
    return found[0]


def runs_in(folder: Path) -> list[Path]:
    """The runs with a network in the folder, or among the seeds there, that whose network was written last first."""
    written: dict[Path, float] = {}
    for preset in [*folder.glob("*/preset.json"), *folder.glob("*/seed-*/preset.json")]:
        files = [preset.parent / MODEL, *_numbered(preset.parent / CHECKPOINTS)]
        if times := [file.stat().st_mtime for file in files if file.is_file()]:
            written[preset.parent] = max(times)
    return sorted(written, key=lambda run: (written[run], run.name), reverse=True)


def check_run(path: Path) -> None:
    """Raise RunError unless `path` is the folder of a run."""
    if (path / "preset.json").is_file():
        return
    if not path.is_dir():
        raise RunError(f"{path} is not a folder; give the folder that `certtrain train` wrote")
    if runs := runs_in(path):
        others = f" and {len(runs) - MOST_LISTED} older ones" if len(runs) > MOST_LISTED else ""
        listed = ", ".join(str(run) for run in runs[:MOST_LISTED])
        raise RunError(f"{path} is a folder of runs, not a run; give one of them, the newest first: {listed}{others}")
    raise RunError(f"{path} holds no run: it has no preset.json; give the folder that `certtrain train` wrote")


def find_run_networks(run: Path, steps_per_epoch: int | None, epochs: int) -> list[RunNetwork]:
    """The networks of a run in order of time: checkpoints, those kept by train.keep_every, and the model.

    `epochs` is the number of epochs of the whole run. If two files are the same network, one is left out.
    """
    per = steps_per_epoch
    found = []
    for file, step in _numbered(run / CHECKPOINTS).items():
        found.append(RunNetwork(NetworkFile(file, run), step, _epoch(step, per)))
    for file, epoch in _numbered(run / KEPT_EPOCHS).items():
        found.append(RunNetwork(NetworkFile(file), per and epoch * per, epoch))
    if (run / MODEL).is_file():
        found.append(RunNetwork(NetworkFile(run / MODEL), per and epochs * per, epochs))
    latest = {(network.step, None if per else network.epoch): network for network in found}
    return sorted(latest.values(), key=lambda network: (network.step or 0, network.epoch or 0))


def tracking_record(run: Path) -> dict[str, Any]:
    """The ids of the run in MLflow and Weights & Biases, and the last epoch that is there; empty if there is none."""
    try:
        record = json.loads((run / TRACKING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def record_data_folder(run: Path, folder: str | Path) -> None:
    """Remember in the run's folder where its images are. Raises StorageError."""
    write_json(run / DATA, {"data_dir": str(Path(folder).expanduser().absolute())})


def recorded_data_folder(path: Path) -> Path | None:
    """The folder from which the run at `path` read its images; None if it was not given one, or that is gone.

    The path is that of the run, of its model, or of a network in its folders of checkpoints or of kept epochs.
    """
    place = path.absolute()
    run = place if is_folder(place) else place.parent
    run = run.parent if run.name in (CHECKPOINTS, KEPT_EPOCHS) else run
    try:
        folder = Path(json.loads((run / DATA).read_text(encoding="utf-8"))["data_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if is_folder(folder) else None


def short_names(paths: Sequence[Path]) -> list[str]:
    """A name for each path: its last part without the suffix, and as many parts before it as make the names differ.

    The model of a run has the name of the run.
    """
    parts = [_bare(path).absolute().parts for path in paths]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _bare(path: Path) -> Path:
    if path.name == MODEL and (path.parent / "preset.json").is_file():
        return path.parent
    return path.with_suffix("") if path.suffix == ".safetensors" else path


def _run_of(file: Path) -> Path | None:
    """The folder of the run to which a checkpoint belongs; None for any other file."""
    folder = file.absolute().parent
    is_checkpoint = folder.name == CHECKPOINTS and file.name.startswith("step-")
    return folder.parent if is_checkpoint and (folder.parent / "preset.json").is_file() else None


def _epoch(step: int, steps_per_epoch: int | None) -> float | None:
    if step == 0:
        return 0
    return step / steps_per_epoch if steps_per_epoch else None


def _numbered(folder: Path) -> dict[Path, int]:
    """The files like step-000000552.safetensors or epoch-0010.safetensors with their numbers, the smallest first."""
    files = {file: re.fullmatch(r"(?:step|epoch)-(\d+)", file.stem) for file in folder.glob("*.safetensors")}
    numbers = {file: int(match[1]) for file, match in files.items() if match is not None}
    return dict(sorted(numbers.items(), key=lambda item: item[1]))
