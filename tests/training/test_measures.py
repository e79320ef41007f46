"""Sums of measures: named by who measures, on any device, and taken over from a checkpoint of another version."""

import pytest
import torch
from torch import Tensor

from certtrain.training.measures import MeasureSums, averages


def sums(of: MeasureSums) -> dict[str, float]:
    return dict(zip(of.names, of.values.tolist(), strict=True))


def measured(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_names_are_those_of_the_steps():
    found = MeasureSums(torch.device("cpu"))
    assert sums(found) == {}
    found.add(measured(loss=2.0, adversarial_accuracy=0.5), 4)
    found.add(measured(loss=1.0, adversarial_accuracy=1.0), 2)
    assert sums(found) == {"loss": 10.0, "adversarial_accuracy": 4.0, "examples": 6.0}
    assert averages(sums(found)) == pytest.approx({"loss": 10 / 6, "adversarial_accuracy": 4 / 6})


def test_sums_start_anew_under_the_same_names():
    found = MeasureSums(torch.device("cpu"))
    found.add(measured(loss=2.0), 4)
    found.set({})
    assert sums(found) == {"loss": 0.0, "examples": 0.0}


def test_saved_sums_are_matched_by_name():
    """A checkpoint may have them in another order, lack one, or have one that is not measured any more."""
    found = MeasureSums(torch.device("cpu"))
    found.set({"examples": 3.0, "old": 7.0, "loss": 5.0})
    found.add(measured(new=1.0, loss=2.0), 2)
    assert sums(found) == {"new": 2.0, "loss": 9.0, "examples": 5.0}


def test_sums_are_in_float64():
    found = MeasureSums(torch.device("cpu"))
    for _ in range(10):
        found.add(measured(loss=0.1), 1)
    found.add(measured(loss=2.0**30), 1)
    assert found.values.dtype == torch.float64
    assert sums(found)["loss"] == pytest.approx(2.0**30 + 10 * float(torch.tensor(0.1)), abs=1e-6)


def test_names_may_change_without_a_value_being_read():
    found = MeasureSums(torch.device("meta"))
    found.set({"loss": 1.0, "examples": 1.0})
    found.add({"other": torch.zeros((), device="meta")}, 1)
    assert found.names == ("other", "examples")
    assert found.values.shape == (2,)


def test_without_steps_there_are_no_averages():
    assert averages({}) == {}
