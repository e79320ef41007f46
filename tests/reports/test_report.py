"""The page of a run: known numbers in known cells, and runs of every kind."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from certtrain.errors import RunError, StorageError
from certtrain.reports.report import write_report
from helpers.html_pages import Page
from helpers.run_folders import RESULTS, epoch, layer, write_run, write_weights

FOUR = [epoch(number) for number in (1, 2, 3, 4)]
HELD_OUT = {"validation_natural_accuracy": 0.45, "validation_certified_accuracy": 0.2}


def written(folder: Path) -> str:
    write_report(folder, folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


def page_of(folder: Path) -> Page:
    return Page(written(folder))


# --- what it says ----------------------------------------------------------------------------------------


def test_the_result_stands_first_in_known_cells(tmp_path: Path):
    page = page_of(write_run(tmp_path / "run", FOUR))
    assert page.headings[:2] == ["digits, seed 0", "Result: digits, test set, 1,000 examples, ε = 8/255"]
    assert [row[:3] for row in page.table("verdict")] == [
        ["verdict", "examples", "share"],
        ["certified", "350", "35.00%"],
        ["open", "50", "5.00%"],
        ["falsified", "110", "11.00%"],
        ["misclassified", "490", "49.00%"],
    ]
    for text in (
        "51.00%natural accuracy",
        "40.00%accuracy under attackattacked: pgd, 20 steps × 3",
        "65.00%verified error",
    ):
        assert text in page.text
    assert "Robust accuracy lies between 35.00% and 40.00%." in page.text
    assert all(assumption in page.text for assumption in RESULTS["assumptions"])


def test_the_bar_shows_the_counts(tmp_path: Path):
    bar = re.search(r'<div class="bar".*?</div>', written(write_run(tmp_path / "run", FOUR)))
    assert bar is not None
    widths = [("certified", "35"), ("open", "5"), ("falsified", "11"), ("misclassified", "49")]
    assert re.findall(r'class="(\w+)" style="width:(\d+)\.000%"', bar[0]) == widths


def test_what_was_run_is_said(tmp_path: Path):
    folder = write_run(tmp_path / "run", FOUR, data__validation=50, seed=7)
    write_weights(folder / "model.safetensors", input_shape=(1, 8, 8), class_names=("cat", "dog"))
    facts = dict(page_of(folder).table("preset"))
    assert facts == {
        "preset": "digits",
        "data set": "digits: images of 1×8×8, 2 classes (cat, dog); 50 training examples held out",
        "network": "cnn: channels 32 64, kernels 3 3, strides 1 2, linear 128, batch norm yes",
        "parameters": "17",
        "initialisation": "ibp",
        "objective": "ibp",
        "ε": "8/255; rises from 0 in epochs 2 to 3",
        "training": "4 epochs, batches of 64",
        "optimiser": "adam",
        "learning rate": "0.002; times 0.2 after epochs 35 45",
        "precision": "fp32",
        "seed": "7",
        "device": "cpu, 2 processes",
        "trained in": "1 h 2 min, 40 steps",
        "verified in": "2.2 s",
        "finished": "5 March 2026, 09:07 UTC",
        "versions": "certtrain 0.1.0, torch 2.6.0",
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"eps__length": 0, "eps__start": 3}, "8/255; from epoch 3 on"),
        ({"eps__length": 1}, "8/255; rises from 0 in epoch 2"),
        ({"eps__train_factor": 1.5}, "8/255; rises from 0 to 1.5 times as much in epochs 2 to 3"),
    ],
)
def test_the_ramp_is_said(fields: dict[str, Any], said: str, tmp_path: Path):
    assert dict(page_of(write_run(tmp_path / "run", FOUR, **fields)).table("preset"))["ε"] == said


@pytest.mark.parametrize(
    ("fields", "row", "said"),
    [
        (
            {"l1": 3e-6, "average_from": 3, "batch_norm_refresh": True},
            "training",
            "4 epochs, batches of 64, l1 3e-06, average from 3, batch norm refresh yes",
        ),
        ({"optimizer": "sgd", "momentum": 0.5}, "training", "4 epochs, batches of 64, momentum 0.5"),
        ({"optimizer": "sgd", "momentum": 0.5}, "optimiser", "sgd"),
        ({"milestones": []}, "learning rate", "0.002"),
        ({"schedule": "cosine"}, "learning rate", "0.002; falls to 0 (cosine)"),
        (
            {"schedule": "linear", "warmup": 1.5},
            "learning rate",
            "0.002; rises for 1.5 epochs, then falls to 0 (linear)",
        ),
    ],
)
def test_the_optimisation_is_said(fields: dict[str, Any], row: str, said: str, tmp_path: Path):
    folder = write_run(tmp_path / "run", FOUR, **{f"train__{name}": value for name, value in fields.items()})
    assert dict(page_of(folder).table("preset"))[row] == said


def test_findings_have_the_sentences_of_stats(tmp_path: Path):
    bad = [layer(f"conv{number}_relu", dead=0.5 + number / 20) for number in range(5)]
    text = page_of(write_run(tmp_path / "run", [*FOUR[:3], epoch(4, layers=bad)])).text
    assert "70.0% of the units of 'conv4_relu' are dead: they are inactive for every example" in text
    assert "'conv1_relu' are dead" not in text
    assert "and 2 more layers; certtrain stats RUN --json lists them" in text
    assert "stands out" not in text


def test_where_no_layer_is_in_trouble_the_page_says_so_but_not_before_the_ramp(tmp_path: Path):
    assert "No layer stands out." in page_of(write_run(tmp_path / "run", FOUR)).text
    early = page_of(write_run(tmp_path / "early", [epoch(1, eps=0.0, layers=[layer("conv1_relu", dead=0.9)])])).text
    assert "stands out" not in early
    assert "are dead: they" not in early


def test_the_layers_stand_in_a_table(tmp_path: Path):
    lines = [*FOUR[:3], epoch(4, layers=[layer("conv1_relu"), layer("linear1_relu", growth=None, centre=math.nan)])]
    rows = page_of(write_run(tmp_path / "run", lines)).table("layer")
    assert rows[0][3:] == [
        "active",
        "unstable",
        "inactive",
        "dead",
        "centre",
        "width",
        "growth",
        "r mean",
        "r variance",
    ]
    shares = ["25.00%", "50.00%", "25.00%", "12.50%"]
    assert rows[1] == ["conv1_relu", "1,024", "", *shares, "-0.5", "2", "40×", "0.75", "–"]
    assert rows[2] == ["linear1_relu", "1,024", "", *shares, "–", "2", "–", "0.75", "–"]


def test_each_epoch_has_its_numbers(tmp_path: Path):
    rows = page_of(write_run(tmp_path / "run", FOUR)).table("epoch")
    assert [row[0] for row in rows] == ["epoch", "1", "2", "3", "4"]
    last = dict(zip(rows[0], rows[-1], strict=True))
    assert (last["ε"], last["learning rate"], last["loss"], last["certified"]) == (
        "0.0400",
        "0.0005",
        "0.625",
        "25.00%",
    )
    assert "step" not in last


def test_the_preset_can_be_taken_from_the_page(tmp_path: Path):
    folder = write_run(tmp_path / "run", FOUR, description="a <b> & c")
    text = page_of(folder).text
    found, _ = json.JSONDecoder().raw_decode(text[text.index("{\n") :])
    assert found == json.loads((folder / "preset.json").read_text())


# --- runs of every kind ----------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "whole": {"epochs": FOUR},
    "held out": {"epochs": [line | HELD_OUT for line in FOUR], "data__validation": 50},
    "one epoch": {"epochs": FOUR[:1], "train__epochs": 1},
    "many epochs": {"epochs": [epoch(number) for number in range(1, 41)], "train__epochs": 40},
    "no epoch": {"epochs": [], "finished": False},
    "unfinished": {"epochs": [line | HELD_OUT for line in FOUR[:2]], "finished": False},
    "no ReLU": {"epochs": [epoch(number, layers=[]) for number in (1, 2)]},
    "no ramp": {"epochs": FOUR, "eps__length": 0},
    "not numbers": {
        "epochs": [
            epoch(1, loss=math.nan, robust_loss=math.inf, gradient_norm=None, certified_accuracy=math.nan),
            epoch(
                2,
                loss=None,
                natural_accuracy=None,
                layers=[layer("conv1_relu", growth=None, dead=math.nan, active=math.nan)],
            ),
        ]
    },
    "nothing but not numbers": {"epochs": [epoch(1, loss=None, natural_loss=None, robust_loss=math.nan)]},
    "all zero": {"epochs": [epoch(1, loss=0.0, eps=0.0, layers=[layer("conv1_relu", growth=0.0)])]},
    "without a clean batch": {
        "epochs": [{n: v for n, v in line.items() if n != "natural_loss"} for line in FOUR],
        "train__batch_norm_statistics": "centre",
    },
    "another loss": {"epochs": [line | {"attack_loss": 3.0} for line in FOUR]},
    "exploding": {"epochs": [epoch(1, loss=1e30, layers=[layer("a_relu", growth=1e25, width=1e25)]), epoch(2)]},
    "sixteen layers": {"epochs": [epoch(n, layers=[layer(f"block{i}_relu") for i in range(16)]) for n in (1, 2)]},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_run_has_a_page(name: str, tmp_path: Path):
    text = written(write_run(tmp_path / "run", **RUNS[name]))
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert all(address.removeprefix("#") in page.ids for address in page.loads)  # marks within a picture
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert not re.search(r"https?:|@import|url\([^#]|<script|<img|<link", text)
    pictures = {"no epoch": 0, "no ReLU": 6, "sixteen layers": 6 + 1 + 16, "exploding": 6 + 1 + 2}
    layers = 1 if name in ("not numbers", "all zero") else 2
    assert page.tags.count("svg") == pictures.get(name, 6 + 1 + layers)


def test_an_unfinished_run_says_so_and_gives_its_last_epoch(tmp_path: Path):
    page = page_of(write_run(tmp_path / "run", **RUNS["unfinished"]))
    assert "This run is not finished: 2 of 4 epochs are done, and the network is not verified yet." in page.text
    assert page.headings[1] == "After epoch 2"
    assert "20.00%certified, held outat ε = 8/255" in page.text
    assert dict(page.table("preset"))["trained so far"] == "3.0 s"
    assert not [table for table in page.tables if table[0][0] == "verdict"]


def test_a_run_without_relu_says_so(tmp_path: Path):
    assert "The network has no ReLU." in page_of(write_run(tmp_path / "run", **RUNS["no ReLU"])).text


def test_names_and_descriptions_are_escaped(tmp_path: Path):
    hostile = "<script>alert('x')</script>"
    lines = [epoch(1, layers=[layer(hostile)], **{f"{hostile}_loss": 1.0})]
    results = RESULTS | {"assumptions": [hostile], "dataset": hostile, "method": hostile}
    folder = write_run(tmp_path / "run", lines, results=results, description=hostile)
    write_weights(folder / "model.safetensors", input_shape=(1, 8, 8), class_names=(hostile, "b"))
    text = written(folder)
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert page.text.count(hostile) >= 6


def test_dollar_signs_are_no_formulas(tmp_path: Path):
    lines = [epoch(1, layers=[layer("a$_b$"), layer("$\\frac")])]
    assert "$\\frac" in written(write_run(tmp_path / "run", lines))


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(tmp_path: Path):
    first, second = (write_run(tmp_path / name, FOUR, data__validation=50) for name in ("one", "other"))
    assert written(first) == written(second)


def test_the_readers_own_style_of_matplotlib_changes_nothing(tmp_path: Path):
    import matplotlib

    first, second = (write_run(tmp_path / name, FOUR) for name in ("one", "other"))
    plain = written(first)
    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 9.0, "svg.fonttype": "path"}):
        assert written(second) == plain
        assert matplotlib.rcParams["lines.linewidth"] == 9.0


def test_what_is_no_run_has_no_page(tmp_path: Path):
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_a_storage_error(tmp_path: Path):
    with pytest.raises(StorageError, match=r"cannot write /proc/page\.html"):
        write_report(write_run(tmp_path / "run", FOUR), Path("/proc/page.html"))
