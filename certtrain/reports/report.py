"""A run as one HTML page: its result, its curves, its layers and its preset, from the files of its folder alone."""

import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from certtrain.diagnostics.findings import LOOK_EXAMPLES, LayerState, in_words, worst
from certtrain.errors import MissingExtra
from certtrain.formats import column, duration, number, percent, times
from certtrain.reports import html
from certtrain.reports.html import Cell, Html
from certtrain.reports.pictures import ACCURACIES, curve_pictures, layer_pictures
from certtrain.runs.history import Epoch, Layer, Results, Run, read_run
from certtrain.spec.epsilon import format_eps
from certtrain.spec.layers import Graph
from certtrain.spec.preset import Preset
from certtrain.spec.section import Section
from certtrain.storage import write_atomic

AGAIN = "certtrain stats RUN --html report.html"
"""The command that writes the page of the run in the folder RUN."""

LISTED = "certtrain stats RUN --json lists them"

VERDICTS = {
    "certified": "proved: no input in the box changes the class",
    "open": "neither proved nor attacked",
    "falsified": "the attack found an input in the box that changes the class",
    "misclassified": "wrong without any perturbation",
}
ATTACK = {"steps": " steps", "restarts": ""}
STATES = ("active", "unstable", "inactive")
LABELS = {"eps": "ε", "learning_rate": "rate", "natural_accuracy": "natural", "certified_accuracy": "certified"}
LABELS |= {"validation_natural_accuracy": "held-out natural", "validation_certified_accuracy": "held-out certified"}


def write_report(run_folder: Path, path: Path) -> None:
    """Write the page of the run in `run_folder` to `path`, whole or not at all.

    The run may be unfinished. Without matplotlib the page has tables in the
    place of curves, and says how to get them. The same files give the same
    bytes. Raises RunError, PresetError or StorageError.
    """
    write_atomic(path, run_page(read_run(run_folder)).encode())


def run_page(run: Run) -> str:
    """The page of a run as text."""
    parts = (_opening, _outcome, _facts, _curves, _layers, _numbers, _preset)
    return html.page(f"{run.preset.name}, seed {run.preset.seed}", [block for part in parts for block in part(run)])


# --- what came out ---------------------------------------------------------------------------------------


def _opening(run: Run) -> Iterator[Html]:
    if run.preset.description:
        yield html.paragraph(run.preset.description)
    if run.record is None:
        done, epochs = len(run.epochs), run.preset.train.epochs
        yield html.note(f"This run is not finished: {done} of {epochs} epochs are done, and nothing is verified yet.")


def _outcome(run: Run) -> Iterator[Html]:
    if run.record is not None:
        yield from _result(run.record.results)
    elif run.epochs:
        last = run.epochs[-1]
        yield html.heading(f"After epoch {last.epoch}")
        measured = [(name, last.numbers[name]) for name in ACCURACIES if name in last.numbers]
        yield html.tiles((percent(value), ACCURACIES[name][0], _measured_on(name, run)) for name, value in measured)


def _measured_on(name: str, run: Run) -> str:
    if not name.startswith("validation"):
        return "training images"
    return f"at ε = {format_eps(run.preset.eps.max)}" if "certified" in name else "no perturbation"


def _result(found: Results) -> Iterator[Html]:
    yield html.heading(
        f"Result: {found.dataset}, {found.split} set, {found.examples:,} examples, ε = {format_eps(found.eps)}"
    )
    yield html.tiles(
        [
            (percent(found.natural_accuracy), "natural accuracy", "no perturbation"),
            (percent(found.pgd_accuracy), "accuracy under attack", f"attacked: {_attack(found)}"),
            (percent(found.certified_accuracy), "certified accuracy", f"proved by {found.method} bounds"),
            (percent(found.verified_error), "verified error", "all that is not certified"),
        ]
    )
    counts = dict(zip(VERDICTS, (found.certified, found.open, found.falsified, found.misclassified), strict=True))
    yield html.bar((name, count / found.examples, name) for name, count in counts.items())
    yield html.legend((name, name) for name in VERDICTS)
    rows = [(name, counts[name], percent(counts[name] / found.examples), VERDICTS[name]) for name in VERDICTS]
    yield html.table(("verdict", "examples", "share", "meaning"), rows, "lrrl")
    low, high = percent(found.certified_accuracy), percent(found.pgd_accuracy)
    yield html.paragraph(f"Robust accuracy lies between {low} and {high}. What a certificate assumes:")
    yield html.bullets(found.assumptions)


def _attack(found: Results) -> str:
    """Like 20 steps × 1."""
    return " × ".join(f"{found.attack[name]}{unit}" for name, unit in ATTACK.items() if name in found.attack)


# --- what was run ----------------------------------------------------------------------------------------


def _facts(run: Run) -> Iterator[Html]:
    yield html.heading("What was run")
    yield html.facts([*_settings(run), *_circumstances(run)])


def _settings(run: Run) -> Iterator[tuple[Cell, Cell]]:
    preset, train = run.preset, run.preset.train
    held_out = f"; {preset.data.validation:,} training examples held out" if preset.data.validation else ""
    yield "preset", preset.name
    yield "data set", f"{preset.data.name}{_images(run)}{held_out}"
    yield "network", _network(preset)
    yield "parameters", None if run.weights is None else run.weights.parameters
    yield "initialisation", preset.init
    yield "ε", f"{format_eps(preset.eps.max)}; {_ramp(run)}"
    yield "training", f"{train.epochs} epochs, batches of {train.batch_size}, learning rate {train.learning_rate:g}"
    yield "precision", train.precision
    yield "seed", str(preset.seed)


def _images(run: Run) -> str:
    if run.weights is None or not run.weights.input_shape:
        return ""
    names, shape = run.weights.class_names, "×".join(map(str, run.weights.input_shape))
    some = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f": images of {shape}, {len(names)} classes ({some})"


def _network(preset: Preset) -> str:
    """The architecture's name and fields; of a list of layers, where it comes from and how many they are."""
    if not isinstance(preset.model, Graph):
        return f"{preset.model.name}: {_fields(preset.model)}"
    origin = preset.model.origin
    arguments = [f"{name} {value}" for name, value in origin.arguments.items()] if origin else []
    return f"{preset.model.title}: {', '.join([*arguments, f'{len(preset.model.layers)} layers'])}"


def _fields(section: Section) -> str:
    values = section.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in values.items())


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


def _circumstances(run: Run) -> Iterator[tuple[Cell, Cell]]:
    record = run.record
    if record is None:
        if run.epochs:
            yield "trained so far", duration(run.epochs[-1].numbers.get("seconds") or 0.0)
        return
    training = record.training
    processes = f", {training.processes} processes" if training.processes > 1 else ""
    yield "device", training.device + processes
    yield "trained in", f"{duration(training.seconds)}, {training.steps:,} steps"
    yield "verified in", duration(record.verification_seconds)
    if training.finished is not None:
        yield "finished", datetime.fromisoformat(training.finished).strftime("%d %B %Y, %H:%M %Z").lstrip("0")
    yield "versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())


# --- curves ----------------------------------------------------------------------------------------------


def _curves(run: Run) -> Iterator[Html]:
    if not run.epochs:
        return
    yield html.heading("Over the epochs")
    shaded = "" if run.warm_up is None else " The warm-up, in which ε rises, is shaded."
    try:
        pictures = [*curve_pictures(run)]
    except MissingExtra as error:
        yield html.note(f"No curves here: {error}; then write this page again: ", html.code(AGAIN))
        return
    yield html.paragraph(f"Averages over each epoch's training batches, with the ε of each step.{shaded}")
    yield html.gallery(pictures)


# --- layers ----------------------------------------------------------------------------------------------


def _layers(run: Run) -> Iterator[Html]:
    if not run.epochs:
        return
    yield html.heading("ReLU layers")
    if not run.layers:
        yield html.paragraph("The network has no ReLU.")
        return
    yield html.legend((name, name) for name in STATES)
    yield html.heading(f"After epoch {run.epochs[-1].epoch}", level=3)
    yield _states_table(run.layers)
    yield html.paragraph(
        f"Shares of the ReLUs over the first {LOOK_EXAMPLES:,} training images, or all if they are fewer, at the "
        "epoch's ε: active and inactive are those whose bounds lie on one side of zero; dead ones are inactive for "
        "every image. Growth is the mean width of the bounds over the input's. r is how alike active and inactive "
        "ReLUs are, in mean and in variance: 1 at best."
    )
    yield from _trouble(run.epochs[-1])
    try:
        pictures = [*layer_pictures(run)]
    except MissingExtra:
        return  # said above, where the curves would be
    yield html.heading("Over the epochs", level=3)
    yield html.paragraph("At the end of each epoch. The dashed line is the share of dead ReLUs.")
    yield html.gallery(pictures)


def _trouble(last: Epoch) -> Iterator[Html]:
    """What `stats` says of the layers; before the ramp there is no box that could be too wide."""
    if not last.numbers.get("eps"):
        return
    sentences = in_words(worst(LayerState(**layer.model_dump()) for layer in last.layers), where=LISTED)
    if not sentences:
        yield html.paragraph("No layer stands out.")
    for sentence in sentences:
        yield html.note(sentence)


def _states_table(layers: Iterable[Layer]) -> Html:
    header = ("layer", "ReLUs", "", *STATES, "dead", "centre", "width", "growth", "r mean", "r variance")
    return html.table(header, map(_states_row, layers), "lrl" + "r" * 9)


def _states_row(layer: Layer) -> list[Cell]:
    shares = dict(zip(STATES, (layer.active, layer.unstable, layer.inactive), strict=True))
    values = [percent(share) for share in (*shares.values(), layer.dead)]
    bar = html.bar((name, share, name) for name, share in shares.items())
    numbers = (layer.centre, layer.width, times(layer.growth), layer.mean_ratio, layer.variance_ratio)
    return [layer.name, layer.units, bar, *values, *numbers]


# --- numbers and preset ----------------------------------------------------------------------------------


def _numbers(run: Run) -> Iterator[Html]:
    if not run.epochs:
        return
    names = [name for name in run.measured if name != "step"]
    columns = [_column(name, run.values(name)) for name in names]
    rows = [[str(epoch.epoch), *cells] for epoch, *cells in zip(run.epochs, *columns, strict=True)]
    yield html.heading("Numbers and settings")
    yield html.details(
        "The numbers of each epoch", [html.table(["epoch", *map(_label, names)], rows, "r" * len(rows[0]))]
    )


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


def _preset(run: Run) -> Iterator[Html]:
    lines = html.listing(run.preset.model_dump_json(indent=2))
    remark = html.paragraph(
        "The same run again: save this as mine.json, and ", html.code("certtrain train --preset mine.json")
    )
    yield html.details("The preset, with every field", [remark, lines])
