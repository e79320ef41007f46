"""Networks before training as tables: their initial weights, and the growth of their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from certtrain.diagnostics.findings import EXPLODING, Finding, sentences
from certtrain.formats import times
from certtrain.render.cells import (
    GROWTH_REMARK,
    growth_cell,
    new_table,
    show_first_sentence,
    show_sentences,
    show_table,
)
from certtrain.render.console import BAD, GOOD, out, remark, show_title

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.diagnostics.growth import DepthSweep, LayerGrowth, SchemeGrowth, Spread
    from certtrain.diagnostics.model_states import InitialNetwork

BY_WEIGHTS_REMARK = (
    "BatchNorm has its initial statistics (mean 0, variance 1) and changes nothing: this growth is due to the weights."
)
IN_TRAINING_REMARK = (
    "BatchNorm divides by the standard deviation of the batch, which cancels the scale of the weights. So in the first "
    "training step all initialisations look alike. The ramp of ε and the regularisers reduce this growth."
)
TRENDS = {
    "exponential": "each layer multiplies the width, which grows exponentially with depth",
    "constant": "the width changes little from layer to layer, however deep the network is",
    "shrinking": "the width shrinks from layer to layer, as it does where zeros pad the border of small images",
}


def show_initial(network: InitialNetwork, heading: str, findings: Sequence[Finding]) -> None:
    """One network before training: the initial weights of each layer, and the growth of its bounds."""
    show_title(f"{network.scheme} initialisation")
    records = new_table("layer", "fan-in", "std of the weights", "halved")
    for record in network.records:
        records.add_row(record.name, f"{record.fan_in:,}", f"{record.std:.3e}", "yes" if record.halved else "no")
    show_table(records)
    out.print()
    show_title(heading)
    trained = network.in_training
    columns = ("by the weights",) if trained is None else ("by the weights", "in training")
    table = new_table("growth at", *columns)
    for index, layer in enumerate(network.by_weights):
        table.add_row(layer.name, growth_cell(layer), *([] if trained is None else [growth_cell(trained[index])]))
    show_table(table)
    remark(GROWTH_REMARK)
    if trained is not None:
        remark(f"by the weights: {BY_WEIGHTS_REMARK}")
        remark(f"in training: {IN_TRAINING_REMARK}")
    show_sentences(sentences(findings))


def show_compared(schemes: Sequence[SchemeGrowth], heading: str) -> None:
    """The growth at each ReLU over the seeds, with a column for each initialisation."""
    show_title(heading)
    remark(f"{GROWTH_REMARK}{_over_seeds(len(schemes[0].networks))}")
    out.print()
    names = [scheme.scheme for scheme in schemes]
    show_table(_growth_table("by the weights", names, [scheme.by_weights for scheme in schemes]))
    with_batch_norm = [layers for scheme in schemes if (layers := scheme.in_training) is not None]
    if with_batch_norm:
        remark(BY_WEIGHTS_REMARK)
        out.print()
        show_table(_growth_table("in training", names, with_batch_norm))
        remark(IN_TRAINING_REMARK)
    for scheme in schemes:
        show_first_sentence(scheme.scheme, scheme.findings)


def show_sweep(sweeps: Sequence[DepthSweep], heading: str) -> None:
    """The growth at the last ReLU, with a row for each depth and a column for each initialisation, and its rate."""
    show_title(heading)
    remark(f"{GROWTH_REMARK}{_over_seeds(len(sweeps[0].growth[0].values))}")
    out.print()
    table = new_table("ReLU layers", *(sweep.scheme for sweep in sweeps))
    for index, depth in enumerate(sweeps[0].depths):
        table.add_row(str(depth), *(_spread(sweep.growth[index]) for sweep in sweeps))
    show_table(table)
    out.print()
    for sweep in sweeps:
        style = BAD if sweep.trend == "exponential" else GOOD
        rate = "no width is left" if sweep.rate is None else f"×{sweep.rate:.3g} a layer"
        out.print(Text.assemble((f"{sweep.scheme}: {rate}", style), f"; {TRENDS[sweep.trend]}"))


def _growth_table(heading: str, names: Sequence[str], schemes: Sequence[Sequence[LayerGrowth]]) -> Table:
    table = new_table(heading, *names)
    for row in zip(*schemes, strict=True):
        table.add_row(row[0].name, *(_spread(layer.growth) for layer in row))
    return table


def _spread(growth: Spread) -> Text:
    """The mean and, for several seeds, the standard deviation as a share of it; red where bounds explode."""
    text = times(growth.mean)
    if len(growth.values) > 1:
        text += f" ±{100 * growth.std / growth.mean:.0f}%" if growth.mean > 0 else " ±0%"
    return Text(text, style="" if growth.mean < EXPLODING else BAD)


def _over_seeds(seeds: int) -> str:
    return f"; mean and standard deviation of {seeds} seeds" if seeds > 1 else ""
