"""certtrain tune: search the settings of a preset on held-out examples."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from certtrain.cli.exit_codes import ExitCode
from certtrain.cli.options import (
    AsJson,
    DataDir,
    DeviceOption,
    Overrides,
    check_data,
    completed_presets,
    compute_device,
    example_limit,
    resolve_preset,
    seconds,
    seconds_or_none,
)
from certtrain.cli.stopping import Stopper
from certtrain.runs.trials import GOALS, Goal
from certtrain.runtime.deadline import DEFAULT_TIMEOUT
from certtrain.spec.choices import MethodName

if TYPE_CHECKING:
    from certtrain.runs.trials import TrialRecord, TrialRecords
    from certtrain.tuning.searching import SearchOptions


def _goals(text: str) -> tuple[Goal, ...]:
    """("natural", "certified") from "natural,certified", in this order."""
    words = {word.strip() for word in text.split(",")}
    if not words <= {*get_args(Goal)}:
        raise typer.BadParameter(f"{text!r} is not natural, certified or natural,certified")
    return tuple(goal for goal in GOALS if goal in words)


@dataclass(frozen=True)
class SearchedOptions:
    """The search."""

    trials: Annotated[int, typer.Option(min=1, help="Number of trials of the whole study, over all processes.")] = 50
    maximize: Annotated[
        Any,
        typer.Option(
            parser=_goals,
            metavar="GOALS",
            help="What to maximise on the held-out examples: natural, certified or natural,certified. With one, "
            "trials below the median of those before are pruned.",
        ),
    ] = "natural,certified"
    validation: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of training examples to hold out; the preset's if not given, else a tenth of them."
        ),
    ] = None
    overrides: Overrides = None


@dataclass(frozen=True)
class StudyOptions:
    """The study and its trials."""

    out: Annotated[
        Path | None, typer.Option(help="Folder of the trials and the page; tuning/<preset> if not given.")
    ] = None
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A database that Optuna takes, like postgresql://user@host/name, for many machines; a file in the "
            "folder if not given.",
        ),
    ] = None
    lost_after: Annotated[
        float,
        typer.Option(
            parser=seconds, metavar="TIME", help="A trial is lost if its process sends no heartbeat for this long."
        ),
    ] = "2m"  # type: ignore[assignment]
    time_budget: Annotated[
        float | None,
        typer.Option(parser=seconds, metavar="TIME", help="Stop this long after the command started, like 8h."),
    ] = None


@dataclass(frozen=True)
class TrialOptions:
    """Training and verification of a trial."""

    data_dir: DataDir = None
    device: DeviceOption = "auto"
    verify_method: Annotated[MethodName, typer.Option(help="How a trial's network is certified.")] = "ibp"
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=seconds_or_none,
            metavar="TIME|none",
            help="Time limit for each example in the methods beyond ibp, as for `certtrain verify`; "
            f"{DEFAULT_TIMEOUT:.0f}s if not given.",
        ),
    ] = None
    as_json: AsJson = False


def tune_command(
    preset: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE", help="A shipped preset, or a .toml file.", autocompletion=completed_presets
        ),
    ],
    space: Annotated[
        Path, typer.Option(metavar="FILE", help="A TOML file with the fields to search, and their values or ranges.")
    ],
    searched: SearchedOptions,
    study: StudyOptions,
    trial: TrialOptions,
) -> None:
    """Search the settings of a preset by many trainings, verified on held-out training examples, not on the test set.

    Start the command again to go on with a study. Several processes may work on one: start each with the same options.
    """
    from certtrain import render
    from certtrain.tuning.space import limited_trials, read_space

    dimensions = read_space(space)
    trials = limited_trials(dimensions, searched.trials)
    if trials < searched.trials:
        render.note(f"the space has {trials} different settings, so there are {trials} trials")
    resolved = resolve_preset(preset, searched.overrides)
    check_data(resolved, trial.data_dir)
    out = study.out or Path("tuning") / resolved.name
    stop = Stopper(study.time_budget)
    from certtrain.spec.preset import parse_override
    from certtrain.tuning.searching import SearchOptions

    options = SearchOptions(
        preset,
        dimensions,
        out,
        trials,
        study.storage,
        searched.maximize,
        dict(parse_override(text) for text in searched.overrides or []),
        searched.validation,
        study.lost_after,
    )
    records = _search(options, stop, trial)
    _show(records, out, trials, trial.as_json)
    if stop.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)


def _search(options: "SearchOptions", stop: Stopper, trial: TrialOptions) -> "TrialRecords":
    from certtrain import render
    from certtrain.reports.tuning import write_tuning_page
    from certtrain.training.context import FinalVerification, RunContext
    from certtrain.tuning.searching import check_folder, search_settings
    from certtrain.verification.cascade import Limits

    check_folder(options.out)
    verification = FinalVerification(trial.verify_method, Limits(example_limit(trial.timeout)))
    device = compute_device(trial.device)
    with render.TrialView(quiet=trial.as_json) as view:

        def on_trial(record: "TrialRecord", records: "TrialRecords") -> None:
            view.ended(record)
            write_tuning_page(records, options.out / "study.html")

        context = RunContext(trial.data_dir, device, stop.reason, view.listen, verification=verification)
        return search_settings(options, context, on_trial)


def _show(records: "TrialRecords", out: Path, trials: int, as_json: bool) -> None:
    from certtrain import render
    from certtrain.reports.tuning import write_tuning_page

    write_tuning_page(records, out / "study.html")
    if as_json:
        render.show_json(records.to_dict())
        return
    render.show_trials(records)
    done = sum(trial.state in ("finished", "pruned") for trial in records.trials)
    if done < trials:
        render.say(f"{done} of {trials} trials are done; to go on, start the same command again")
    render.say(f"wrote {out / 'study.html'}; the runs of the trials are in {out}")
