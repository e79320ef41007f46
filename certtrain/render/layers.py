"""Layers as tables: the states of one model, of several, of a run's epochs, and the growth at initialisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from certtrain.formats import column, number, percent, times
from certtrain.render.pieces import BAR, growth_text, legend, new_table, out, say, state_bar

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.diagnostics.epochs import EpochRecord, History
    from certtrain.diagnostics.findings import Finding, LayerMeans, LayerState
    from certtrain.diagnostics.growth import DepthSweep, LayerGrowth, SchemeGrowth, Spread
    from certtrain.diagnostics.model_states import InitialNetwork, ModelStates

MOST_EPOCHS = 40  # that a table shows
GREY = "bright_black"
WARNING = "yellow"

GROWTH = "growth: how many times wider the bounds are at a ReLU's input than at the network's, on average"
RATIOS = "r: how alike active and inactive ReLUs are in mean and variance, 1 at best"
BY_WEIGHTS = (
    "BatchNorm is at its start (mean 0, variance 1) and passes values on as they are: this growth is the weights' own."
)
IN_TRAINING = (
    "BatchNorm divides by the spread of the batch, and so undoes the scale of the weights: this is what the first "
    "training step sees, and by it the schemes look alike. The ramp of ε and the regularisers bring it down."
)
AT_ONE_EPS = (
    "a network from before the end of the ramp was not yet trained for this ε, and may be in trouble for that alone"
)
ONCE = "told are the worst kinds, three at most, each where it is worst; --json lists all trouble"
TRENDS = {
    "exponential": "each layer multiplies the width, which grows exponentially with depth",
    "constant": "the width changes little from layer to layer, however deep the network is",
    "shrinking": "the width shrinks from layer to layer, as it does where zeros pad the border of small images",
}


def tell(sentences: Iterable[str], fine: str = "") -> None:
    """The sentences on what is wrong, each on a line; else the one that all is fine."""
    lines = list(sentences)
    for line in lines:
        out.print(Text.assemble(("! ", f"bold {WARNING}"), (line, WARNING)))
    if fine and not lines:
        say(fine, GREY)


def _tell_first(about: str, findings: Sequence[Finding], fine: str = "") -> None:
    """Of one of several networks the worst layer's sentence, and how many more layers are bad."""
    from certtrain.diagnostics.findings import first_in_words

    tell([f"{about}: {first_in_words(findings)}"] if findings else [], fine)


def _states(layer: LayerState | LayerMeans) -> tuple[str, str, str, str]:
    active, unstable, inactive, dead = (
        percent(s, 1) for s in (layer.active, layer.unstable, layer.inactive, layer.dead)
    )
    return active, unstable, inactive, dead


def _ratios(layer: LayerState | LayerMeans) -> tuple[str, str]:
    return number(layer.mean_ratio), number(layer.variance_ratio)


# --- trained networks ------------------------------------------------------------------------------------


def live_layers(layers: Sequence[LayerState], findings: Sequence[Finding]) -> RenderableType:
    """What `stats` shows, as compact as a picture of a running training needs it; the worst layer's sentence.

    Where there is no room, the bars make way for the numbers, and beside long names the ratios too.
    """
    room = out.width - 66 - max((len(layer.name) for layer in layers), default=0)  # beside the numbers
    with_ratios, with_bar = room >= 0, room >= 27  # the legend's
    table = new_table("layer", "growth", "active", "unstable", "inactive", "dead", *(("r mean", "r var") * with_ratios))
    if with_bar:
        table.add_column(legend(), justify="left")
    for layer in layers:
        ratios = _ratios(layer) * with_ratios
        bar = [state_bar(layer, min(48, room - 2))] * with_bar
        table.add_row(layer.name, growth_text(layer), *_states(layer), *ratios, *bar)
    from certtrain.diagnostics.findings import first_in_words

    sentences = [Text(f"! {first_in_words(findings)}", style=WARNING)] if findings else []
    return Group(table, *sentences)


def show_states(model: ModelStates, title: str) -> None:
    """All numbers of each ReLU layer, in two tables that fit a narrow terminal, and what is wrong."""
    from certtrain.diagnostics.findings import in_words

    out.print(Text(title, style="italic"))
    states = new_table("layer", "units", "active", "unstable", "inactive", "dead")
    states.add_column("", justify="left", no_wrap=True)
    widths = new_table("layer", "centre", "width", "growth", "r mean", "r variance")
    for layer in model.layers:
        states.add_row(layer.name, f"{layer.units:,}", *_states(layer), state_bar(layer, BAR))
        numbers = number(layer.centre), number(layer.width), growth_text(layer)
        widths.add_row(layer.name, *numbers, *_ratios(layer))
    means = model.means
    states.add_row("mean", "", *_states(means), style=GREY)
    widths.add_row("mean", "", "", times(means.growth), *_ratios(means), style=GREY)
    out.print(states)
    out.print(legend())
    out.print()
    out.print(widths)
    _explain_numbers()
    tell(in_words(model.findings), "no layer stands out")


def show_models(models: Sequence[ModelStates], title: str) -> None:
    """Several models side by side: for each layer a line for each model, then the means."""
    out.print(Text(title, style="italic"))
    table = new_table("layer", "model", "growth", "unstable", "inactive", "dead", "r mean", "r var")
    table.columns[1].justify = "left"
    names = list(dict.fromkeys(layer.name for model in models for layer in model.layers))
    layers = [{layer.name: layer for layer in model.layers} for model in models]
    for name in names:
        for number_, (model, known) in enumerate(zip(models, layers, strict=True)):
            table.add_row("" if number_ else name, model.name, *_cells(known.get(name)))
    for number_, model in enumerate(models):
        table.add_row("" if number_ else "mean", model.name, *_cells(model.means), style="bold")
    out.print(table)
    _explain_numbers()
    for model in models:
        _tell_first(model.name, model.findings, f"{model.name}: no layer stands out")


def _cells(layer: LayerState | LayerMeans | None) -> tuple[str | Text, ...]:
    """Dashes for a layer that a model does not have."""
    if layer is None:
        return ("–",) * 6
    return times(layer.growth), *_states(layer)[1:], *_ratios(layer)


def _explain_numbers() -> None:
    for remark in (GROWTH, RATIOS):
        out.print(Text(remark, style=GREY))


def show_history(history: History, stages: Sequence[ModelStates], titles: tuple[str, str]) -> None:
    """A run's epochs as they were trained, then its checkpoints at one ε, and when it was at its worst."""
    from certtrain.diagnostics.findings import MOST
    from certtrain.diagnostics.model_states import worst_models  # torch is there by now

    out.print(Text(titles[0], style="italic"))
    table = new_table("epoch", "ε", "certified", "unstable", "inactive", "dead", "growth", "trouble")
    records = _thinned(history.epochs)
    for record, eps in zip(records, column([record.eps for record in records]), strict=True):
        numbers = *_states(record.means)[1:], times(record.means.largest_growth)
        certified = percent(record.certified_accuracy, 1)
        table.add_row(str(record.epoch), eps, certified, *numbers, _kind(record.findings))
    out.print(table)
    _remark_on_epochs(history)
    if stages:
        _show_stages(stages, titles[1])
    epochs = [f"epoch {epoch}: {finding.sentence}" for epoch, finding in history.worst_epochs()[:MOST]]
    after = {stage.name: _after(stage) for stage in stages}
    networks = [f"network {name} ({after[name]}): {finding.sentence}" for name, finding in worst_models(stages)[:MOST]]
    tell([*epochs, *networks], _all_fine(bool(history.epochs), bool(stages)))
    found = [row.findings for row in history.epochs] + [stage.findings for stage in stages]
    if len(epochs) + len(networks) < sum(map(len, found)):
        out.print(Text(ONCE, style=GREY))


def _kind(findings: Sequence[Finding]) -> Text:
    return Text(findings[0].kind if findings else "", style=WARNING)


def _all_fine(epochs: bool, networks: bool) -> str:
    places = [f"in no {place}" for place, there in (("epoch", epochs), ("network", networks)) if there]
    return f"{' and '.join(places)} did a layer stand out" if places else ""


def _thinned(rows: Sequence[EpochRecord]) -> Sequence[EpochRecord]:
    """So many that a screen holds them: every few of them, and the last."""
    every = -(-len(rows) // MOST_EPOCHS)
    return rows if every < 2 else [rows[i] for i in range(len(rows)) if (i + 1) % every == 0 or i + 1 == len(rows)]


def _remark_on_epochs(history: History) -> None:
    shown, all_ = len(_thinned(history.epochs)), len(history.epochs)
    remarks = [
        "certified: of the training examples, at the epoch's ε; states: means over the layers, the rest is active; "
        "growth: the largest"
    ]
    if shown < all_:
        remarks.append(f"{shown} of {all_} epochs; all of them are in --csv, --json and --plot")
    for remark in remarks if history.epochs else ["no epoch is over yet"]:
        out.print(Text(remark, style=GREY))


def _show_stages(stages: Sequence[ModelStates], title: str) -> None:
    out.print()
    out.print(Text(title, style="italic"))
    table = new_table("network", "unstable", "inactive", "dead", "growth", "r mean", "r var", "trouble")
    for stage in stages:
        numbers = *_states(stage.means)[1:], times(stage.means.largest_growth), *_ratios(stage.means)
        table.add_row(_after(stage), *numbers, _kind(stage.findings))
    out.print(table)
    if any(stage.findings for stage in stages):
        out.print(Text(AT_ONE_EPS, style=GREY))


def _after(stage: ModelStates) -> str:
    """Like epoch 5, and epoch 2.5 of a checkpoint within one; a run without a finished epoch has steps alone."""
    return f"step {stage.step}" if stage.epoch is None else f"epoch {stage.epoch:.4g}"


# --- networks at initialisation --------------------------------------------------------------------------


def show_initial(network: InitialNetwork, title: str, findings: Sequence[Finding]) -> None:
    """One network before training: what was done to each layer, and how its bounds grow."""
    from certtrain.diagnostics.findings import in_words

    out.print(Text(f"{network.scheme} initialisation", style="italic"))
    records = new_table("layer", "fan-in", "std of the weights", "halved")
    for record in network.records:
        records.add_row(record.name, f"{record.fan_in:,}", f"{record.std:.3e}", "yes" if record.halved else "no")
    out.print(records)
    out.print()
    out.print(Text(title, style="italic"))
    trained = network.in_training
    columns = ("by the weights",) if trained is None else ("by the weights", "in training")
    table = new_table("growth at", *columns)
    for number_, layer in enumerate(network.by_weights):
        table.add_row(layer.name, growth_text(layer), *([] if trained is None else [growth_text(trained[number_])]))
    out.print(table)
    out.print(Text(GROWTH, style=GREY))
    if trained is not None:
        out.print(Text(f"by the weights: {BY_WEIGHTS}", style=GREY))
        out.print(Text(f"in training: {IN_TRAINING}", style=GREY))
    tell(in_words(findings))


def show_compared(schemes: Sequence[SchemeGrowth], title: str) -> None:
    """The growth at each ReLU, a column for each scheme, over the seeds."""
    out.print(Text(title, style="italic"))
    out.print(Text(f"{GROWTH}{_over_seeds(len(schemes[0].networks))}", style=GREY))
    out.print()
    trained = [scheme.in_training for scheme in schemes]
    by_weights = [scheme.by_weights for scheme in schemes]
    names = [scheme.scheme for scheme in schemes]
    out.print(_growth_table("by the weights", names, by_weights))
    with_batch_norm = [layers for layers in trained if layers is not None]
    if with_batch_norm:
        out.print(Text(BY_WEIGHTS, style=GREY))
        out.print()
        out.print(_growth_table("in training", names, with_batch_norm))
        out.print(Text(IN_TRAINING, style=GREY))
    for scheme in schemes:
        _tell_first(scheme.scheme, scheme.findings)


def show_sweep(sweeps: Sequence[DepthSweep], title: str) -> None:
    """The growth at the last ReLU, a line for each depth and a column for each scheme, and the rate of each."""
    out.print(Text(title, style="italic"))
    out.print(Text(f"{GROWTH}{_over_seeds(len(sweeps[0].growth[0].values))}", style=GREY))
    out.print()
    table = new_table("ReLU layers", *(sweep.scheme for sweep in sweeps))
    for number_, depth in enumerate(sweeps[0].depths):
        table.add_row(str(depth), *(_spread(sweep.growth[number_]) for sweep in sweeps))
    out.print(table)
    out.print()
    for sweep in sweeps:
        style = "bold red" if sweep.trend == "exponential" else "bold green"
        rate = (f"{sweep.scheme}: {'no width is left' if sweep.rate is None else f'×{sweep.rate:.3g} a layer'}", style)
        out.print(Text.assemble(rate, f"; {TRENDS[sweep.trend]}"))


def _growth_table(title: str, names: Sequence[str], schemes: Sequence[Sequence[LayerGrowth]]) -> Table:
    table = new_table(title, *names)
    for row in zip(*schemes, strict=True):
        table.add_row(row[0].name, *(_spread(layer.growth) for layer in row))
    return table


def _spread(growth: Spread) -> Text:
    """The mean and, of several seeds, the standard deviation as a share of it; red where bounds explode."""
    from certtrain.diagnostics.findings import EXPLODING

    text = times(growth.mean)
    if len(growth.values) > 1:
        text += f" ±{100 * growth.std / growth.mean:.0f}%" if growth.mean > 0 else " ±0%"
    return Text(text, style="" if growth.mean < EXPLODING else "bold red")


def _over_seeds(seeds: int) -> str:
    return f"; mean and standard deviation of {seeds} seeds" if seeds > 1 else ""
