"""The layers of networks as tables: of one model, of several side by side, of a network that is being trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from certtrain.diagnostics.findings import Finding, LayerMeans, first_sentence, sentences
from certtrain.formats import NO_NUMBER, number, times
from certtrain.render.cells import (
    BAR,
    GROWTH_REMARK,
    growth_cell,
    legend,
    new_table,
    ratio_cells,
    show_first_sentence,
    show_sentences,
    show_table,
    state_bar,
    state_cells,
)
from certtrain.render.console import GREY, WARNING, out, remark, show_title
from certtrain.runs.epoch import LayerState

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.diagnostics.model_states import ModelStates

RATIOS_REMARK = "r: balance of active and inactive ReLUs, in mean and in variance (Shi et al. 2021); 1 is best"
NUMBERS_WIDTH, LEGEND_WIDTH = 66, 27  # columns: of a live table beside the names, and of the legend above the bars
LIVE = ("growth", "active", "unstable", "inactive", "dead", "r mean", "r var")  # the numbers of a live table
# Numbers that a live table is without, if it has less space than this beside its names and all numbers.
SPARED = (("r mean", 0), ("r var", 0), ("active", -16), ("inactive", -24))
STATES_WIDTH = 40 + BAR  # columns of the table of states beside the names


def live_layers(layers: Sequence[LayerState], findings: Sequence[Finding]) -> RenderableType:
    """The numbers of `stats` in a compact form, for a training as it runs, and the sentence about the worst layer.

    Where space is short the bars are left out; if the layers' names are long, the ratios too, and then shares that
    follow from the others.
    """
    space = _space(layers)
    with_bar, spared = space >= LEGEND_WIDTH, SPARED[: sum(space < least for _, least in SPARED)]
    kept = [title for title in LIVE if title not in dict(spared)]
    table = new_table("layer", *kept)
    if with_bar:
        table.add_column(legend(), justify="left")
    for layer in layers:
        numbers: tuple[str | Text, ...] = (growth_cell(layer), *state_cells(layer), *ratio_cells(layer))
        cells = dict(zip(LIVE, numbers, strict=True))
        bar = [state_bar(layer, min(48, space - 2))] * with_bar
        table.add_row(layer.name, *(cells[title] for title in kept), *bar)
    return Group(table, *([Text(f"! {first_sentence(findings)}", style=WARNING)] if findings else []))


def shows_ratios(layers: Sequence[LayerState]) -> bool:
    """Whether the balance ratios of these layers fit into the compact form."""
    return bool(layers) and _space(layers) >= 0


def _space(layers: Sequence[LayerState]) -> int:
    """The columns beside the names and numbers of a compact table."""
    return out.width - NUMBERS_WIDTH - max((len(layer.name) for layer in layers), default=0)


def show_states(model: ModelStates, heading: str) -> None:
    """All numbers of each ReLU layer, in two tables that fit a narrow terminal, and the findings."""
    show_title(heading)
    states = new_table("layer", "units", "active", "unstable", "inactive", "dead")
    with_bar = out.width >= STATES_WIDTH + max((len(layer.name) for layer in model.layers), default=0)
    if with_bar:
        states.add_column("", justify="left", no_wrap=True)
    widths = new_table("layer", "centre", "width", "growth", "r mean", "r variance")
    for layer in model.layers:
        bar = [state_bar(layer, BAR)] * with_bar
        states.add_row(layer.name, f"{layer.units:,}", *state_cells(layer), *bar)
        numbers = number(layer.centre), number(layer.width), growth_cell(layer)
        widths.add_row(layer.name, *numbers, *ratio_cells(layer))
    means = model.means
    states.add_row("mean", "", *state_cells(means), style=GREY)
    widths.add_row("mean", "", "", times(means.growth), *ratio_cells(means), style=GREY)
    show_table(states)
    if with_bar:
        out.print(legend())
    out.print()
    show_table(widths)
    _explain_numbers()
    show_sentences(sentences(model.findings), "no layer stands out")


def show_models(models: Sequence[ModelStates], heading: str) -> None:
    """Several models side by side: for each layer a row for each model, then the means."""
    show_title(heading)
    table = new_table("layer", "model", "growth", "unstable", "inactive", "dead", "r mean", "r var")
    table.columns[1].justify = "left"
    names = list(dict.fromkeys(layer.name for model in models for layer in model.layers))
    layers = [{layer.name: layer for layer in model.layers} for model in models]
    for name in names:
        for index, (model, known) in enumerate(zip(models, layers, strict=True)):
            table.add_row("" if index else name, model.name, *_cells(known.get(name)))
    for index, model in enumerate(models):
        table.add_row("" if index else "mean", model.name, *_cells(model.means), style="bold")
    show_table(table)
    _explain_numbers()
    for model in models:
        show_first_sentence(model.name, model.findings, f"{model.name}: no layer stands out")


def _cells(layer: LayerState | LayerMeans | None) -> tuple[str | Text, ...]:
    """Dashes for a layer that a model does not have."""
    if layer is None:
        return (NO_NUMBER,) * 6
    return times(layer.growth), *state_cells(layer)[1:], *ratio_cells(layer)


def _explain_numbers() -> None:
    for text in (GROWTH_REMARK, RATIOS_REMARK):
        remark(text)
