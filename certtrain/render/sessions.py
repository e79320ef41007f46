"""Training and verification from Python, with progress: by default in a notebook, elsewhere if asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from typing import Any

from certtrain.attack import AttackSettings
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.bounds.settings import Settings as BoundSettings
from certtrain.data import ImageSet
from certtrain.deprecation import LIMITS_BELONG, arguments_elsewhere, renamed_argument
from certtrain.network.modelfile import Classifier
from certtrain.render.console import out as console
from certtrain.render.training import training_view
from certtrain.render.verification import verifying_session
from certtrain.runtime.deadline import never
from certtrain.spec.choices import NetworkName
from certtrain.spec.preset import Preset, load_preset
from certtrain.training import api
from certtrain.training.context import DEFAULT_CONTEXT, RunContext
from certtrain.training.events import Event
from certtrain.verification.cascade import DEFAULT_LIMITS, Limits, OnExamples, OnRound, OnWork, Work
from certtrain.verification.certificate import DEFAULT_ARITHMETIC
from certtrain.verification.results import ExampleResult
from certtrain.verification.verify import DEFAULT_ATTACK, Report, verify


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


@arguments_elsewhere(**LIMITS_BELONG)
@renamed_argument("on_points", "on_examples")
def verify_with_progress(
    model: Classifier,
    images: ImageSet,
    eps: float,
    *,
    attack: AttackSettings | None = DEFAULT_ATTACK,
    method: str = "auto",
    progress: bool | None = None,
    known: Sequence[ExampleResult] = (),
    on_examples: OnExamples = lambda results: None,
    on_round: OnRound = lambda names, examples: None,
    on_work: OnWork = lambda work: None,
    network: NetworkName = "saved",
    arithmetic: str = DEFAULT_ARITHMETIC,
    bounds: BoundSettings = VERDICT_SETTINGS,
    limits: Limits = DEFAULT_LIMITS,
    batch_size: int = 200,
    stop: Callable[[], bool] = never,
) -> Report:
    """Classify, attack and certify each example, as `certtrain verify` does; this is `certtrain.verify`.

    `method` "auto" is the cascade: attack and interval bounds first, then each tighter method, and a targeted attack,
    on the examples that are still open. Any other name means that method only. Without an `attack` (None) no example is
    falsified. `known` are earlier results. progress: whether to print what goes on; if not given, in a notebook only.

    `limits` are seconds: Limits(timeout=1.0, budget=60.0) for each open example and for all; 30 s for each if not
    given. network: "saved", or "folded", as `export` writes it. arithmetic: "float32", "tf32", "bf16" or "real".
    `stop` returns True to stop; the callbacks get the results of each batch, the names and examples of each round, and
    how far the work on an example is. Raises what `certtrain.verification.verify.verify` raises.
    """
    options: dict[str, Any] = {"network": network, "arithmetic": arithmetic, "bounds": bounds, "limits": limits}
    options |= {"batch_size": batch_size, "stop": stop}
    if not (console.is_jupyter if progress is None else progress):
        watch: dict[str, Any] = {"on_examples": on_examples, "on_round": on_round, "on_work": on_work}
        return verify(model, images, eps, attack=attack, method=method, known=known, **watch, **options)
    with verifying_session(known) as view:

        def begin(names: tuple[str, ...], examples: int) -> None:
            view.begin(names, examples)
            on_round(names, examples)

        def work_on(work: Work) -> None:
            view.work_on(work)
            on_work(work)

        def add(results: list[ExampleResult]) -> None:
            view.add(results)
            on_examples(results)

        watch = {"on_examples": add, "on_round": begin, "on_work": work_on}
        return verify(model, images, eps, attack=attack, method=method, known=known, **watch, **options)


for _function in (verify_with_progress, unwrap(verify_with_progress)):  # its public name, also in Python's errors
    _function.__name__ = _function.__qualname__ = "verify"


@contextmanager
def _shown(context: RunContext, progress: bool | None) -> Iterator[RunContext]:
    """The context, whose events are also shown if there is to be progress and this is the first process."""
    wanted = console.is_jupyter if progress is None else progress
    with training_view(False, silent=not wanted or not context.group.is_leader) as view:

        def emit(event: Event) -> None:
            view(event)
            context.emit(event)

        yield replace(context, emit=emit)
