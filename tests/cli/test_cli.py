"""The command line as a person uses it: results, files, messages and exit codes."""

import csv
import hashlib
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.main import get_command
from typer.testing import CliRunner

from certtrain import cli
from certtrain.bounds.methods import METHODS
from certtrain.cli.exit_codes import EXPLANATIONS, ExitCode, exit_code, summary
from certtrain.cli.groups import with_groups
from certtrain.cli.options import memory_size
from certtrain.errors import CerttrainError, FailedCheck, SoundnessError
from certtrain.reports.report import AGAIN
from certtrain.spec.choices import MethodName, Precision

TINY = ["--set", "model={name='mlp', hidden=[8]}", "--set", "eps={max=0.02, start=1, length=1}"]
QUICK = ["train", "--preset", "digits", "--epochs", "2", *TINY]


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["certtrain", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        text = capsys.readouterr()
        return Outcome(code, text.out, text.err)

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    subprocess.run(
        [sys.executable, "-m", "certtrain", *QUICK, "--out", str(folder)], check=True, capture_output=True, timeout=120
    )
    return folder


@pytest.fixture(scope="module")
def model(trained: Path) -> Path:
    """A trained model file."""
    return trained / "model.safetensors"


def test_train_writes_a_whole_run_and_says_where(run: Run, tmp_path: Path) -> None:
    done = run(*QUICK, "--out", "mine", "--seed", "7", "--eps", "5/255")
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    results = {"model.safetensors", "report.json", "report.html"}
    assert names == {"preset.json", "metrics.jsonl", "checkpoints"} | results
    assert "model: mine/model.safetensors; report: mine/report.html" in done.out
    assert "verified error" in done.out
    preset = json.loads((tmp_path / "mine" / "preset.json").read_text())
    assert (preset["seed"], preset["eps"]["max"], preset["train"]["epochs"]) == (7, 5 / 255, 2)


def test_train_names_a_new_folder_by_itself(run: Run, tmp_path: Path) -> None:
    assert run(*QUICK).code == 0
    assert len(list((tmp_path / "runs").glob("digits-seed0-*/report.json"))) == 1


def test_train_prints_json_lines(run: Run) -> None:
    done = run(*QUICK, "--out", "mine", "--json")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [e["event"] for e in events] == ["started", "note", "epoch", "epoch", "finished"]
    assert events[1]["text"].startswith("the step is not compiled: that takes up to a minute")
    assert 0 <= events[-1]["results"]["certified_accuracy"] <= 1
    assert (events[-1]["model"], events[-1]["page"]) == ("mine/model.safetensors", "mine/report.html")


def test_train_writes_event_files(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="event files need the extra 'tensorboard'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped = run(*QUICK, "--out", "mine", "--tensorboard", "--time-budget", "0.000001s")
    assert "--resume mine --tensorboard\n" in stopped.out
    assert run("train", "--resume", "mine", "--tensorboard").code == 0
    found = EventAccumulator(str(tmp_path / "mine" / "tensorboard")).Reload()
    assert [point.step for point in found.Scalars("accuracy/certified_accuracy")] == [1, 2]
    assert found.Scalars("active/linear1_relu")


def test_without_matplotlib_train_ends_well_and_the_page_says_what_is_missing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run(*QUICK, "--out", "mine")
    assert (done.code, done.err) == (0, "")
    page = (tmp_path / "mine" / "report.html").read_text(encoding="utf-8")
    assert "<svg" not in page
    assert "pip install &quot;certtrain[plot]&quot;" in page


def test_a_time_budget_stops_at_a_checkpoint_and_resume_finishes(run: Run, tmp_path: Path) -> None:
    stopped = run(*QUICK, "--out", "mine", "--time-budget", "0.000001s")
    assert stopped.code == 0
    assert "--resume mine" in stopped.out
    assert not (tmp_path / "mine" / "report.json").exists()
    assert run("train", "--resume", "mine").code == 0
    assert (tmp_path / "mine" / "report.json").exists()
    again = run("train", "--resume", "mine")
    assert again.code == 1
    assert "is finished" in again.err


def test_an_interrupt_stops_at_a_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "certtrain", "train", "-p", "digits", "--out", str(tmp_path / "mine")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "mine").glob("checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in out
    assert "Traceback" not in err


def test_verify_gives_the_bracket_and_certificates_that_hold(run: Run, model: Path, tmp_path: Path) -> None:
    done = run(
        "verify", str(model), "--method", "auto", "--eps", "2/255", "--limit", "50", "--out", "c.jsonl", "--json"
    )
    report = json.loads(done.out)
    assert report["certified_accuracy"] <= report["pgd_accuracy"] <= report["natural_accuracy"]
    assert (report["examples"], report["eps"], report["out"]) == (50, 2 / 255, "c.jsonl")
    assert [stage["name"] for stage in report["stages"]] == ["inference", "attack", *METHODS, "complete"]
    header, *points, seal = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert header["eps"] == {"text": "2/255", "value": 2 / 255}
    assert {point["index"] for point in points} == set(range(50))
    assert seal["counts"]["certified"] == report["certified"]
    checked = json.loads(run("check", "c.jsonl", str(model), "--json").out)
    assert (checked["checked"], checked["partial"], checked["counts"]) == (50, False, seal["counts"])


def test_a_check_says_what_holds(run: Run, model: Path) -> None:
    assert "wrote c.jsonl" in run("verify", str(model), "--limit", "30", "--network", "folded", "--out", "c.jsonl").out
    whole = run("check", "c.jsonl", str(model))
    assert whole.code == 0, whole.err
    assert "all 30 records hold (ε = 0.02, the network as folded, float32, method ibp)" in whole.out
    part = run("check", "c.jsonl", str(model), "--limit", "10").out
    assert "partial check: the first 10 of 30 examples hold" in part


def test_a_check_of_another_model_or_a_changed_record_fails(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("verify", str(model), "--limit", "30", "--out", "c.jsonl").code == 0
    assert run("init", "-p", "digits", *TINY, "--out", "fresh.safetensors").code == 0
    refused = run("check", "c.jsonl", "fresh.safetensors")
    assert (refused.code, refused.out) == (1, "")
    assert "c.jsonl is about another model than fresh.safetensors: the weights differ" in refused.err
    text = (tmp_path / "c.jsonl").read_text()
    (tmp_path / "c.jsonl").write_text(text.replace('"margin":', '"margin":1', 1))
    assert "one of them was changed" in run("check", "c.jsonl", str(model)).err


def test_what_is_open_for_want_of_time_is_said_and_gone_on_with(run: Run, model: Path, tmp_path: Path) -> None:
    words = ["verify", str(model), "--eps", "0.08", "--out", "c.jsonl"]
    hurried = run(*words, "--time-budget", "0.000001s")
    assert "0.00%" in hurried.out
    assert "of the open examples were not tried by every step, for want of time" in hurried.out
    assert run("check", "c.jsonl", str(model)).code == 0
    done = run(*words)
    assert "for want of time" not in done.out
    assert run("check", "c.jsonl", str(model)).code == 0
    finished = (tmp_path / "c.jsonl").read_bytes()
    assert run(*words).code == 0
    assert (tmp_path / "c.jsonl").read_bytes() == finished


def test_certificates_of_something_else_are_replaced_by_force_alone(run: Run, model: Path, tmp_path: Path) -> None:
    words = ["verify", str(model), "--limit", "20", "--out", "c.jsonl"]
    assert run(*words).code == 0
    before = (tmp_path / "c.jsonl").read_bytes()
    refused = run(*words, "--eps", "0.05", "--pgd-steps", "3")
    assert refused.code == 1
    assert "ε (text 0.02 there, 0.05 here" in refused.err
    assert "the attack (steps 20 there, 3 here)" in refused.err
    assert "--force" in refused.err
    assert (tmp_path / "c.jsonl").read_bytes() == before
    assert run(*words, "--eps", "0.05", "--force").code == 0
    (tmp_path / "c.jsonl").write_text("mine")
    refused = run(*words)
    assert refused.code == 1
    assert "no certificates" in refused.err
    assert (tmp_path / "c.jsonl").read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_verification_that_was_stopped_goes_on(run: Run, model: Path, tmp_path: Path, number: signal.Signals) -> None:
    words = ["verify", str(model), "--eps", "0.08", "--pgd-steps", "200", "--batch-size", "20", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "certtrain", *words, str(tmp_path / "c.jsonl")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _lines(tmp_path / "c.jsonl") < 2:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert "Traceback" not in err
    before = _lines(tmp_path / "c.jsonl")
    assert 2 <= before <= 340, "it was not stopped on its way"
    if number == signal.SIGINT:
        assert process.returncode == 130, err
        again = f"go on with: certtrain verify {model} --eps 0.08 --pgd-steps 200 --batch-size 20 --out"
        assert again in " ".join(err.split())
    refused = run("check", "c.jsonl", str(model))
    assert (refused.code, "is not finished" in refused.err) == (1, True)
    for file in ("c.jsonl", "whole.jsonl"):
        assert run(*words, file).code == 0
    assert _certificates(tmp_path / "c.jsonl") == _certificates(tmp_path / "whole.jsonl")
    assert run("check", "c.jsonl", str(model)).code == 0


def test_two_processes_do_not_write_one_certificate_file(run: Run, model: Path, tmp_path: Path) -> None:
    words = ["verify", str(model), "--eps", "0.08", "--out", "c.jsonl"]
    slow = [*words, "--pgd-steps", "2000", "--batch-size", "1"]
    command = [sys.executable, "-m", "certtrain", *slow]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as other:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and _lines(tmp_path / "c.jsonl") < 2:
            time.sleep(0.01)
        refused = [run(*words, *more) for more in ([], ["--force"])]
        other.kill()
    for outcome in refused:
        assert (outcome.code, outcome.out) == (1, "")
        assert "another process is writing c.jsonl; wait until it ends, or stop it" in outcome.err
    assert run(*words, "--limit", "20", "--force").code == 0  # the lock has ended with the process
    assert {path.name for path in tmp_path.iterdir()} == {"c.jsonl"}


@pytest.fixture
def one_class(tmp_path: Path) -> Path:
    """An image folder of cats alone."""
    for split in ("train", "test"):
        (tmp_path / "pets" / split / "cat").mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), 60 * number).save(tmp_path / "pets" / split / "cat" / f"{number}.png")
    return tmp_path / "pets"


def test_a_folder_of_one_class_is_an_error_that_is_in_nobodys_way(
    run: Run, one_class: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CERTTRAIN_CACHE", str(tmp_path / "cache"))
    own = ["--set", "data.name=folder", "--data-dir", str(one_class)]
    told = "holds one class, 'cat', but a classifier tells two or more apart"
    for words in ([*QUICK, *own, "--out", "mine"], ["init", "-p", "digits", *TINY, *own, "--out", "m.safetensors"]):
        refused = run(*words)
        assert refused.code == 1
        assert told in refused.err
        assert not (tmp_path / words[-1]).exists()
    for split in ("train", "test"):
        shutil.copytree(one_class / split / "cat", one_class / split / "dog")
    assert run(*QUICK, *own, "--out", "mine").code == 0
    for split in ("train", "test"):
        shutil.rmtree(one_class / split / "dog")
    for command in ("verify", "stats", "export"):
        refused = run(command, "mine/model.safetensors", "--data-dir", str(one_class))
        assert (refused.code, told in refused.err) == (1, True)


def test_more_properties_than_there_are_examples_are_an_error(run: Run, model: Path, tmp_path: Path) -> None:
    words = ["export", str(model), "--vnnlib", "props", "--first", "350", "--count"]
    refused = run(*words, "11")
    assert (refused.code, refused.out) == (1, "")
    assert "digits (test) has 10 examples from number 350 on, not 11" in refused.err
    assert not (tmp_path / "props").exists()
    assert "wrote 10 properties" in run(*words, "10").out


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _certificates(file: Path) -> list[list[object]]:
    """The last record of each point, without seconds."""
    records = [json.loads(line) for line in file.read_text().splitlines()[1:-1]]
    last = {record["index"]: record | {"tried": list(record["tried"])} for record in records}
    return [list(record.values()) for _, record in sorted(last.items())]


def test_without_a_file_an_interrupt_says_that_nothing_is_kept(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        interrupted = True

    monkeypatch.setattr(importlib.import_module("certtrain.cli.verify"), "Stopper", lambda seconds: Interrupted())
    done = run("verify", str(model))
    assert (done.code, done.out) == (130, "")
    assert "without --out FILE nothing is kept" in done.err


def test_without_an_attack_the_report_says_so(run: Run, model: Path) -> None:
    words = ["verify", str(model), "--limit", "20", "--attack", "none", "--method", "ibp"]
    found = json.loads(run(*words, "--json").out)
    assert (found["attack"], found["falsified"]) == ({"name": "none"}, 0)
    assert found["pgd_accuracy"] == found["natural_accuracy"]
    assert "no attack" in run(*words).out
    refused = run(*words, "--seed", "3")
    assert refused.code == 2
    assert "there is no attack to set this for" in refused.err


@pytest.mark.parametrize(("text", "size"), [
    ("500MB", 500 * 10**6), ("1.5GiB", 3 * 2**29), ("2gib", 2**31), ("77", 77), ("10B", 10), ("3KiB", 3072)
])  # fmt: skip
def test_memory_is_written_with_a_unit(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "GiB", "1 parsec", "1e9", "0.2B", "nan", "9" * 400])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not an amount of memory"):
        memory_size(text)


def test_other_attacks_by_name(run: Run, model: Path) -> None:
    words = ["verify", str(model), "--limit", "20", "--attack"]
    found = json.loads(run(*words, "apgd-t", "--pgd-steps", "3", "--json").out)
    assert (found["attack"]["name"], found["attack"]["steps"], found["attack"]["targets"]) == ("apgd-t", 3, 9)
    shown = run(*words, "apgd-ce")
    assert "upper limit; apgd-ce, 100 steps × 1" in shown.out


def test_verify_agrees_with_the_run_s_own_report(run: Run, trained: Path, model: Path) -> None:
    again = json.loads(run("verify", str(model), "--method", "ibp", "--json").out)
    first = json.loads((trained / "report.json").read_text())["results"]
    assert "stages" not in first
    assert {name: again[name] for name in first} == first


def test_verify_shows_a_table(run: Run, model: Path) -> None:
    done = run("verify", str(model), "--limit", "20")
    assert "certified" in done.out
    assert "verified error" in done.out


def test_stats_as_table_json_csv_and_picture(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra 'plot'")
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


def test_the_page_of_a_run_is_written_again(run: Run, trained: Path, tmp_path: Path) -> None:
    page = tmp_path / "again.html"
    outcome = run(*AGAIN.replace("RUN", str(trained)).replace("report.html", str(page)).split()[1:])
    assert (outcome.code, outcome.out.split()) == (0, ["wrote", str(page)])
    assert page.read_bytes() == (trained / "report.html").read_bytes()
    assert "is there already" in run("stats", trained, "--html", page).err
    assert run("stats", trained, "--html", page, "--force").code == 0


def test_a_page_is_of_one_run(run: Run, trained: Path, model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert "the page of one run" in run("stats", trained, "--by-epoch", "--html", page).err
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


def test_init_saves_the_network_and_shows_its_growth(run: Run, tmp_path: Path) -> None:
    done = run("init", "--preset", "digits", "--scheme", "xavier", "--plot", "g.png")
    assert done.code == 0, done.err
    assert "wrote digits-xavier.safetensors" in done.out
    assert (tmp_path / "g.png").exists()
    assert run("stats", "digits-xavier.safetensors", "--limit", "10").code == 0
    found = json.loads(run("init", "--preset", "digits", "--scheme", "xavier", "--json", "--force").out)
    assert (found["model"], found["schemes"][0]["scheme"]) == ("digits-xavier.safetensors", "xavier")


def test_init_compares_the_schemes_over_seeds_and_writes_no_model(run: Run, tmp_path: Path) -> None:
    words = ["init", "--preset", "digits", "--compare", "--scheme", "xavier", "--seed", "4", "--seeds", "2"]
    found = json.loads(run(*words, "--json").out)
    assert (found["model"], found["seeds"]) == (None, [4, 5])
    assert [scheme["scheme"] for scheme in found["schemes"]] == ["xavier", "ibp", "kaiming", "orthogonal"]
    growth = {s["scheme"]: s["by_weights"][-1] for s in found["schemes"]}
    assert growth["kaiming"]["growth"] > 20 * growth["ibp"]["growth"]
    assert all(len(row["values"]) == 2 and row["min"] < row["growth"] < row["max"] for row in growth.values())
    assert list(tmp_path.iterdir()) == []


def test_init_compares_in_the_terminal_and_as_a_picture(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra 'plot'")
    done = run("init", "--preset", "digits", "--compare", "--plot", "c.png")
    assert done.code == 0, done.err
    assert "seeds 0 to 2" in done.out
    assert {path.name for path in tmp_path.iterdir()} == {"c.png"}


def test_a_comparison_writes_the_model_it_is_asked_for(run: Run) -> None:
    done = run("init", "-p", "digits", "--compare", "--seeds", "1", "--seed", "3", "--out", "m.safetensors")
    assert "wrote m.safetensors" in done.out
    assert run("init", "-p", "digits", "--seed", "3", "--out", "n.safetensors").code == 0
    first, second = Path("m.safetensors").read_bytes(), Path("n.safetensors").read_bytes()
    assert first == second


def test_init_sweeps_depth(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra 'plot'")
    words = ["init", "-p", "digits", "--sweep-depth", "4,1,2,2", "--seeds", "2", *TINY]
    done = run(*words, "--plot", "s.png")
    assert done.code == 0, done.err
    assert "linear layers of 8 units" in done.out
    assert "kaiming: ×" in done.out
    assert {path.name for path in tmp_path.iterdir()} == {"s.png"}
    found = json.loads(run(*words, "--json").out)
    assert found["network"] == "linear layers of 8 units"
    for scheme in found["schemes"]:
        assert [point["depth"] for point in scheme["depths"]] == [1, 2, 4]
        assert scheme["rate"] > 0


def test_export_writes_both_files_checked(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX export needs the extra 'onnx'")
    done = run("export", str(model), "--weights", "folded.safetensors", "--onnx", "net.onnx", "--limit", "20")
    assert done.code == 0, done.err
    assert (tmp_path / "net.onnx").exists()
    assert run("verify", "folded.safetensors", "--limit", "20").code == 0


def test_export_writes_properties_for_other_verifiers(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX export needs the extra 'onnx'")
    words = ["export", str(model), "--vnnlib", "props", "--count", "4", "--first", "2", "--eps", "8/255"]
    done = run(*words, "--timeout", "60", "--limit", "20")
    assert done.code == 0, done.err
    assert "wrote 4 properties for ε = 8/255" in done.out
    names = {"index.json", "instances.csv", f"{model.stem}.onnx", *(f"point_0000{n}.vnnlib" for n in range(2, 6))}
    assert {path.name for path in (tmp_path / "props").iterdir()} == names
    assert f"{model.stem}.onnx,point_00002.vnnlib,60\n" in (tmp_path / "props/instances.csv").read_text()
    refused = run(*words)
    assert refused.code == 1
    assert "--force" in refused.err
    late = run("export", str(model), "--vnnlib", "none", "--first", "1000")
    assert (late.code, list(tmp_path.glob("none"))) == (1, [])
    assert "there is none with number 1000" in late.err
    shown = json.loads(run(*words, "--onnx", "net.onnx", "--force", "--json", "--limit", "20").out)
    assert [entry.get("what", entry.get("points")) for entry in shown] == ["ONNX", 4]
    assert "../net.onnx,point_00005.vnnlib,300" in (tmp_path / "props/instances.csv").read_text()


@pytest.mark.parametrize("option", ["--count=3", "--first=1", "--eps=0.1", "--timeout=5"])
def test_options_of_properties_ask_for_their_folder(run: Run, model: Path, option: str) -> None:
    done = run("export", str(model), option)
    assert done.code == 2
    assert "--vnnlib" in done.err
    assert run("export", str(model), "--vnnlib", "props", "--timeout", "0").code == 2


@pytest.fixture
def properties(run: Run, model: Path, tmp_path: Path) -> Path:
    """The folder of an exported ONNX file, `model.onnx`, and a dozen properties of it at a large radius."""
    pytest.importorskip("onnxruntime", reason="ONNX export needs the extra 'onnx'")
    assert run("export", str(model), "--vnnlib", "props", "--count", "12", "--eps", "0.3", "--limit", "20").code == 0
    return tmp_path / "props"


def test_properties_are_decided_alike_of_the_model_and_its_onnx_file(run: Run, model: Path, properties: Path) -> None:
    results = set()
    for path in sorted(properties.glob("*.vnnlib"))[:4]:
        found = json.loads(run("decide", properties / "model.onnx", path, "--json").out)
        assert (found["model"], found["property"]) == (str(properties / "model.onnx"), str(path))
        shown = run("decide", model, path)
        assert (shown.code, shown.err) == (0, "")
        assert shown.out.startswith(f"{found['result']}  ")
        results.add(found["result"])
    assert "sat" in results


def test_a_property_takes_a_method_and_limits(run: Run, properties: Path) -> None:
    words = ["decide", properties / "model.onnx", properties / "point_00000.vnnlib", "--json"]
    found = json.loads(run(*words, "--method", "complete", "--timeout", "30s", "--memory", "500MB").out)
    assert found["method"] == "complete"
    assert found["result"] in ("sat", "unsat")
    refused = run(*words, "--method", "crown")
    assert (refused.code, refused.out) == (2, "")
    assert "crown-ibp" in refused.err


def test_files_of_a_property_that_are_none_are_named(run: Run, model: Path, tmp_path: Path) -> None:
    folder = run("decide", model, tmp_path)
    assert (folder.code, "is a folder; name one of its .vnnlib files" in folder.err) == (1, True)
    missing = run("decide", model, "none.vnnlib")
    assert (missing.code, "the property none.vnnlib is not there" in missing.err) == (1, True)
    no_network = run("decide", "none.onnx", "none.vnnlib")
    assert (no_network.code, "there is no model file none.onnx" in no_network.err) == (1, True)


# --- what to type instead --------------------------------------------------------------------------------

INSTEAD = {
    "verify m.safetensors --check c.jsonl": "check c.jsonl m.safetensors",
    "verify --check c.jsonl --limit 7 --json m.safetensors --eps 0.1": "check c.jsonl m.safetensors --limit 7 --json",
    "verify m.safetensors --check 'my file.jsonl'": "check 'my file.jsonl' m.safetensors",
    "verify net.onnx --vnnlib p.vnnlib": "decide net.onnx p.vnnlib",
    "verify net.onnx --vnnlib p.vnnlib --method complete --timeout 1m --limit 3 --pgd-steps 5": (
        "decide net.onnx p.vnnlib --method complete --pgd-steps 5 --timeout 60"
    ),
    "check m.safetensors c.jsonl": "check c.jsonl m.safetensors",
    "decide p.vnnlib.gz net.onnx": "decide net.onnx p.vnnlib.gz",
}


@pytest.mark.parametrize("line", INSTEAD)
def test_a_command_line_of_another_form_is_answered_with_the_right_one(run: Run, line: str) -> None:
    done = run(*shlex.split(line))
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(f"; type: certtrain {INSTEAD[line]}\n")
    assert done.err.count("\n") == 1, "it can be copied whole"


def test_an_onnx_file_that_is_verified_is_answered_with_decide(run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    done = run("verify", "net.onnx")
    assert done.code == 1
    assert "net.onnx is an ONNX file" in done.err
    assert "for a property of it: certtrain decide net.onnx PROPERTY" in done.err


# --- exit codes ------------------------------------------------------------------------------------------


def test_certificates_that_do_not_hold_have_an_exit_code(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("verify", model, "--limit", "30", "--out", "c.jsonl").code == 0
    resealed(tmp_path / "c.jsonl", lambda record: {**record, "margin": 2 * record["margin"]})
    done = run("check", "c.jsonl", model)
    assert (done.code, done.out) == (3, "")
    assert "c.jsonl does not hold: example" in done.err


def resealed(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change every certified record of the file, and write a seal that fits."""
    header, *points, seal = [json.loads(line) for line in path.read_text().splitlines()]
    points = [change(point) if point["verdict"] == "certified" else point for point in points]
    body = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in [header, *points])
    seal["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    path.write_text(body + json.dumps(seal, separators=(",", ":")) + "\n")


def test_a_fault_in_certtrain_has_an_exit_code(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("certtrain.verification.verify")

    def contradicted(*values: object, **named: object) -> None:
        raise SoundnessError("a certified example was attacked")

    monkeypatch.setattr(module, "verify", contradicted)
    done = run("verify", model, "--limit", "5")
    assert (done.code, done.out, done.err) == (4, "", "error: a certified example was attacked\n")


def test_every_error_has_one_of_the_exit_codes() -> None:
    def kinds(error: type[CerttrainError]) -> list[type[CerttrainError]]:
        return [error, *(kind for below in error.__subclasses__() for kind in kinds(below))]

    found = {kind: exit_code(kind("why")) for kind in kinds(CerttrainError)}
    assert found.pop(FailedCheck) == 3
    assert found.pop(SoundnessError) == 4
    assert set(found.values()) == {1}
    assert set(EXPLANATIONS) == set(ExitCode)


def test_the_help_lists_the_exit_codes(run: Run) -> None:
    text = " ".join(run("--help").out.split())
    assert summary() in text
    assert all(f"{code} {explanation.short}" in text for code, explanation in EXPLANATIONS.items())


# --- groups of options -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own:
    """What comes first."""

    first: Annotated[int, typer.Option(help="A number.")] = 1


@dataclass(frozen=True)
class Other:
    """What comes second."""

    second: Annotated[Literal["a", "b"], typer.Option(help="A letter.")] = "a"


def test_a_group_of_options_is_shown_and_given_as_one() -> None:
    seen: list[object] = []

    def command(name: Annotated[str, typer.Argument()], own: Own, other: Other) -> None:
        """Do it."""
        seen.append((name, own, other))

    app = typer.Typer(add_completion=False)
    app.command()(with_groups(command))
    assert CliRunner().invoke(app, ["x", "--second", "b"]).exit_code == 0
    assert seen == [("x", Own(1), Other("b"))]
    assert CliRunner().invoke(app, ["x", "--second", "c"]).exit_code == 2
    titles = {parameter.name: getattr(parameter, "rich_help_panel", None) for parameter in get_command(app).params}
    assert titles == {"name": None, "first": None, "second": "What comes second"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["init", "train", "verify", "check", "decide", "stats", "export"]),
        ("verify --method ", list(get_args(MethodName))),
        ("verify --method c", ["crown-ibp", "crown", "complete"]),
        ("decide --method c", ["crown-ibp", "complete"]),
        ("verify --c", []),
        ("train --precision ", list(get_args(Precision))),
    ],
)
def test_a_shell_completes_commands_options_and_names(line: str, words: list[str]) -> None:
    shell = {"COMP_WORDS": f"certtrain {line}", "COMP_CWORD": str(len(line.split(" ")))}
    program = "import sys; sys.argv = ['certtrain']; from certtrain.cli import main; main()"
    environment = os.environ | shell | {"_CERTTRAIN_COMPLETE": "complete_bash"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == words


@pytest.mark.parametrize("network", ["wide-resnet", "resnext"])
def test_one_word_trains_another_network_that_every_command_takes(run: Run, tmp_path: Path, network: str) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX export needs the extra 'onnx'")
    narrow = ["--set", f"model.name={network}", "--set", "model.stem=2", "--set", "model.linear_size=8"]
    narrow += ["--set", "model.widen_factor=1" if network == "wide-resnet" else "model.bottleneck_width=2"]
    ramp = ["--set", "eps={max=0.02, start=1, length=1}"]
    done = run("train", "--preset", "digits", "--epochs", "2", *ramp, *narrow, "--out", "mine")
    assert done.code == 0, done.err
    model = "mine/model.safetensors"
    layers = json.loads(run("stats", model, "--limit", "30", "--json").out)["models"][0]["layers"]
    assert {"stem_relu", "block1.conv1_relu", "block3.relu", "linear1_relu"} <= {layer["name"] for layer in layers}
    assert run("export", model, "--limit", "20").code == 0
    first, again = (json.loads(run("verify", f"mine/model{end}.safetensors", "--json").out) for end in ("", "-folded"))
    assert again["certified"] == pytest.approx(first["certified"], abs=1)
    assert (tmp_path / "mine" / "model.onnx").exists()
    found = json.loads(run("init", "--preset", "digits", *narrow, "--out", "i.safetensors", "--json").out)
    (scheme,) = found["schemes"]
    assert {layer["name"] for layer in scheme["layers"] if layer["halved"]} >= {"block2.conv1", "linear1"}
    assert len(scheme["in_training"]) == len(layers)


def test_nothing_is_replaced_without_force(run: Run, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "s.csv"
    target.write_text("mine")
    refused = run("stats", str(model), "--csv", str(target))
    assert refused.code == 1
    assert "--force" in refused.err
    assert target.read_text() == "mine"
    assert run("stats", str(model), "--csv", str(target), "--force", "--limit", "5").code == 0
    assert target.read_text() != "mine"


BAD = {
    "eps not a number": (["verify", "MODEL", "--eps", "8/0"], 2, "8/255"),
    "eps negative": (["verify", "MODEL", "--eps", "-1"], 2, "outside [0, 1]"),
    "eps too large": (["train", "-p", "digits", "--eps", "2"], 2, "outside [0, 1]"),
    "unknown preset": (["train", "-p", "nope"], 1, "cifar10-160ep"),
    "no preset": (["train"], 2, "cifar10-160ep"),
    "misspelt field": (["train", "-p", "digits", "--set", "train.epoch=3"], 1, "did you mean 'epochs'"),
    "field without value": (["train", "-p", "digits", "--set", "train.epochs"], 1, "field=value"),
    "missing model": (["verify", "absent.safetensors"], 1, "no model file"),
    "truncated model": (["verify", "truncated.safetensors"], 1, "not a whole safetensors file"),
    "foreign model": (["stats", "foreign.safetensors"], 1, "not written by certtrain"),
    "missing data folder": (["train", "-p", "mnist-70ep", "--data-dir", "absent"], 1, "absent"),
    "wrong data folder": (["train", "-p", "mnist-70ep", "--data-dir", "."], 1, "not found"),
    "preset and resume": (["train", "-p", "digits", "--resume", "x"], 2, "as it was begun"),
    "resume nothing": (["train", "--resume", "absent"], 1, "no run to resume"),
    "target cannot be made": (["verify", "MODEL", "--out", "/proc/x.jsonl"], 1, "cannot write /proc/x.jsonl"),
    "a folder for certificates": (["verify", "MODEL", "--out", "."], 1, "is no file"),
    "check of another radius": (["check", "c.jsonl", "MODEL", "--eps", "0.1"], 2, "No such option"),
    "nothing to check": (["check", "absent.jsonl", "MODEL"], 1, "is not there; `certtrain verify MODEL"),
    "check of no certificates": (["check", "text", "MODEL"], 1, "line 1 of text is no header of a certificate file"),
    "check against nothing": (["check", "text", "absent.safetensors"], 1, "no model file absent.safetensors"),
    "unknown method": (["verify", "MODEL", "--method", "magic"], 2, "crown-ibp"),
    "no time for a point": (["verify", "MODEL", "--timeout", "0s"], 2, "not a time above zero"),
    "several seeds of one network": (["init", "-p", "digits", "--seeds", "2"], 2, "--compare and --sweep-depth"),
    "no depths": (["init", "-p", "digits", "--sweep-depth", "two"], 2, "2,4,8,16"),
    "one depth": (["init", "-p", "digits", "--sweep-depth", "4,4"], 2, "two depths or more"),
    "depth of nothing": (["init", "-p", "digits", "--sweep-depth", "0,4"], 2, "from 1 to 512"),
    "a sweep's model": (["init", "-p", "digits", "--sweep-depth", "1,2", "--out", "m.safetensors"], 2, "--out"),
    "one model is missing": (["stats", "MODEL", "absent.safetensors"], 1, "no model file absent.safetensors"),
    "folder without a run": (["stats", "MODEL", "."], 1, "holds no run"),
    "two runs by epoch": (["stats", "MODEL", "MODEL", "--by-epoch"], 2, "give one folder"),
    "a model by epoch": (["stats", "MODEL", "--by-epoch"], 1, "is no folder"),
    "picture of another kind": (["stats", "MODEL", "--plot", "s.pdf"], 2, ".png"),
    "folder for a model": (["verify", "."], 1, "is a folder"),
    "file for a run": (["train", "-p", "digits", "--out", "foreign.safetensors"], 1, "choose another --out"),
    "bad time": (["train", "-p", "digits", "--time-budget", "9x"], 2, "9m"),
    "no validation": (["verify", "MODEL", "--split", "validation"], 1, "--split train"),
    "no cuda": (["train", "-p", "digits", "--device", "cuda", "--out", "o"], 1, "--device cpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_clear_message(run: Run, model: Path, tmp_path: Path, case: str) -> None:
    if case == "no cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    (tmp_path / "truncated.safetensors").write_bytes(model.read_bytes()[:-100])
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text").write_text("nothing\n")
    before = set(tmp_path.rglob("*"))
    words, code, message = BAD[case]
    done = run(*(str(model) if word == "MODEL" else word for word in words))
    assert done.code == code, done.err
    assert message in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err
    assert done.out == ""
    assert set(tmp_path.rglob("*")) == before


def test_every_command_and_option_has_help() -> None:
    group = get_command(cli.app)
    commands = group.commands  # type: ignore[attr-defined]
    assert set(commands) == {"init", "train", "verify", "check", "decide", "stats", "export"}
    for name, command in commands.items():
        assert command.help, name
        assert command.callback.__name__ == f"{name}_command"
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"  # type: ignore[attr-defined]


def test_version_and_module_entry() -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "certtrain", "--version"], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.startswith("certtrain ")
