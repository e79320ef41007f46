"""Which networks lie where: model files, run folders, the checkpoints in them. Nothing here loads torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from certtrain.errors import RunError
from certtrain.storage import check_model_file

MODEL, CHECKPOINTS, KEPT_EPOCHS = "model.safetensors", "checkpoints", "epochs"


@dataclass(frozen=True)
class Source:
    """A network on disk: a model file or, where `run` is its run's folder, a checkpoint."""

    file: Path
    run: Path | None = None


@dataclass(frozen=True)
class Stage:
    """A run's network after so many epochs; None where the run's metrics do not tell how long an epoch is."""

    source: Source
    step: int | None
    epoch: float | None


def find_sources(path: Path) -> list[Source]:
    """What `path` stands for: a model file, a checkpoint, or of a run's folder its model, else its checkpoints.

    Of checkpoints the newest is first, the older ones are for the case that it is damaged. Raises ModelFileError if
    there is no such file, RunError if the run has no network yet.
    """
    if not path.is_dir():
        check_model_file(path)
        return [Source(path, _run_of(path))]
    check_run(path)
    if (path / MODEL).is_file():
        return [Source(path / MODEL)]
    checkpoints = [Source(file, path) for file in reversed(_numbered(path / CHECKPOINTS))]
    if not checkpoints:
        raise RunError(f"the run in {path} has no checkpoint yet; look again in a moment")
    return checkpoints


def check_run(path: Path) -> None:
    """Raise RunError unless `path` is the folder of a run."""
    if not (path / "preset.json").is_file():
        what = "holds no run: it has no preset.json" if path.is_dir() else "is no folder"
        raise RunError(f"{path} {what}; a run is the folder that `certtrain train` wrote")


def find_stages(run: Path, steps_per_epoch: int | None, epochs: int) -> list[Stage]:
    """The networks of a run in the order of its epochs: checkpoints, those kept by train.keep_every, and the model.

    `epochs` is how many the whole run has. Where two are the same network, one is left out.
    """
    per = steps_per_epoch
    stages = []
    for file, step in _numbered(run / CHECKPOINTS).items():
        stages.append(Stage(Source(file, run), step, _epoch(step, per)))
    for file, epoch in _numbered(run / KEPT_EPOCHS).items():
        stages.append(Stage(Source(file), per and epoch * per, epoch))
    if (run / MODEL).is_file():
        stages.append(Stage(Source(run / MODEL), per and epochs * per, epochs))
    latest = {(stage.step, None if per else stage.epoch): stage for stage in stages}
    return sorted(latest.values(), key=lambda stage: (stage.step or 0, stage.epoch or 0))


def short_names(paths: Sequence[Path]) -> list[str]:
    """A name for each: its last part without the suffix, and as many parts before it as tell it from the others.

    A run's model is named after the run.
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
    """The run that a checkpoint belongs to; None for any other file."""
    folder = file.absolute().parent
    is_checkpoint = folder.name == CHECKPOINTS and file.name.startswith("step-")
    return folder.parent if is_checkpoint and (folder.parent / "preset.json").is_file() else None


def _epoch(step: int, steps_per_epoch: int | None) -> float | None:
    if step == 0:
        return 0
    return step / steps_per_epoch if steps_per_epoch else None


def _numbered(folder: Path) -> dict[Path, int]:
    """The files like step-000000552.safetensors or epoch-0010.safetensors by their number, the smallest first."""
    files = {file: re.fullmatch(r"(?:step|epoch)-(\d+)", file.stem) for file in folder.glob("*.safetensors")}
    numbers = {file: int(match[1]) for file, match in files.items() if match is not None}
    return dict(sorted(numbers.items(), key=lambda item: item[1]))
