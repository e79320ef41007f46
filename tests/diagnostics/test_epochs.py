"""A run's epochs: a metrics.jsonl of known lines, one that is cut short, and damaged ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from certtrain.diagnostics.epochs import epoch_findings, epoch_numbers, epoch_summary, read_history, read_trained
from certtrain.diagnostics.findings import layer_means
from certtrain.diagnostics.model_states import ModelStates
from certtrain.errors import RunError
from certtrain.runs.epoch import LayerState
from helpers.run_folders import epoch, write_run

FINE = LayerState("conv1_relu", 10, 0.4, 0.5, 0.1, 0.1, 0.0, 0.2, 2.0, 0.8, 0.9)


def line(epoch: int, *layers: LayerState, **changes: Any) -> dict[str, Any]:
    """As a training writes it, with fields that are of no interest here."""
    record = {"epoch": epoch, "step": 7 * epoch, "eps": 0.1 * (epoch - 1), "learning_rate": 1e-3, "loss": 0.5}
    record |= {"natural_accuracy": 0.9, "certified_accuracy": 0.1 * epoch, "seconds": 1.5}
    return record | changes | {"layers": [layer.to_dict() for layer in layers or (FINE,)]}


def write(run: Path, *records: dict[str, Any], end: str = "\n") -> None:
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(record) for record in records) + end)


def test_a_known_history(tmp_path: Path):
    second = replace(FINE, name="linear1_relu", growth=6.0, unstable=0.3)
    write(tmp_path, line(1), line(2, FINE, second, validation_certified_accuracy=0.25))
    history = read_history(tmp_path)
    assert (history.cut_short, history.steps_per_epoch) == (False, 7)
    one, two = history.epochs
    assert (one.epoch, one.step, one.eps, one.certified_accuracy) == (1, 7, 0, 0.1)
    assert one.layers == (FINE,)
    assert epoch_numbers(one)["validation_certified_accuracy"] is None
    assert epoch_numbers(two)["validation_certified_accuracy"] == 0.25
    plain = epoch_summary(two)
    assert list(plain) == [*epoch_numbers(two), "means", "findings", "layers"]
    assert plain["means"] == layer_means(two.layers).to_dict()
    means = plain["means"]
    assert (means["growth"], means["largest_growth"], means["unstable"]) == pytest.approx((4, 6, 0.2))
    assert plain["layers"] == [FINE.to_dict(), second.to_dict()]
    assert (plain["epoch"], plain["natural_accuracy"], plain["findings"]) == (2, 0.9, [])
    json.dumps(plain, allow_nan=False)


def test_a_run_without_a_finished_epoch_has_none(tmp_path: Path):
    assert read_history(tmp_path).epochs == ()
    write(tmp_path, end="")
    history = read_history(tmp_path)
    assert (history.epochs, history.cut_short, history.steps_per_epoch) == ((), False, None)


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path):
    write(tmp_path, line(1), line(2), end="\n" + json.dumps(line(3))[:50])
    history = read_history(tmp_path)
    assert ([record.epoch for record in history.epochs], history.cut_short) == ([1, 2], True)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("nonsense", "line 2 of .* is not JSON"),
        (json.dumps(line(2)).replace("0.9,", "NaN,", 1), "epoch 2 of .* holds a number that is not finite"),
        (json.dumps(line(2, replace(FINE, growth=float("inf")))), "epoch 2 of .* holds a number that is not finite"),
        (json.dumps(line(2) | {"certified_accuracy": "much"}), "certified_accuracy"),
        (json.dumps({key: value for key, value in line(2).items() if key != "eps"}), "(?s)line 2 of .*eps: "),
        (json.dumps(line(2) | {"layers": [{"name": "conv1_relu"}]}), "units"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str, message: str):
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(line(1))}\n{damaged}\n{json.dumps(line(3))}\n")
    with pytest.raises(RunError, match=message):
        read_history(tmp_path)


LONGER, LATER = (
    "try a longer ramp of ε (eps.length) or a smaller ε",
    "look again at the end of the ramp, since ε still rises",
)


@pytest.mark.parametrize(("reached", "advice"), [(0.1, LONGER), (0.01, LATER)])
def test_a_longer_ramp_is_not_advised_to_a_run_that_ended_on_it(tmp_path: Path, reached: float, advice: str):
    trained = read_trained(write_run(tmp_path / "run", [epoch(1, eps=reached)], eps__max=0.1))
    assert trained.on_ramp == (reached < 0.1)
    (finding,) = ModelStates("run", tmp_path, [replace(FINE, unstable=0.9)], trained=trained).findings
    assert finding.sentence.endswith(f"have different signs; {advice}")


def test_a_run_without_a_finished_epoch_is_before_its_ramp(tmp_path: Path):
    trained = read_trained(write_run(tmp_path / "run", [], finished=False, eps__max=0.1))
    assert trained.on_ramp
    assert not replace(trained, finished=True).on_ramp


def test_before_the_ramp_nothing_is_wrong(tmp_path: Path):
    bad = replace(FINE, dead=0.9)
    write(tmp_path, line(1, bad), line(2, bad))
    assert [[f.kind for f in epoch_findings(record)] for record in read_history(tmp_path).epochs] == [[], ["dead"]]


def test_each_kind_of_finding_stands_where_it_was_worst(tmp_path: Path):
    layers = {
        1: FINE,
        2: replace(FINE, unstable=0.85),
        3: replace(FINE, unstable=0.95),
        4: replace(FINE, growth=5e3, unstable=0.9),
        5: replace(FINE, unstable=0.82),
    }
    write(tmp_path, *(line(epoch, layer) for epoch, layer in layers.items()))
    history = read_history(tmp_path)
    assert [(epoch, finding.kind) for epoch, finding in history.worst_epochs()] == [(4, "exploding"), (3, "unstable")]
