"""certtrain verify: the bracket, and certificates that are written, stopped and gone on with."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from certtrain.cli.stopping import how_to_continue
from helpers.command_line import Run, run_here


def test_verify_gives_the_bracket_and_certificates_that_hold(run: Run, model: Path, tmp_path: Path) -> None:
    done = run(
        "verify", str(model), "--method", "auto", "--eps", "2/255", "--limit", "50", "--out", "c.jsonl", "--json"
    )
    report = json.loads(done.out)
    assert report["certified_accuracy"] <= report["attacked_accuracy"] <= report["natural_accuracy"]
    assert (report["examples"], report["eps"], report["out"]) == (50, 2 / 255, "c.jsonl")
    names = ["inference", "attack", "ibp", "crown-ibp", "pgd-t", "crown", "alpha-crown", "complete"]
    assert [step["name"] for step in report["steps"]] == names
    header, *points, seal = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert header["eps"] == {"text": "2/255", "value": 2 / 255}
    assert {point["index"] for point in points} == set(range(50))
    assert seal["counts"]["certified"] == report["certified"]
    checked = json.loads(run("check", "c.jsonl", str(model), "--json").out)
    assert (checked["checked"], checked["partial"], checked["counts"]) == (50, False, seal["counts"])


def test_verify_shows_a_table(run: Run, model: Path) -> None:
    done = run("verify", str(model), "--limit", "20")
    assert "certified" in done.out
    assert "verified error" in done.out


def test_verify_agrees_with_the_run_s_own_report(run: Run, trained: Path, model: Path) -> None:
    again = json.loads(run("verify", str(model), "--method", "ibp", "--json").out)
    first = json.loads((trained / "report.json").read_text())["results"]
    assert "steps" not in first
    assert {name: again[name] for name in first} == first


def test_classes_and_sheets_of_images(run: Run, model: Path, tmp_path: Path) -> None:
    words = ["verify", str(model), "--limit", "60", "--pictures", "sheets"]
    found = json.loads(run(*words, "--json").out)
    assert found["pictures"] == ["sheets/verdicts.png", "sheets/attacks.png"]
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {"verdicts.png", "attacks.png"}
    assert [each["class"] for each in found["classes"]] == [*"0123456789"]
    assert sum(map(sum, found["confusion"])) == 60
    certified = sum(round(each["examples"] * (each["certified_accuracy"] or 0)) for each in found["classes"])
    assert certified == found["certified"]
    refused = run(*words)
    assert (refused.code, "sheets/verdicts.png exists already" in refused.err) == (1, True)
    assert "wrote sheets/verdicts.png" in run(*words, "--force").out
    assert run(*words, "--eps", "0.1,0.2").code == 2
    assert run("verify", str(model), "--image", "seven.png", "--pictures", "sheets").code == 2


def test_without_an_attack_the_report_says_so(run: Run, model: Path) -> None:
    words = ["verify", str(model), "--limit", "20", "--attack", "none", "--method", "ibp"]
    found = json.loads(run(*words, "--json").out)
    assert (found["attack"], found["falsified"]) == ({"name": "none"}, 0)
    assert found["attacked_accuracy"] == found["natural_accuracy"]
    assert "no attack" in run(*words).out
    refused = run(*words, "--seed", "3")
    assert refused.code == 2
    assert "it has no effect with --attack none" in refused.err


def test_other_attacks_by_name(run: Run, model: Path) -> None:
    words = ["verify", str(model), "--limit", "20", "--attack"]
    found = json.loads(run(*words, "apgd-t", "--pgd-steps", "3", "--json").out)
    assert (found["attack"]["name"], found["attack"]["steps"], found["attack"]["targets"]) == ("apgd-t", 3, 9)
    shown = run(*words, "apgd-ce")
    assert "upper limit; apgd-ce, 100 steps × 1" in shown.out


def test_under_torchrun_the_command_to_continue_is_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["certtrain", "verify", "m", "--out", "c.jsonl", "--force"])
    assert how_to_continue(Path("c.jsonl")) == "continue with: certtrain verify m --out c.jsonl"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    words = "continue with: torchrun --nproc-per-node 4 -m certtrain verify m --out c.jsonl"
    assert how_to_continue(Path("c.jsonl")) == words
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert "the same torchrun command on each machine" in how_to_continue(Path("c.jsonl"))


def test_a_folder_with_a_model_and_no_run_is_that_model(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    shutil.copy(model, tmp_path / "kept" / "model.safetensors")
    done = run("verify", tmp_path / "kept", "--eps", "0.08", "--limit", "20")
    assert done.code == 0
    assert f"certtrain verify {tmp_path / 'kept' / 'model.safetensors'} --method auto" in done.words


def test_what_is_open_for_want_of_time_is_said_and_gone_on_with(run: Run, model: Path, tmp_path: Path) -> None:
    words = ["verify", str(model), "--eps", "0.08", "--out", "c.jsonl"]
    hurried = run(*words, "--time-budget", "0.000001s")
    assert "0.00%" in hurried.out
    assert "not every step ran to its end for" in hurried.out
    assert run("check", "c.jsonl", str(model)).code == 0
    done = run(*words)
    assert "time ran out" not in done.out
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
    assert "ε (text 0.02 in the file, 0.05 here" in refused.err
    assert "the attack (steps 20 in the file, 3 here)" in refused.err
    assert "--force" in refused.err
    assert (tmp_path / "c.jsonl").read_bytes() == before
    assert run(*words, "--eps", "0.05", "--force").code == 0
    (tmp_path / "c.jsonl").write_text("mine")
    refused = run(*words)
    assert refused.code == 1
    assert "no certificates" in refused.err
    assert (tmp_path / "c.jsonl").read_text() == "mine"


def slow_words(model: Path) -> list[str]:
    """A verification that takes seconds, without the name of its file."""
    return ["verify", str(model), "--eps", "0.08", "--pgd-steps", "80", "--batch-size", "20", "--out"]


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of that verification, which was not stopped."""
    file = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    assert run_here(*slow_words(model), file).code == 0
    return file


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_verification_that_was_stopped_goes_on(
    run: Run, model: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = slow_words(model)
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
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert "stopping…" in err
        assert "robust accuracy lies between" in out
    else:
        assert out == ""
    before = _lines(tmp_path / "c.jsonl")
    assert 2 <= before <= 340, "it was not stopped on its way"
    if number == signal.SIGINT:
        assert process.returncode == 130, err
        again = f"continue with: certtrain verify {model} --eps 0.08 --pgd-steps 80 --batch-size 20 --out"
        assert again in " ".join(err.split())
    refused = run("check", "c.jsonl", str(model))
    assert (refused.code, "is not finished" in refused.err) == (1, True)
    assert run(*words, "c.jsonl").code == 0
    assert _certificates(tmp_path / "c.jsonl") == _certificates(whole)
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

    stopper = importlib.import_module("certtrain.cli.verify")
    monkeypatch.setattr(stopper, "Stopper", lambda seconds, on_interrupt: Interrupted())
    done = run("verify", str(model))
    assert (done.code, done.out) == (130, "")  # nothing is known yet
    assert "stopped with 0 of 360 examples decided; without --out FILE no results are kept" in done.err


def test_an_interrupt_prints_the_bracket_so_far(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later:
        """Interrupted once it has been asked a hundred times: in the second batch of an attack of 20 steps."""

        def __init__(self, seconds: None, on_interrupt: Callable[[], None]) -> None:
            self.asked = count()

        @property
        def interrupted(self) -> bool:
            return next(self.asked) >= 100

    monkeypatch.setattr(importlib.import_module("certtrain.cli.verify"), "Stopper", Later)
    words = ["verify", str(model), "--eps", "0.03", "--batch-size", "50"]
    done = run(*words, "--json")
    found = json.loads(done.out)
    assert (done.code, found["interrupted"], found["examples"] + found["unreached"]) == (130, True, 360)
    assert 50 <= found["examples"] < 360
    assert 0 < found["certified_accuracy"] <= found["attacked_accuracy"] <= 1
    done = run(*words)
    assert "robust accuracy lies between" in done.out
    assert "more examples were not reached" in done.out
    assert "without --out FILE no results are kept" in done.err


# --- the newest run, and the folder of a run --------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path, trained: Path) -> Path:
    """Two runs in the folder runs, of which the newer one is not finished."""
    for number, name in enumerate(("finished", "running")):
        folder = tmp_path / "runs" / name
        shutil.copytree(trained, folder)
        for file in (folder / "model.safetensors", *(folder / "checkpoints").iterdir()):
            os.utime(file, (1000 * number, 1000 * number))
    (tmp_path / "runs" / "running" / "model.safetensors").unlink()
    (tmp_path / "runs" / "empty").mkdir()
    return tmp_path / "runs"


def test_without_a_model_the_newest_run_is_taken_and_named(run: Run, runs: Path) -> None:
    words = ["verify", "--limit", "20", "--attack", "none"]
    done = run(*words, "--json")
    newest = sorted((runs / "running" / "checkpoints").iterdir())[-1]
    assert json.loads(done.out)["model"] == str(newest.relative_to(runs.parent))
    assert "the newest run, runs/running" in done.err
    assert f"is not finished; its newest checkpoint, {newest.name}" in done.err
    shutil.rmtree(runs / "running")
    assert json.loads(run(*words, "--json").out)["model"] == "runs/finished/model.safetensors"
    shutil.rmtree(runs)
    refused = run(*words)
    assert (refused.code, refused.out) == (1, "")
    assert "there is no run with a network in the folder runs; give a model file" in refused.err


@pytest.mark.parametrize("name", ["finished", "running"])
def test_the_folder_of_a_run_is_taken_wherever_a_model_is(run: Run, runs: Path, name: str) -> None:
    done = run("verify", f"runs/{name}", "--limit", "20", "--out", "c.jsonl", "--json")
    assert done.code == 0, done.err
    checked = run("check", "c.jsonl", f"runs/{name}", "--json")
    assert json.loads(checked.out)["counts"]["certified"] == json.loads(done.out)["certified"]
    assert "other data" not in run("export", f"runs/{name}", "--weights", "w.safetensors").err
    assert Path("w.safetensors").is_file()
    refused = run("verify", "runs/empty")
    assert (refused.code, "holds no run" in refused.err) == (1, True)


def test_a_checkpoint_has_the_network_of_its_run(run: Run, runs: Path) -> None:
    words = ["--limit", "50", "--attack", "none", "--json"]
    last = sorted((runs / "finished" / "checkpoints").iterdir())[-1]
    found = [json.loads(run("verify", str(path), *words).out) for path in (last, runs / "finished")]
    assert found[0]["certified"] == found[1]["certified"]


def test_a_time_limit_for_methods_that_are_not_used_is_refused(run: Run, model: Path) -> None:
    refused = run("verify", str(model), "--timeout", "5s")
    assert refused.code == 2
    assert "it limits the methods beyond interval bounds; choose one, as in --method auto" in refused.err
    assert run("verify", str(model), "--timeout", "5s", "--method", "crown", "--limit", "5").code == 0
