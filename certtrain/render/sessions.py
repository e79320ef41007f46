"""Training from Python, with the progress that the command shows: by default in a notebook, elsewhere if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from certtrain.deprecation import renamed_argument
from certtrain.render.console import out as console
from certtrain.render.training import training_view
from certtrain.spec.preset import Preset, load_preset
from certtrain.training import api
from certtrain.training.context import DEFAULT_CONTEXT, RunContext
from certtrain.training.events import Event
from certtrain.verification.verify import Report


@renamed_argument("surroundings", "context")
def train(
    preset: Preset | str | Path | Mapping[str, Any],
    out: str | Path,
    context: RunContext = DEFAULT_CONTEXT,
    *,
    progress: bool | None = None,
) -> Report | None:
    """Train by `preset` into the new folder `out`, verify on the test set, and write model, results and report.

    preset: a preset, or what `load_preset` takes: a shipped preset's name, a file, or a dict of fields. progress:
    whether to print what goes on, as `certtrain train` does; if not given, in a notebook only. Returns the report of
    the verification, or None if the run was stopped. Raises a CerttrainError.

    If the preset's network is a user's own code, it is run here, and its layers are saved with the run. A user's own
    objective is run from its file, until the run ends.
    """
    context = context.resolved()
    loaded = preset if isinstance(preset, Preset) else load_preset(preset)
    with _shown(context, progress) as shown:
        return api.start_run(loaded, out, shown)


@renamed_argument("surroundings", "context")
def resume(
    out: str | Path,
    context: RunContext = DEFAULT_CONTEXT,
    *,
    epochs: int | None = None,
    progress: bool | None = None,
) -> Report | None:
    """Resume the run in `out` from its last checkpoint, with the layers that it began with. Otherwise as `train`.

    With `epochs` the run has so many in all, more than before, and may be finished.
    """
    with _shown(context.resolved(), progress) as shown:
        return api.resume_run(out, shown, epochs=epochs)


@contextmanager
def _shown(context: RunContext, progress: bool | None) -> Iterator[RunContext]:
    """The context, whose events are also shown if there is to be progress and this is the first process."""
    wanted = console.is_jupyter if progress is None else progress
    with training_view(False, silent=not wanted or not context.group.is_leader) as view:

        def emit(event: Event) -> None:
            view(event)
            context.emit(event)

        yield replace(context, emit=emit)
