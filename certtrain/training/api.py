"""The functions that train a network: one starts a new run from a preset, one resumes a run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from certtrain.network.assembly import Images, load_run_images
from certtrain.network.source import changed_source, resolve_module
from certtrain.network.starting import with_start_hash
from certtrain.runs.checkpoint import RunFolder, locked_run
from certtrain.runs.extending import extend_run
from certtrain.runs.runfiles import record_data_folder, recorded_data_folder
from certtrain.runtime.precision import check_precision
from certtrain.spec.preset import Preset
from certtrain.training.compilation import check_compile
from certtrain.training.context import DEFAULT_CONTEXT, RunContext
from certtrain.training.distributed import Group
from certtrain.training.events import Loading, Note
from certtrain.training.objectives.custom import with_source_hash
from certtrain.training.trainer import Trainer
from certtrain.verification.verify import Report


def start_run(preset: Preset, out: str | Path, context: RunContext = DEFAULT_CONTEXT) -> Report | None:
    """Train by `preset` into the new folder `out`, verify on the test set, and write model, results and report.

    If the preset's network is a user's own code, it is run here, and its layers are
    saved with the run. A user's own objective is run from its file, until the run
    ends. Returns the report of the verification, or None if the run
    was stopped. Raises a CerttrainError.
    """
    context = context.resolved()
    images = _load_images(preset, context)  # the folder is made last, so that an earlier error leaves none behind
    preset = context.group.on_leader(lambda: with_start_hash(with_source_hash(resolve_module(preset, images.train))))
    folder = RunFolder(Path(out))
    trainer = Trainer(preset, folder, images, context)
    with _locked(folder.path, context.group, new=True):
        context.group.on_leader(lambda: _create(folder, preset, context))
        return _run_or_discard(trainer)


def resume_run(out: str | Path, context: RunContext = DEFAULT_CONTEXT, *, epochs: int | None = None) -> Report | None:
    """Resume the run in `out` from its last checkpoint, with the layers that it began with; as `start_run`.

    Its images are read from where they were read before, unless the context names a folder.
    With `epochs` it gets so many in all, and may be finished; what it has by then is kept (`extend_run`).
    """
    context, folder = context.resolved(), RunFolder(Path(out))
    if epochs is not None:
        context.emit(Note(context.group.on_leader(lambda: extend_run(folder.path, epochs))))
    with _locked(folder.path, context.group, new=False):
        preset = context.group.on_leader(folder.resumable_preset)
        context = _with_data_folder(context, folder.path)
        if file := changed_source(preset):
            context.emit(Note(f"{file} has changed; the run continues with the network that it began with"))
        return Trainer(preset, folder, _load_images(preset, context), context).run()


def _create(folder: RunFolder, preset: Preset, context: RunContext) -> None:
    folder.create(preset)
    if context.data_dir is not None:
        record_data_folder(folder.path, context.data_dir)


def _with_data_folder(context: RunContext, run: Path) -> RunContext:
    """The context with the folder from which the run read its images, unless it names one, which is then recorded."""
    if context.data_dir is not None:
        folder = context.data_dir
        context.group.on_leader(lambda: record_data_folder(run, folder))
    elif recorded := context.group.on_leader(lambda: recorded_data_folder(run)):
        context.emit(Note(f"the images are read from {recorded}, as before; --data-dir names another folder"))
        return replace(context, data_dir=recorded)
    return context


@contextmanager
def _locked(out: Path, group: Group, *, new: bool) -> Iterator[None]:
    """Rank 0 locks the run's folder, so that no process outside the group writes into it."""
    with ExitStack() as held:
        group.on_leader(lambda: held.enter_context(locked_run(out, new=new)))
        yield


def _run_or_discard(trainer: Trainer) -> Report | None:
    """Run a new training. If it fails before its first step, delete its files, so that it can be started again."""
    try:
        return trainer.run()
    except BaseException:
        if trainer.progress.step == 0 and trainer.group.is_leader:
            trainer.folder.discard()
        raise


def _load_images(preset: Preset, context: RunContext) -> Images:
    """Check that the device supports the preset's precision and compilation, then load the run's images."""
    check_precision(preset.train.precision, context.device)
    check_compile(preset.train.compile, context.device)

    def on_progress(what: str, done: int, total: int) -> None:
        context.emit(Loading(what, done, total))

    return context.group.leader_first(lambda: load_run_images(preset, context.data_dir, on_progress))
