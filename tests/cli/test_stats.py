"""certtrain stats: tables, files and pages."""

import csv
import json
import shutil
from pathlib import Path

from helpers.command_line import TINY, Run


def test_stats_as_table_json_csv_and_picture(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("stats", str(model), "--csv", "s.csv", "--plot", "s.png", "--limit", "30")
    assert done.code == 0, done.err
    assert "linear1_relu" in done.out
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    found = json.loads(run("stats", str(model), "--limit", "30", "--json").out)
    assert (found["dataset"], found["split"], found["examples"], found["eps"]) == ("digits", "train", 30, 0.02)
    (only,) = found["models"]
    layers = only["layers"]
    assert [row["name"] for row in rows] == [layer["name"] for layer in layers] == ["linear1_relu"]
    assert (rows[0]["model"], only["name"], only["model"]) == ("run", "run", str(model))
    assert float(rows[0]["growth"]) == layers[0]["growth"] == only["means"]["growth"]
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_stats_of_a_folder_a_checkpoint_and_another_model(run: Run, trained: Path, model: Path, tmp_path: Path) -> None:
    assert run("init", "-p", "digits", *TINY, "--out", "fresh.safetensors").code == 0
    (newest,) = list((trained / "checkpoints").glob("step-000000046.safetensors"))
    words = ["stats", str(trained), str(newest), "fresh.safetensors", "--limit", "30"]
    done = run(*words, "--csv", "s.csv", "--plot", "s.png")
    assert done.code == 0, done.err
    assert "no layer stands out" in done.out
    found = json.loads(run(*words, "--json").out)["models"]
    assert [entry["name"] for entry in found] == ["run", "step-000000046", "fresh"]
    assert found[0]["layers"] == found[1]["layers"] != found[2]["layers"]
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["run", "step-000000046", "fresh"]


def test_stats_of_a_run_show_its_objective_and_what_its_last_epoch_measured(
    run: Run, trained: Path, model: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    last = json.loads((copy / "metrics.jsonl").read_text().splitlines()[-1])
    del last["layers"]
    line = json.dumps(
        {**last, "epoch": 3, "adversarial_accuracy": 0.125, "adversarial_loss": 1.5, "validation_loss": None}
    )
    with (copy / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    said = run("stats", str(copy), "--limit", "30").out
    assert "objective ibp; epoch 3 of 2, in training at ε = 0.02: certified " in said
    assert "adversarial 12.5%" in said
    assert "adversarial loss 1.500" in said
    assert "validation" not in said
    several = run("stats", str(copy), str(trained), str(model), "--limit", "30").out
    assert [words in several for words in ("copy: objective ibp; epoch 3", "run: objective ibp; epoch 2")] == [
        True,
        True,
    ]
    first, _, third = json.loads(run("stats", str(copy), str(trained), str(model), "--limit", "30", "--json").out)[
        "models"
    ]
    assert (first["trained"]["objective"]["name"], first["trained"]["last_epoch"]["adversarial_loss"]) == ("ibp", 1.5)
    assert "trained" not in third
    (copy / "metrics.jsonl").write_text("{}\n")
    damaged = run("stats", str(copy), "--limit", "30")
    assert (damaged.code, "objective" in damaged.out) == (0, False)
    assert "the run's last epoch is left out" in damaged.err


def test_the_page_of_a_run_is_written_again(run: Run, trained: Path, tmp_path: Path) -> None:
    page = tmp_path / "again.html"
    outcome = run("stats", trained, "--html", page)
    assert (outcome.code, outcome.out.split()) == (0, ["wrote", str(page)])
    assert page.read_bytes() == (trained / "report.html").read_bytes()
    assert "exists already" in run("stats", trained, "--html", page).err
    assert run("stats", trained, "--html", page, "--force").code == 0


def test_a_page_is_of_one_run(run: Run, trained: Path, model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert "the report of one run" in run("stats", trained, "--by-epoch", "--html", page).err
    assert "holds no run" in run("stats", tmp_path, "--html", page).err
    assert not page.exists()


def test_stats_by_epoch(run: Run, trained: Path, tmp_path: Path) -> None:
    words = ["stats", str(trained), "--by-epoch", "--limit", "30"]
    done = run(*words, "--csv", "h.csv", "--plot", "h.png")
    assert done.code == 0, done.err
    assert "run: as it was trained" in done.out
    assert "its networks: digits, train set, 30 examples, ε = 0.02" in done.out
    found = json.loads(run(*words, "--json").out)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [entry["layers"] for entry in found["epochs"]] == [line["layers"] for line in lines]
    assert [(entry["step"], entry["epoch"]) for entry in found["networks"]["models"]] == [(0, 0), (46, 2)]
    rows = list(csv.DictReader((tmp_path / "h.csv").read_text().splitlines()))
    assert [(row["network"], row["epoch"]) for row in rows] == [
        ("in training", "1"),
        ("in training", "2"),
        ("step-000000000", "0"),
        ("model", "2"),
    ]
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_replaced_without_force(run: Run, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "s.csv"
    target.write_text("mine")
    refused = run("stats", str(model), "--csv", str(target))
    assert refused.code == 1
    assert "--force" in refused.err
    assert target.read_text() == "mine"
    assert run("stats", str(model), "--csv", str(target), "--force", "--limit", "5").code == 0
    assert target.read_text() != "mine"


def test_without_a_model_the_newest_run_is_shown_and_named(run: Run, trained: Path, tmp_path: Path) -> None:
    refused = run("stats")
    assert (refused.code, "there is no run with a network in the folder runs" in refused.err) == (1, True)
    shutil.copytree(trained, tmp_path / "runs" / "mine")
    done = run("stats", "--limit", "20")
    assert "the newest run, runs/mine" in done.err
    assert done.out.startswith("mine: digits")
    assert run("stats", "--by-epoch", "--limit", "20").code == 0


def test_stats_of_an_unfinished_run_say_so(run: Run, trained: Path, tmp_path: Path) -> None:
    half = shutil.copytree(trained, tmp_path / "half")
    for name in ("report.json", "model.safetensors"):
        (half / name).unlink()
    lines = (half / "metrics.jsonl").read_text().splitlines(keepends=True)
    (half / "metrics.jsonl").write_text(lines[0])
    for words in (("stats", half, "--limit", "30"), ("stats", half, "--limit", "30", "--by-epoch")):
        assert "the run is not finished: 1 of 2 epochs done\n" in run(*words).out
        assert "not finished" not in run(words[0], trained, *words[2:]).out
    (found,) = json.loads(run("stats", half, "--limit", "30", "--json").out)["models"]
    assert found["trained"]["finished"] is False
