"""A run over its epochs as tables: the epochs as they were trained, its networks at one ε, and the worst of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from certtrain.diagnostics.epochs import History, epoch_findings
from certtrain.diagnostics.findings import MOST_SENTENCES, layer_means
from certtrain.formats import column, percent, times
from certtrain.render.cells import finding_cell, new_table, ratio_cells, show_sentences, state_cells
from certtrain.render.console import out, remark, show_title
from certtrain.runs.epoch import Epoch

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.diagnostics.model_states import ModelStates

MOST_EPOCHS = 40  # that a table shows
AT_ONE_EPS = (
    "a network from before the end of the ramp was not yet trained for this ε, and may be in trouble for that alone"
)
WORST_ALONE = "these are the worst kinds, three at most, each where it is worst; --json lists all findings"


def show_history(history: History, networks: Sequence[ModelStates], titles: tuple[str, str]) -> None:
    """A run's epochs as they were trained, then its networks at one ε, and where both were worst."""
    show_title(titles[0])
    _show_epochs(history.epochs)
    if networks:
        _show_networks(networks, titles[1])
    sentences = _worst_sentences(history, networks)
    show_sentences(sentences, _nothing_found(bool(history.epochs), bool(networks)))
    found = [epoch_findings(epoch) for epoch in history.epochs] + [network.findings for network in networks]
    if len(sentences) < sum(map(len, found)):
        remark(WORST_ALONE)


def _worst_sentences(history: History, networks: Sequence[ModelStates]) -> list[str]:
    from certtrain.diagnostics.model_states import worst_models  # torch is loaded by now

    after = {network.name: _after(network) for network in networks}
    epochs = [f"epoch {epoch}: {finding.sentence}" for epoch, finding in history.worst_epochs()]
    models = [f"network {name} ({after[name]}): {finding.sentence}" for name, finding in worst_models(networks)]
    return epochs[:MOST_SENTENCES] + models[:MOST_SENTENCES]


def _nothing_found(epochs: bool, networks: bool) -> str:
    places = [f"in no {place}" for place, there in (("epoch", epochs), ("network", networks)) if there]
    return f"{' and '.join(places)} did a layer stand out" if places else ""


def _show_epochs(epochs: Sequence[Epoch]) -> None:
    table = new_table("epoch", "ε", "certified", "unstable", "inactive", "dead", "growth", "trouble")
    shown = _thinned(epochs)
    for epoch, eps in zip(shown, column([epoch.eps for epoch in shown]), strict=True):
        means = layer_means(epoch.layers)
        numbers = *state_cells(means)[1:], times(means.largest_growth)
        certified = percent(epoch.certified_accuracy, 1)
        table.add_row(str(epoch.epoch), eps, certified, *numbers, finding_cell(epoch_findings(epoch)))
    out.print(table)
    if not epochs:
        remark("no epoch is over yet")
        return
    remark(
        "certified: of the training examples, at the epoch's ε; states: means over the layers, the rest is active; "
        "growth: the largest"
    )
    if len(shown) < len(epochs):
        remark(f"{len(shown)} of {len(epochs)} epochs; all of them are in --csv, --json and --plot")


def _thinned(epochs: Sequence[Epoch]) -> Sequence[Epoch]:
    """So many that a screen holds them: every few of them, and the last."""
    every, last = -(-len(epochs) // MOST_EPOCHS), len(epochs) - 1
    return epochs if every < 2 else [epoch for i, epoch in enumerate(epochs) if (i + 1) % every == 0 or i == last]


def _show_networks(networks: Sequence[ModelStates], heading: str) -> None:
    out.print()
    show_title(heading)
    table = new_table("network", "unstable", "inactive", "dead", "growth", "r mean", "r var", "trouble")
    for network in networks:
        means = network.means
        numbers = *state_cells(means)[1:], times(means.largest_growth), *ratio_cells(means)
        table.add_row(_after(network), *numbers, finding_cell(network.findings))
    out.print(table)
    if any(network.findings for network in networks):
        remark(AT_ONE_EPS)


def _after(network: ModelStates) -> str:
    """Like epoch 5, and epoch 2.5 of a checkpoint within one; a run without a finished epoch has steps alone."""
    return f"step {network.step}" if network.epoch is None else f"epoch {network.epoch:.4g}"
