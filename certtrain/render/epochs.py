"""A run as tables: its epochs as they were trained, its networks at one ε, and the worst findings of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from certtrain.diagnostics.epochs import History, Trained, epoch_findings
from certtrain.diagnostics.findings import MOST_SENTENCES, layer_means
from certtrain.formats import column, percent, times
from certtrain.render.cells import finding_cell, new_table, ratio_cells, show_sentences, show_table, state_cells
from certtrain.render.console import WARNING, out, remark, say, show_title
from certtrain.render.training_sentences import measure_text
from certtrain.runs.epoch import Epoch, losses_and_accuracies, own_measures
from certtrain.spec.epsilon import format_eps

if TYPE_CHECKING:  # so that an error can be shown without loading torch
    from certtrain.diagnostics.model_states import ModelStates

MOST_EPOCHS = 40  # that a table shows
AT_ONE_EPS = "a network from before the end of the ramp was not yet trained for this ε, which may be its only trouble"
WORST_KINDS_ONLY = "only the three worst kinds of findings are shown, each where it is worst; --json lists all findings"


def show_history(history: History, networks: Sequence[ModelStates], titles: tuple[str, str]) -> None:
    """A run's epochs as they were trained, then its networks at one ε, then the worst findings of both."""
    show_title(titles[0])
    _show_epochs(history.epochs)
    if networks:
        _show_networks(networks, titles[1])
    sentences = _worst_sentences(history, networks)
    show_sentences(sentences, _nothing_found(bool(history.epochs), bool(networks)))
    found = [epoch_findings(epoch) for epoch in history.epochs] + [network.findings for network in networks]
    if len(sentences) < sum(map(len, found)):
        remark(WORST_KINDS_ONLY)


def show_trained(models: Sequence[ModelStates]) -> None:
    """For each model of a run, its objective, and the accuracies and losses of its last epoch, as they were trained."""
    for model in models:
        if model.trained is not None:
            name = f"{model.name}: " if len(models) > 1 else ""
            say(f"{name}objective {model.trained.title}; {_last_epoch(model.trained)}")
            show_progress(model.trained.progress, name)


def show_progress(progress: str, name: str = "") -> None:
    """That a run is not finished, if it is not."""
    if progress:
        out.print(Text(f"{name}{progress}", style=WARNING))


def _last_epoch(trained: Trained) -> str:
    if trained.last is None:
        return "no epoch is finished yet"
    texts = [measure_text(name, value) for name, value in losses_and_accuracies(trained.last.measured).items()]
    place = f"epoch {trained.last.epoch} of {trained.epochs}, in training at ε = {format_eps(trained.last.eps)}"
    return f"{place}: {', '.join(texts)}"


def _worst_sentences(history: History, networks: Sequence[ModelStates]) -> list[str]:
    from certtrain.diagnostics.model_states import worst_models  # torch is loaded by now

    times_trained = {network.name: _time_trained(network) for network in networks}
    epochs = [f"epoch {epoch}: {finding.sentence}" for epoch, finding in history.worst_epochs()]
    worst = worst_models(networks)
    models = [f"network {name} ({times_trained[name]}): {finding.sentence}" for name, finding in worst]
    return epochs[:MOST_SENTENCES] + models[:MOST_SENTENCES]


def _nothing_found(epochs: bool, networks: bool) -> str:
    places = [place for place, exists in (("epoch", epochs), ("network", networks)) if exists]
    return f"no layer stands out in any {' or '.join(places)}" if places else ""


def _show_epochs(epochs: Sequence[Epoch]) -> None:
    shown = _thinned(epochs)
    own = [name for name in own_measures(epochs[-1].measured) if name.endswith("_accuracy")] if epochs else []
    titles = [name.removesuffix("_accuracy").replace("_", " ") for name in own]
    table = new_table("epoch", "ε", "certified", *titles, "unstable", "inactive", "dead", "growth", "trouble")
    for epoch, eps in zip(shown, column([epoch.eps for epoch in shown]), strict=True):
        means = layer_means(epoch.layers)
        numbers = *state_cells(means)[1:], times(means.largest_growth)
        accuracies = [percent(epoch.measured.get(name) or 0.0, 1) for name in ("certified_accuracy", *own)]
        table.add_row(str(epoch.epoch), eps, *accuracies, *numbers, finding_cell(epoch_findings(epoch)))
    show_table(table)
    if not epochs:
        remark("no epoch is finished yet")
        return
    remark(
        "certified and other accuracies: on training examples, averages over the epoch's steps at the ε of each; "
        "certified accuracy at the epoch's end if the objective does not bound the whole box; unstable, inactive, "
        "dead: means over the layers; growth: the largest of the layers"
    )
    if len(shown) < len(epochs):
        remark(f"{len(shown)} of {len(epochs)} epochs; --csv, --json and --plot have all of them")


def _thinned(epochs: Sequence[Epoch]) -> Sequence[Epoch]:
    """As many epochs as a screen holds: evenly spaced ones, and the last."""
    every, last = -(-len(epochs) // MOST_EPOCHS), len(epochs) - 1
    return epochs if every < 2 else [epoch for i, epoch in enumerate(epochs) if (i + 1) % every == 0 or i == last]


def _show_networks(networks: Sequence[ModelStates], heading: str) -> None:
    out.print()
    show_title(heading)
    table = new_table("network", "unstable", "inactive", "dead", "growth", "r mean", "r var", "trouble")
    for network in networks:
        means = network.means
        numbers = *state_cells(means)[1:], times(means.largest_growth), *ratio_cells(means)
        table.add_row(_time_trained(network), *numbers, finding_cell(network.findings))
    show_table(table)
    if any(network.findings for network in networks):
        remark(AT_ONE_EPS)


def _time_trained(network: ModelStates) -> str:
    """Like "epoch 5", or "epoch 2.5" for a checkpoint within an epoch; the step if no epoch is finished."""
    return f"step {network.step}" if network.epoch is None else f"epoch {network.epoch:.4g}"
