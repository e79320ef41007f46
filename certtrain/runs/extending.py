"""More epochs for a run, finished or not: its results so far are kept, and its checkpoints go on."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save

from certtrain.errors import RunError
from certtrain.formats import count_of
from certtrain.locking import locked
from certtrain.runs.agreement import check_unchanged
from certtrain.runs.checkpoint import LOCK, PRESET, UNREADABLE, RunFolder, RunProgress, taken_run
from certtrain.runs.history import REPORT
from certtrain.runs.runfiles import MODEL, check_run
from certtrain.spec.preset import Preset, load_preset
from certtrain.storage import write_atomic, write_json

EARLIER = "earlier"  # the folder of what a run had before it got more epochs
RESULT_FILES = (REPORT, MODEL, "report.html", "README.md", "pictures/verdicts.png", "pictures/attacks.png")


def extend_run(path: Path, epochs: int) -> str:
    """Give the run in `path` so many epochs in all; says what becomes of its results and of its learning rate.

    If it is finished, its model, report and pictures are kept in `earlier/epochs-N`. Then it is unfinished, with its
    checkpoints. If this is interrupted, it can be done again. Raises RunError if the run has as many epochs already,
    or has no checkpoint, and StorageError.
    """
    check_run(path)
    with locked(path / LOCK, taken_run(path)):
        before = load_preset(str(path / PRESET))
        after = _extended(path, before, epochs)
        _check_checkpoints(path, after)
        kept = _keep_results(path, before.train.epochs) if (path / REPORT).is_file() else None
        for file in RunFolder(path).checkpoints():
            _write_preset(file, after)
        write_json(path / PRESET, after.model_dump(mode="json"))
    return _sentence(before, after, kept)


def _extended(path: Path, before: Preset, epochs: int) -> Preset:
    """The preset with more epochs."""
    done = before.train.epochs
    if epochs < done or (epochs == done and (path / REPORT).is_file()):
        raise RunError(
            f"the run in {path} has {count_of(done, 'epoch')}; train.epochs must be more than that, not {epochs}"
        )
    return load_preset(before.model_dump(mode="json"), {"train.epochs": epochs})


def _check_checkpoints(path: Path, after: Preset) -> None:
    """Raise RunError if the preset of the newest checkpoint differs in more than its epochs, or there is none."""
    for file in reversed(RunFolder(path).checkpoints()):
        try:
            with safe_open(file, framework="pt") as opened:
                fields = json.loads(opened.metadata()["progress"])["preset"]
        except UNREADABLE:
            continue
        if fields:  # which checkpoints of an earlier version do not have
            fields["train"]["epochs"] = after.train.epochs
            check_unchanged(fields, after, path / PRESET)
        return
    raise RunError(f"the run in {path} has no checkpoint that can be read, so it cannot go on")


def _keep_results(path: Path, epochs: int) -> Path:
    """Copy the results of a finished run, then remove them from its folder: the report first, then it is unfinished."""
    kept = path / EARLIER / f"epochs-{epochs:04d}"
    found = [name for name in (PRESET, *RESULT_FILES) if (path / name).is_file()]
    for name in found:
        write_atomic(kept / name, (path / name).read_bytes())
    for name in found:
        if name != PRESET:
            (path / name).unlink()
    return kept


def _write_preset(file: Path, preset: Preset) -> None:
    """Replace the preset in a checkpoint; one that cannot be read stays as it is."""
    try:
        with safe_open(file, framework="pt") as opened:
            progress = RunProgress(**json.loads(opened.metadata()["progress"]))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except UNREADABLE:
        return
    progress.preset = preset.model_dump(mode="json")
    write_atomic(file, save(tensors, {"progress": json.dumps(asdict(progress))}))


def _sentence(before: Preset, after: Preset, kept: Path | None) -> str:
    """What becomes of the results and of the learning rate."""
    old, new, schedule = before.train.epochs, after.train.epochs, after.train.schedule
    parts = [f"the run goes on from {old} to {new} epochs"]
    if kept is not None:
        parts.append(f"its model and report so far are in {kept}")
    if schedule == "steps":
        parts.append(f"all schedules count epochs from the start, so it is the same as a run of {new} epochs")
    else:
        parts.append(
            f'with train.schedule = "{schedule}" the learning rate depends on the number of epochs: it goes on where a '
            f"run of {new} epochs has it, so it is not the same as a run of {new} epochs from the start"
        )
    return "; ".join(parts)
