"""The record of an epoch, and that of a layer's state."""

import pytest

from certtrain.runs.epoch import Epoch, LayerState

STATE = LayerState("conv1_relu", 8, 0.25, 0.25, 0.5, 0.125, -0.5, 2.0, None, None, 0.75)


def test_an_epoch_is_a_line_of_the_metrics():
    epoch = Epoch(2, 20, 0.05, {"learning_rate": 0.001, "certified_accuracy": 0.25, "seconds": 1.5}, (STATE,))
    line = epoch.to_dict()
    assert list(line) == ["epoch", "step", "eps", "learning_rate", "certified_accuracy", "seconds", "layers"]
    assert (line["epoch"], line["step"], line["eps"], line["seconds"]) == (2, 20, 0.05, 1.5)
    assert line["layers"] == [STATE.to_dict()]
    assert epoch.certified_accuracy == 0.25
    assert list(epoch.numbers) == ["step", "eps", "learning_rate", "certified_accuracy", "seconds"]


@pytest.mark.parametrize("measured", [{}, {"certified_accuracy": None}])
def test_an_epoch_has_a_certified_accuracy(measured: dict[str, float | None]):
    with pytest.raises(ValueError, match="certified_accuracy is missing"):
        Epoch(1, 10, 0.0, measured, ())


def test_a_layers_fields_have_their_names_in_the_files():
    assert list(STATE.to_dict()) == [
        "name", "units", "active", "inactive", "unstable", "dead", "centre", "width", "growth", "mean_ratio",
        "variance_ratio",
        "dead_channels",
    ]  # fmt: skip
    assert LayerState(**STATE.to_dict()) == STATE
