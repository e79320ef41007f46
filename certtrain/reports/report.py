"""A run as one HTML page: its results, curves, layers and preset, from nothing but the files in its folder."""

import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from certtrain.diagnostics.epochs import epoch_findings
from certtrain.diagnostics.findings import STATE_EXAMPLES, sentences
from certtrain.formats import attack_words, column, count_of, duration, number, percent
from certtrain.palette import STATES
from certtrain.reports.confusion import Confusion
from certtrain.reports.pages import CellValue, Sheet, Table, render_page
from certtrain.reports.run_pictures import ACCURACIES, curve_pictures, layer_pictures
from certtrain.reports.sheets import ATTACKS_SHEET, SHEETS, VERDICTS_SHEET
from certtrain.runs.epoch import END_EXAMPLES, LayerState
from certtrain.runs.history import Run, read_run
from certtrain.spec.epsilon import format_eps
from certtrain.spec.layers import Graph
from certtrain.spec.objective import described_objective
from certtrain.spec.preset import Preset, TrainSection
from certtrain.spec.section import Section
from certtrain.storage import write_atomic

LIST_COMMAND = "certtrain stats RUN --json lists them"

SHEET_WORDS = (
    (
        VERDICTS_SHEET,
        "Verdicts",
        "In each row, the shares of the frames are those of the whole class; the number is its share of certified "
        "images.",
    ),
    (
        ATTACKS_SHEET,
        "Under attack",
        "Perturbations are amplified: grey is no change, black and white are a change of ε. Of an image without a "
        "counterexample, the attacked one is the input with the smallest margin that 20 steps found.",
    ),
)
MEANINGS_OF_VERDICTS = {
    "certified": "proved: no input in the box changes the class",
    "open": "neither certified nor falsified",
    "falsified": "the attack found an input in the box that changes the class",
    "misclassified": "wrong without any perturbation",
}
TRAIN_ROWS = {"epochs", "batch_size", "learning_rate", "optimizer", "precision"}  # shown in rows of the settings
TRAIN_ROWS |= {"schedule", "warmup", "milestones", "decay"}
LABELS = {
    "eps": "ε",
    "learning_rate": "learning rate",
    "natural_accuracy": "natural",
    "certified_accuracy": "certified",
}
LABELS |= {"validation_natural_accuracy": "held-out natural", "validation_certified_accuracy": "held-out certified"}


def write_report(run_folder: Path, path: Path) -> None:
    """Write the page of the run in `run_folder` to `path`, completely or not at all.

    The run may be unfinished. The same files give the same bytes. Raises RunError, PresetError or StorageError.
    """
    write_atomic(path, run_page(read_run(run_folder), sheets_of(run_folder)).encode())


def sheets_of(run_folder: Path) -> list[Sheet]:
    """The sheets of test images in the folder of a run."""
    found = [(run_folder / SHEETS / name, title, caption) for name, title, caption in SHEET_WORDS]
    return [Sheet.read(path, title, caption) for path, title, caption in found if path.is_file()]


def run_page(run: Run, sheets: Sequence[Sheet] = ()) -> str:
    """The page of a run as HTML, with these sheets of test images if it is finished."""
    parts = (_results, _by_class, _last_accuracies, _pictures, _layers)
    values = {name: value for part in parts for name, value in part(run).items()}
    title = f"{run.preset.name}, seed {run.preset.seed}"
    settings = run_facts(run)
    numbers, shown = _numbers(run), sheets if run.report is not None else ()
    return render_page("run.html", title=title, run=run, settings=settings, numbers=numbers, sheets=shown, **values)


# --- results ---------------------------------------------------------------------------------------------


def _results(run: Run) -> dict[str, Any]:
    """The attack in words, the share of each verdict, and the table of verdicts; nothing for an unfinished run."""
    if run.report is None:
        return {}
    found = run.report.results
    counts = {name: getattr(found, name) for name in MEANINGS_OF_VERDICTS}
    shares = {name: count / found.examples for name, count in counts.items()}
    rows = [(name, counts[name], percent(shares[name]), meaning) for name, meaning in MEANINGS_OF_VERDICTS.items()]
    table = Table(("verdict", "examples", "share", "meaning"), rows, "lrrl")
    return {"attack": attack_words(found.attack), "shares": shares, "verdicts": table}


def _by_class(run: Run) -> dict[str, Any]:
    """The table of accuracies by class, and the confusion under attack; empty for an unfinished or an old run."""
    if run.report is None or not run.report.classes:
        return {"by_class": None, "confusion": None}
    classes = run.report.classes
    rows: list[list[CellValue]] = [[c.class_name, c.examples, *map(percent, c.accuracies)] for c in classes]
    table = Table(("class", "examples", "natural", "under attack", "certified"), rows)
    return {"by_class": table, "confusion": Confusion.of([c.class_name for c in classes], run.report.confusion)}


def _last_accuracies(run: Run) -> dict[str, Any]:
    """For an unfinished run: each accuracy of the last epoch by name, and what it is measured on."""
    measured = run.epochs[-1].measured if run.epochs else {}
    known = [name for name in ACCURACIES if name in measured]
    return {"last_accuracies": [(ACCURACIES[name][0], measured[name], _measured_on(name, run)) for name in known]}


def _measured_on(name: str, run: Run) -> str:
    if not name.startswith("validation"):
        return "training images"
    return f"at ε = {format_eps(run.preset.eps.max)}" if "certified" in name else "no perturbation"


# --- the settings ----------------------------------------------------------------------------------------


def run_facts(run: Run) -> list[tuple[str, CellValue]]:
    """The settings of a run, and where and when it was trained, each with its name."""
    return [*_settings(run), *_execution(run)]


def _settings(run: Run) -> Iterator[tuple[str, CellValue]]:
    preset, train = run.preset, run.preset.train
    held_out = f"; {preset.data.validation:,} training examples held out" if preset.data.validation else ""
    yield "preset", preset.name
    yield "data set", f"{preset.data.name}{_images(run)}{held_out}"
    yield "network", _network(preset)
    yield "parameters", None if run.weights is None else run.weights.parameters
    yield "initialisation", preset.init if preset.start is None else f"weights of {preset.start.file}"
    yield "objective", described_objective(preset.objective)
    yield "ε", f"{format_eps(preset.eps.max)}; {_ramp(run)}"
    yield "training", ", ".join((f"{count_of(train.epochs, 'epoch')}, batches of {train.batch_size}", *_changed(train)))
    yield "optimiser", train.optimizer
    yield "learning rate", f"{train.learning_rate:g}{_schedule(train)}"
    yield "precision", train.precision
    yield "seed", str(preset.seed)


def _images(run: Run) -> str:
    if run.weights is None or not run.weights.input_shape:
        return ""
    names, shape = run.weights.class_names, "×".join(map(str, run.weights.input_shape))
    some = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f": images of {shape}, {len(names)} classes ({some})"


def _network(preset: Preset) -> str:
    """The architecture's name and fields; for a list of layers, its title and the number of layers."""
    if not isinstance(preset.model, Graph):
        return f"{preset.model.name}: {_fields(preset.model)}"
    origin = preset.model.origin
    arguments = [f"{name} {value}" for name, value in origin.arguments.items()] if origin else []
    return f"{preset.model.title}: {', '.join([*arguments, count_of(len(preset.model.layers), 'layer')])}"


def _schedule(train: TrainSection) -> str:
    """What becomes of the learning rate; empty if it stays as it is."""
    if train.schedule == "steps":
        epochs = " ".join(map(str, train.milestones))
        return f"; times {train.decay:g} after epochs {epochs}" if epochs else ""
    rising = f"; rises for {count_of(train.warmup, 'epoch')}, then" if train.warmup else ";"
    return f"{rising} falls to 0 ({train.schedule})"


def _changed(train: TrainSection) -> list[str]:
    """The fields that have no row of their own and differ from their defaults."""
    return _texts(train.model_dump(mode="json", exclude=TRAIN_ROWS, exclude_defaults=True))


def _fields(section: Section) -> str:
    return ", ".join(_texts(section.model_dump(mode="json", exclude={"name"}, exclude_none=True)))


def _texts(values: dict[str, Any]) -> list[str]:
    return [f"{name.replace('_', ' ')} {_plain(value)}" for name, value in values.items()]


def _plain(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return " ".join(map(_plain, value)) or "none"
    return str(value)


def _ramp(run: Run) -> str:
    warm_up = run.warm_up
    if warm_up is None:
        return f"from epoch {run.preset.eps.start} on"
    first, last = warm_up
    factor = run.preset.eps.train_factor
    above = "" if factor == 1 else f" to {factor:g} times as much"
    return f"rises from 0{above} in " + (f"epoch {first}" if first == last else f"epochs {first} to {last}")


def _execution(run: Run) -> Iterator[tuple[str, CellValue]]:
    report = run.report
    if report is None:
        if run.epochs:
            yield "trained so far", duration(run.epochs[-1].measured.get("seconds") or 0.0)
        return
    training = report.training
    processes = f", {count_of(training.processes, 'process')}" if training.processes > 1 else ""
    yield "device", training.device + processes
    yield "trained in", f"{duration(training.seconds)}, {count_of(training.steps, 'step')}"
    yield "verified in", duration(report.verification_seconds)
    if training.finished is not None:
        yield "finished", datetime.fromisoformat(training.finished).strftime("%d %B %Y, %H:%M %Z").lstrip("0")
    yield "versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())


# --- pictures and layers ---------------------------------------------------------------------------------


def _pictures(run: Run) -> dict[str, Any]:
    """The curves and the pictures of layers; none before the first epoch."""
    curves = [*curve_pictures(run)] if run.epochs else []
    layers = [*layer_pictures(run)] if run.layers else []
    return {"end_examples": END_EXAMPLES, "curves": curves, "layer_pictures": layers}


def _layers(run: Run) -> dict[str, Any]:
    """The values that the table of layers uses, and the sentences that `stats` shows about them."""
    findings = sentences(epoch_findings(run.epochs[-1], run.preset), where=LIST_COMMAND) if run.epochs else []
    values = {"states": STATES, "state_shares": state_shares, "state_examples": STATE_EXAMPLES}
    return values | {"findings": findings}


def state_shares(layer: LayerState) -> dict[str, float]:
    """The three shares that add up to one, by name."""
    return {"active": layer.active, "unstable": layer.unstable, "inactive": layer.inactive}


# --- numbers ---------------------------------------------------------------------------------------------


def _numbers(run: Run) -> Table:
    """A row for each epoch, and a column for each number that at least one epoch has."""
    names = [name for name in run.measured if name != "step"]
    columns = [_column(name, run.values(name)) for name in names]
    rows = [[str(epoch.epoch), *cells] for epoch, *cells in zip(run.epochs, *columns, strict=True)]
    return Table(["epoch", *map(_label, names)], rows, "r" * (1 + len(names)))


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def _column(name: str, values: list[float | None]) -> list[str]:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if name == "eps" and len(known) == len(values):
        return column(known)
    return [_cell(name, value) for value in values]


def _cell(name: str, value: float | None) -> str:
    if name == "seconds" and value is not None:
        return f"{value:,.1f}"
    return percent(value) if name.endswith("accuracy") else number(value, 4)
