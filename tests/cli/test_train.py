"""certtrain train, as a person uses it."""

import json
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from certtrain import RunContext
from certtrain.cli.stopping import Stopper
from certtrain.training import api
from helpers.command_line import QUICK, TINY, Run


def test_train_writes_a_whole_run_and_says_where(run: Run, tmp_path: Path) -> None:
    done = run(*QUICK, "--out", "mine", "--seed", "7", "--eps", "5/255")
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    results = {"model.safetensors", "report.json", "report.html"}
    assert names == {"preset.json", "metrics.jsonl", "checkpoints", "pictures", "README.md"} | results
    assert {path.name for path in (tmp_path / "mine" / "pictures").iterdir()} >= {"verdicts.png"}
    written = json.loads((tmp_path / "mine" / "report.json").read_text())
    assert sum(each["examples"] for each in written["classes"]) == sum(map(sum, written["confusion"])) == 360
    page = (tmp_path / "mine" / "report.html").read_text(encoding="utf-8")
    assert "Confusion under attack" in page
    assert page.count('src="data:image/png;base64,') >= 1
    assert "model: mine/model.safetensors; report: mine/report.html" in done.out
    assert "verified error" in done.out
    preset = json.loads((tmp_path / "mine" / "preset.json").read_text())
    assert (preset["seed"], preset["eps"]["max"], preset["train"]["epochs"]) == (7, 5 / 255, 2)


def test_fewer_epochs_scale_the_ramp_and_say_so(run: Run, tmp_path: Path) -> None:
    few = run("train", "--preset", "digits", "--epochs", "5", "--out", "few", *TINY[:2], "--set", "train.decay=0.5")
    assert (few.code, few.err) == (0, "")
    changes = "eps.start 2 → 1, eps.length 20 → 2, train.milestones [35, 45] → [4, 5]"
    assert f"note: with 5 epochs in place of 50, these fields are scaled too: {changes}; --set" in few.out
    written = json.loads((tmp_path / "few" / "preset.json").read_text())
    assert (written["eps"]["start"], written["eps"]["length"]) == (1, 2)
    # These figures are for the same network with the ramp of 50 epochs: ε is then 0.003 at the end, and no proof holds.
    assert json.loads((tmp_path / "few" / "report.json").read_text())["results"]["certified_accuracy"] > 0.15
    kept = ["--set", "eps.start=2", "--set", "eps.length=20", "--set", "train.milestones=[35]"]
    old = run("train", "--preset", "digits", "--epochs", "2", "--out", "kept", *TINY[:2], *kept)
    assert "are scaled too" not in old.out
    assert "after the end of this run" in old.out


def test_without_a_preset_two_are_named_and_the_command_that_lists_all(run: Run) -> None:
    done = run("train")
    assert done.code == 2
    text = " ".join(done.err.replace("│", " ").split())
    assert "missing. Begin with --preset digits, which needs no download, or --preset mnist-cpu" in text
    assert "`certtrain presets` lists all" in text
    assert len(text) < 700


def test_a_resumed_run_names_the_options_that_it_does_not_take(run: Run) -> None:
    for words, named in (
        (["--compile", "off"], "leave out --compile."),
        (["--precision", "bf16", "--eps", "0.1"], "leave out --eps and --precision."),
        (["--set", "train.clip_norm=3"], "leave out --set train.clip_norm=3."),
    ):
        done = run("train", "--resume", "runs/some", *words)
        assert done.code == 2
        assert named in " ".join(done.err.replace("│", " ").split())


def test_train_names_a_new_folder_by_itself(run: Run, tmp_path: Path) -> None:
    assert run(*QUICK).code == 0
    assert len(list((tmp_path / "runs").glob("digits-seed0-*/report.json"))) == 1


def test_a_limit_for_methods_that_are_not_used_is_refused(run: Run, tmp_path: Path) -> None:
    for method in ([], ["--verify-method", "ibp"]):
        done = run(*QUICK, "--out", "mine", "--timeout", "5s", *method)
        assert done.code == 2
        assert "it limits the methods beyond interval bounds" in done.err
    assert not (tmp_path / "mine").exists()


def test_a_finished_run_is_not_said_to_be_resumable(run: Run, trained: Path) -> None:
    done = run(*QUICK, "--out", trained)
    assert done.err.strip().endswith("holds a finished run; choose another folder (--out)")
    half = trained.parent / "half"
    assert run(*QUICK, "--out", half, "--time-budget", "0.000001s").code == 0
    assert f"or resume that run with --resume {half}" in run(*QUICK, "--out", half).err


def test_train_prints_json_lines(run: Run) -> None:
    done = run(*QUICK, "--out", "mine", "--json")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [e["event"] for e in events] == ["started", "note", "epoch", "epoch", "finished"]
    assert events[1]["text"].startswith("with 2 epochs in place of 50, these fields are scaled too: train.milestones")
    assert (events[0]["seconds_left"], events[0]["forecast"]) == (None, ""), "a short run"
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


def test_the_page_has_its_curves_with_the_default_install(run: Run, tmp_path: Path) -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(name.startswith("matplotlib") for name in declared["dependencies"])
    assert run(*QUICK, "--out", "mine").code == 0
    page = (tmp_path / "mine" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 7
    assert "missing" not in page


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
    assert "stopping…" in err
    assert "Traceback" not in err


def test_an_interrupt_is_answered_before_torch_is_loaded_and_before_there_is_a_view(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop = Stopper(None)
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert "stopping…" in capsys.readouterr().err
    assert stop.reason() == "interrupted"


@pytest.mark.parametrize(("words", "seconds"), [([], 30.0), (["--timeout", "5s"], 5.0), (["--timeout", "none"], None)])
def test_the_time_for_each_example_is_that_of_verify(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], seconds: float | None
) -> None:
    taken: list[RunContext] = []
    monkeypatch.setattr(api, "start_run", lambda preset, out, context: taken.append(context))
    assert run(*QUICK, "--verify-method", "auto", *words).code == 0
    assert (taken[0].verification.method, taken[0].verification.limits.timeout) == ("auto", seconds)


def test_a_run_starts_from_the_model_of_another_run_by_its_folder(run: Run, trained: Path) -> None:
    done = run(*QUICK, "--from", trained, "--out", "second")
    assert done.code == 0, done.err
    assert json.loads(Path("second/preset.json").read_text())["start"]["file"] == str(trained / "model.safetensors")


def test_a_finished_run_goes_on_for_more_epochs(run: Run, tmp_path: Path) -> None:
    assert run(*QUICK, "--out", "mine").code == 0
    more = ["train", "--resume", "mine"]
    done = run(*more, "--set", "train.epochs=3")
    assert done.code == 0, done.err
    assert "the run goes on from 2 to 3 epochs; its model and report so far are in mine/earlier/epochs-0002" in done.out
    assert "resumed at step 46" in done.out
    assert json.loads((tmp_path / "mine" / "report.json").read_text())["training"]["steps"] == 69
    assert (tmp_path / "mine" / "earlier" / "epochs-0002" / "model.safetensors").is_file()
    assert "For more epochs: certtrain train --resume mine --set train.epochs=N" in run(*more).err
    fewer = run(*more, "--set", "train.epochs=3")
    assert (fewer.code, "must be more than that, not 3" in fewer.err) == (1, True)
    for words in (["--set", "train.epochs=x"], ["--set", "train.batch_size=3"], ["--epochs", "5"]):
        assert run(*more, *words).code == 2
