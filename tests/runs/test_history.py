"""A run folder read back: whole, unfinished, being written, damaged."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from certtrain.errors import CerttrainError, PresetError, RunError
from certtrain.runs.epoch import Epoch, LayerState
from certtrain.runs.history import Weights, read_epochs, read_run
from helpers.run_folders import RESULTS, epoch, layer, write_run, write_weights


def test_a_finished_run_is_read_whole(tmp_path: Path):
    run = read_run(write_run(tmp_path / "run", [epoch(n) for n in (1, 2, 3, 4)], data__validation=50))
    assert [line.epoch for line in run.epochs] == [1, 2, 3, 4]
    assert run.values("loss") == [2.5, 1.25, 2.5 / 3, 0.625]
    assert run.measured[:3] == ["step", "eps", "learning_rate"]
    assert [known.name for known in run.layers] == ["conv1_relu", "linear1_relu"]
    assert run.preset.data.validation == 50
    assert run.warm_up == (2, 3)
    assert run.report is not None
    assert (run.report.results.certified, run.report.training.seconds) == (350, 3725.0)


def test_a_number_that_some_epochs_lack_is_none_there(tmp_path: Path):
    lines = [epoch(1), epoch(2, extra=7.0, layers=[layer("conv1_relu", growth=None)])]
    run = read_run(write_run(tmp_path / "run", lines, finished=False))
    assert run.values("extra") == [None, 7.0]
    assert run.layer_values("linear1_relu", lambda known: known.growth) == [40.0, None]
    assert run.layer_values("conv1_relu", lambda known: known.growth) == [40.0, None]


def test_a_number_that_is_none_is_kept(tmp_path: Path):
    (line,) = read_epochs(write_run(tmp_path / "run", [epoch(1, loss=math.nan)]))
    assert math.isnan(line.measured["loss"] or 0.0)


def test_what_is_read_is_the_record_that_was_written(tmp_path: Path):
    state = LayerState("conv1_relu", 8, 0.25, 0.25, 0.5, 0.125, -0.5, 2.0, 40.0, None, 0.75)
    written = Epoch(3, 30, 0.05, {"loss": 0.5, "certified_accuracy": 0.25, "validation_loss": None}, (state,))
    folder = write_run(tmp_path / "run", [written.to_dict()], finished=False)
    assert read_epochs(folder) == (written,)
    assert list(json.loads((folder / "metrics.jsonl").read_text())) == [
        "epoch", "step", "eps", "loss", "certified_accuracy", "validation_loss", "layers",
    ]  # fmt: skip


def test_fields_of_a_newer_version_do_no_harm(tmp_path: Path):
    (read,) = read_epochs(write_run(tmp_path / "run", [epoch(1, layers=[layer("a", more=1.0)])], finished=False))
    assert read.layers[0].name == "a"


def test_a_run_without_epochs_is_a_run(tmp_path: Path):
    folder = write_run(tmp_path / "run", [], finished=False)
    assert read_run(folder).epochs == ()
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert (run.epochs, run.layers, run.report, run.weights) == ((), (), None, None)


def test_the_line_that_is_being_written_is_left_out(tmp_path: Path):
    folder = write_run(tmp_path / "run", [epoch(1)], finished=False)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(epoch(2))[:40])
    assert [line.epoch for line in read_epochs(folder)] == [1]


def test_the_weights_of_the_model_are_counted(tmp_path: Path):
    folder = write_run(tmp_path / "run", [epoch(1)])
    write_weights(folder / "model.safetensors", input_shape=(1, 8, 8), class_names=("a", "b"))
    assert read_run(folder).weights == Weights(17, (1, 8, 8), ("a", "b"))


def test_without_a_model_the_newest_whole_checkpoint_is_counted(tmp_path: Path):
    folder = write_run(tmp_path / "run", [epoch(1)], finished=False)
    write_weights(folder / "checkpoints" / "step-000000010.safetensors", "network/")
    (folder / "checkpoints" / "step-000000020.safetensors").write_bytes(b"damaged")
    assert read_run(folder).weights == Weights(17)


def line(**changes: Any) -> str:
    return json.dumps(epoch(1) | changes) + "\n"


DAMAGES = {
    "no run": ("preset.json", None, "holds no run"),
    "preset": ("preset.json", "{", "cannot be read"),
    "metrics": ("metrics.jsonl", "{\n", "line 1 of .*metrics.jsonl is not JSON"),
    "no object": ("metrics.jsonl", "3\n", "line 1 of .*metrics.jsonl is not a JSON object"),
    "no epoch": ("metrics.jsonl", '{"loss": 1.0}\n', "(?s)line 1 of .*  epoch: "),
    "no number": ("metrics.jsonl", '{"epoch": 1, "loss": "x"}\n', "(?s)step: .*measured.loss"),
    "no epsilon": ("metrics.jsonl", line(eps=None), "(?s)line 1 of .*metrics.jsonl was not written by .*eps: "),
    "no accuracy": ("metrics.jsonl", line(certified_accuracy=None), "certified_accuracy is missing"),
    "epoch 0": ("metrics.jsonl", line(epoch=0), "epoch: must be at least 1, not 0"),
    "no layer": ("metrics.jsonl", line(layers=[{"name": "conv1_relu"}]), "layers.0.units"),
    "report": ("report.json", "{}", "report.json was not written by certtrain"),
    "not text": ("report.json", b"\xff", "report.json cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_file_is_named(case: str, tmp_path: Path):
    name, content, message = DAMAGES[case]
    folder = write_run(tmp_path / "run", [epoch(1)])
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CerttrainError, match=message) as caught:
        read_run(folder)
    assert isinstance(caught.value, PresetError if case == "preset" else RunError)


def test_the_attacked_accuracy_is_read_by_its_earlier_name_too(tmp_path: Path):
    earlier = {("pgd_accuracy" if name == "attacked_accuracy" else name): value for name, value in RESULTS.items()}
    for name, results in (("earlier", earlier), ("today", RESULTS)):
        found = read_run(write_run(tmp_path / name, [epoch(1)], results=results)).report
        assert found is not None
        assert found.results.attacked_accuracy == 0.4
