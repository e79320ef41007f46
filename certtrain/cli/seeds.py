"""`certtrain train --seeds`: one preset with several seeds."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certtrain.runs.seeds import PAGE, SeedRuns, is_of_seeds, new_or_more_seeds, read_seeds

if TYPE_CHECKING:
    from certtrain.spec.preset import Preset
    from certtrain.training.context import RunContext

MOST_SEEDS = 1000


def _seeds(text: str) -> int | tuple[int, ...]:
    """A number of seeds from "3", or the seeds themselves from "0,4,7"."""
    words = [word.strip() for word in str(text).split(",")]
    if not all(word.isdecimal() and len(word) < 19 for word in words):
        raise typer.BadParameter(f"{text!r} is neither a number of seeds, like 3, nor a list of them, like 0,4,7")
    numbers = tuple(map(int, words))
    if len(numbers) == 1 and not 1 <= numbers[0] <= MOST_SEEDS:
        raise typer.BadParameter(f"{text!r} is no number of seeds from 1 to {MOST_SEEDS:,}; a list is like 0,4,7")
    if len(set(numbers)) < len(numbers):
        raise typer.BadParameter(f"{text!r} has a seed twice")
    return numbers[0] if len(numbers) == 1 else numbers


Seeds = Annotated[
    Any,
    typer.Option(
        parser=_seeds,
        metavar="COUNT|LIST",
        help="Train with so many seeds, from the preset's on, or with those in a list like 0,4,7, one after the other: "
        "a run for each in one folder, and a report with mean and standard deviation. With --out, the same command "
        "again trains only the seeds that are not finished.",
    ),
]


def wanted_seeds(preset: "Preset | None", seeds: int | tuple[int, ...] | None, out: Path | None) -> SeedRuns | None:
    """The runs of several seeds that a new training is to make; None if it has one seed. Raises RunError."""
    if preset is None or seeds is None:
        return None
    numbers = range(preset.seed, preset.seed + seeds) if isinstance(seeds, int) else seeds
    return new_or_more_seeds(out or _new_folder(preset), preset, list(numbers))


def resumed_seeds(resume: Path | None) -> SeedRuns | None:
    """The runs of several seeds in a folder that is to be resumed; None if it is another folder."""
    return read_seeds(resume) if resume is not None and is_of_seeds(resume) else None


def _new_folder(preset: "Preset") -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{preset.name}-seeds-{stamp}"


def train_and_compare(runs: SeedRuns, context: "RunContext", *, as_json: bool) -> None:
    """Train the seeds that are not finished; show all results, or how to go on after a stop."""
    from certtrain import render
    from certtrain.training.seeds import train_seeds

    compared = train_seeds(runs, context)
    if not context.group.is_leader:
        return
    if compared is None:
        done, again = len(runs.finished), f"certtrain train --resume {runs.path}"
        render.note(f"{done} of {len(runs.seeds)} seeds are finished; to go on with all: {again}")
    elif as_json:
        render.show_json({"event": "compared", "folder": str(runs.path), **compared.to_dict()}, indent=None)
    else:
        render.say("")
        render.show_comparison(compared)
        render.say(f"wrote {runs.path / PAGE}")
