"""Whole runs by each objective end with a report and a page; one that is resumed ends with the same bits."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from certtrain import RunContext, load_preset, resume, train
from certtrain.spec.objective import OBJECTIVES
from certtrain.spec.preset import Preset
from certtrain.training.context import FinalVerification
from helpers.small_runs import quick_ends, short_runs, small, stop_before

SHIPPED = [name for name in OBJECTIVES if name != "custom"]
OWN = {
    "pgd": ["adversarial_accuracy"],
    "mtl-ibp": ["certified_loss", "adversarial_loss", "adversarial_accuracy"],
    "cc-ibp": ["certified_loss", "adversarial_loss", "adversarial_accuracy"],
    "exp-ibp": ["certified_loss", "adversarial_loss", "adversarial_accuracy"],
    "sabr": ["small_box_accuracy"],
    "taps": ["latent_loss", "interval_loss", "latent_accuracy"],
    "staps": ["latent_loss", "interval_loss", "latent_accuracy", "small_box_accuracy"],
}

ENDS = {"ibp": "auto", "sabr": "auto"}  # how the trained network is verified


def preset(name: str) -> Preset:
    fields: dict[str, Any] = {"name": name}
    fields |= {
        attack: {"steps": 2} for attack in ("attack", "latent_attack") if attack in OBJECTIVES[name].model_fields
    }
    return load_preset(small().model_dump(mode="json") | {"objective": fields})


@pytest.mark.parametrize("name", SHIPPED)
def test_a_run_ends_with_its_measures_its_report_and_its_page(name: str, tmp_path: Path):
    with quick_ends():
        report = train(
            preset(name), tmp_path / "run", RunContext(verification=FinalVerification(ENDS.get(name, "ibp")))
        )
    assert report is not None
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert 0 <= line["certified_accuracy"] <= 1
        assert 0 <= line["natural_accuracy"] <= 1
        assert set(OWN.get(name, [])) <= line.keys()
    saved = json.loads((tmp_path / "run" / "report.json").read_text())["results"]
    assert sum(saved["certified_by"].values()) == saved["certified"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(own.rpartition("_")[0].replace("_", " ") in page for own in OWN.get(name, []))


@pytest.mark.parametrize("name", ["pgd", "mtl-ibp", "staps"])
def test_a_run_that_is_resumed_ends_with_the_same_bits(name: str, tmp_path: Path):
    with short_runs():
        assert train(preset(name), tmp_path / "whole") is not None
        assert train(preset(name), tmp_path / "stopped", RunContext(should_stop=stop_before(7))) is None
        assert resume(tmp_path / "stopped") is not None
    whole, stopped = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "stopped"))
    for key, tensor in whole.items():
        assert bool((tensor == stopped[key]).all()), key
