"""The model card: the figures of report.json, metadata that a hub reads, and code that runs."""

import re
from pathlib import Path
from typing import Any

import pytest

from certtrain.errors import RunError
from certtrain.reports.card import HUB_NAMES, write_card
from certtrain.spec.preset import DatasetName
from helpers.run_folders import RESULTS, epoch, write_run, write_weights

yaml = pytest.importorskip("yaml", reason="reading the card's metadata needs PyYAML, which the extra 'tune' brings")


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The metadata and the text of the card of a run."""
    write_card(folder, folder / "card.md")
    _, metadata, text = (folder / "card.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_the_metadata_have_the_results_of_the_report(tmp_path: Path) -> None:
    results = RESULTS | {"dataset": "cifar10", "split": "validation"}
    metadata, _ = card_of(write_run(tmp_path / "run", [epoch(1)], results=results))
    assert (metadata["library_name"], metadata["datasets"]) == ("certtrain", ["uoft-cs/cifar10"])
    assert "license" not in metadata, "that is the user's choice"
    (model,) = metadata["model-index"]
    (found,) = model["results"]
    assert (model["name"], found["dataset"]["type"], found["dataset"]["split"]) == (
        "digits",
        "uoft-cs/cifar10",
        "validation",
    )
    values = {metric["name"]: metric["value"] for metric in found["metrics"]}
    assert values == {
        "natural accuracy": 0.51,
        "accuracy under attack, ε = 8/255": 0.4,
        "certified accuracy, ε = 8/255": 0.35,
    }
    assert {metric["type"] for metric in found["metrics"]} == {"accuracy"}


def test_the_text_says_what_is_proved_and_how_to_verify_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [epoch(1)], seed=7)
    write_weights(folder / "model.safetensors", input_shape=(1, 8, 8), class_names=("cat", "dog"))
    metadata, text = card_of(folder)
    assert "datasets" not in metadata, "digits are on no hub"
    assert text.startswith("\n# digits, seed 7\n")
    assert "| certified accuracy, ε = 8/255 | 35.00% | lower limit of robust accuracy; proved by ibp for" in text
    assert "| accuracy under attack, ε = 8/255 | 40.00% | upper limit of robust accuracy; pgd, 20 steps × 3 |" in text
    assert all(f"\n- {assumption}\n" in text for assumption in RESULTS["assumptions"]), "with no escapes of HTML"
    assert "certtrain verify model.safetensors --eps 8/255 --method ibp\n" in text
    assert "torch.rand(1, 1, 8, 8)" in text
    assert "2 classes: cat, dog." in text
    assert "| seed | 7 |" in text


def test_text_of_others_does_not_break_the_table_or_the_metadata(tmp_path: Path) -> None:
    results = RESULTS | {"dataset": 'a "b"\n- c: d'}
    metadata, text = card_of(write_run(tmp_path / "run", [], results=results, train__optimizer="sgd"))
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == 'a "b"\n- c: d'
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (3, 4) for row in rows)


def test_other_arithmetic_and_splits_are_in_the_command(tmp_path: Path) -> None:
    results = RESULTS | {"arithmetic": "tf32", "split": "validation", "eps": 0.123456789, "method": "auto"}
    _, text = card_of(write_run(tmp_path / "run", [], results=results))
    assert "--eps 0.123456789 --method auto --arithmetic tf32 --split validation\n" in text
    assert "label, 0.123456789)" in text


def test_the_card_of_an_unfinished_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no report\.json"):
        write_card(write_run(tmp_path / "run", [epoch(1)], finished=False), tmp_path / "card.md")


def test_names_on_the_hub_are_of_known_data_sets() -> None:
    assert set(HUB_NAMES) <= set(DatasetName.__args__)  # type: ignore[attr-defined]
