"""Pictures: what is in them, and that odd numbers do not spoil them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from certtrain.diagnostics.epochs import History
from certtrain.diagnostics.growth import DepthSweep, SchemeGrowth, spread
from certtrain.diagnostics.model_states import InitialNetwork, ModelStates
from certtrain.errors import RunError
from certtrain.reports import plot
from certtrain.runs.epoch import Epoch, LayerState

FINE = LayerState("conv1_relu", 10, 0.4, 0.5, 0.1, 0.1, 0.0, 0.2, 2.0, 0.8, 0.9)
LAST = replace(FINE, name="linear1_relu", growth=30.0)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, list[Any]]:
    """Where to draw to, and the figures as they are saved."""
    figures: list[Any] = []
    save = plot._save

    def note(figure: Any, path: Path, title: str) -> None:
        figures.append(figure)
        save(figure, path, title)

    monkeypatch.setattr(plot, "_save", note)
    return tmp_path / "p.png", figures


def scheme(name: str, *growth: float, trained: float | None = None) -> SchemeGrowth:
    """Of one layer, with a growth for each seed."""
    networks = []
    for seed, value in enumerate(growth):
        in_training = None if trained is None else [replace(FINE, growth=trained)]
        networks.append(InitialNetwork(name, seed, [], [replace(FINE, growth=value)], in_training))  # type: ignore[arg-type]
    return SchemeGrowth(name, tuple(networks))  # type: ignore[arg-type]


def lines(axes: Any) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines}


def test_growth_has_a_line_and_a_band_for_each_scheme(drawn: tuple[Path, list[Any]]):
    path, figures = drawn
    plot.plot_growth(path, [scheme("ibp", 1.0, 3.0), scheme("kaiming", 40.0, 60.0)], "title")
    (axes,) = figures[0].axes
    assert lines(axes) == {"ibp": [2.0], "kaiming": [50.0]}
    assert axes.get_yscale() == "log"
    bands = [band.get_paths()[0].get_extents() for band in axes.collections]
    assert [(band.y0, band.y1) for band in bands] == [(1, 3), (40, 60)]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_with_batch_norm_there_are_two_panels_of_one_scale(drawn: tuple[Path, list[Any]]):
    path, figures = drawn
    plot.plot_growth(path, [scheme("ibp", 1.0, trained=70.0), scheme("kaiming", 9.0, trained=80.0)], "title")
    left, right = figures[0].axes
    assert "by the weights" in left.get_title()
    assert "in training" in right.get_title()
    assert lines(right) == {"ibp": [70.0], "kaiming": [80.0]}
    assert left.get_ylim() == right.get_ylim()


def test_a_sweep_names_the_rates(drawn: tuple[Path, list[Any]]):
    path, figures = drawn
    growth = (spread([2.0, 4.0]), spread([18.0]))
    plot.plot_sweep(path, [DepthSweep("kaiming", (2, 4), growth, 2.4), DepthSweep("ibp", (2, 4), growth, None)], "t")
    (axes,) = figures[0].axes
    assert lines(axes) == {"kaiming: ×2.4 a layer": [3.0, 18.0], "ibp: no width left": [3.0, 18.0]}
    assert list(axes.get_xticks()) == [2, 4]


def test_no_width_is_a_gap_in_the_line(drawn: tuple[Path, list[Any]]):
    path, figures = drawn
    plot.plot_sweep(path, [DepthSweep("ibp", (2, 4), (spread([2.0]), spread([0.0])), None)], "t")
    first, second = lines(figures[0].axes[0])["ibp: no width left"]
    assert first == 2
    assert math.isnan(second)


def test_each_model_has_its_row(drawn: tuple[Path, list[Any]]):
    path, figures = drawn
    models = [ModelStates("a", path, [FINE, LAST]), ModelStates("b", path, [replace(FINE, growth=None)])]
    plot.plot_states(path, models, "title")
    states, growth, other_states, other_growth = figures[0].axes
    assert [states.get_title(loc="left"), other_states.get_title(loc="left")] == ["a", "b"]
    assert [label.get_text() for label in states.get_yticklabels()] == ["conv1_relu", "linear1_relu"]
    assert len(other_states.patches) == 3
    assert growth.get_xlim() == other_growth.get_xlim() == (1, 100)


def history(*layers: LayerState) -> History:
    return History(
        tuple(
            Epoch(n, 5 * n, 0.1 * (n - 1), {"certified_accuracy": 0.5}, (layer, LAST))
            for n, layer in enumerate(layers, start=1)
        ),
        cut_short=False,
    )


def test_a_history_has_states_and_growth_over_the_epochs(drawn: tuple[Path, list[Any]]):
    path, figures = drawn
    plot.plot_history(path, history(FINE, replace(FINE, growth=7.0), FINE), [], ("as it was", ""))
    states, growth = figures[0].axes
    assert states.get_title() == "as it was"
    assert lines(states)["certified"] == [0.5, 0.5, 0.5]
    assert lines(states)["ε / 0.2"] == pytest.approx([0, 0.5, 1])
    assert lines(states)["dead (from the top)"] == pytest.approx([0.9] * 3)
    assert lines(growth) == {"conv1_relu": [2, 7, 2], "linear1_relu": [30, 30, 30]}


def test_networks_stand_beside_it(drawn: tuple[Path, list[Any]]):
    path, figures = drawn
    networks = [replace(ModelStates("m", path, [FINE, LAST]), epoch=epoch) for epoch in (0.0, 2.0)]
    plot.plot_history(path, history(FINE, FINE), networks, ("as it was", "its networks"))
    _, states, _, growth = figures[0].axes
    assert states.get_title() == "its networks"
    assert len(states.patches) == 6
    assert [list(line.get_xdata()) for line in growth.lines] == [[0, 2], [0, 2]]


def test_one_epoch_is_seen_too(drawn: tuple[Path, list[Any]]):
    path, figures = drawn
    plot.plot_history(path, history(FINE), [], ("as it was", ""))
    assert len(figures[0].axes[0].patches) == 3


def test_of_no_epoch_there_is_no_picture(tmp_path: Path):
    with pytest.raises(RunError, match="nothing to draw"):
        plot.plot_history(tmp_path / "p.png", history(), [], ("", ""))
    assert list(tmp_path.iterdir()) == []


def test_many_layers_are_numbered(drawn: tuple[Path, list[Any]]):
    path, figures = drawn
    layers = [replace(FINE, name=f"layer{n}") for n in range(30)]
    plot.plot_growth(path, [SchemeGrowth("ibp", (InitialNetwork("ibp", 0, [], layers, None),))], "t")
    labels = [label.get_text() for label in figures[0].axes[0].get_xticklabels()]
    assert not any("layer" in label for label in labels)
