"""certtrain export: networks and properties."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from helpers.command_line import Run


def test_export_writes_both_files_checked(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX export needs the extra 'onnx'")
    done = run("export", str(model), "--weights", "folded.safetensors", "--onnx", "net.onnx", "--limit", "20")
    assert done.code == 0, done.err
    assert (tmp_path / "net.onnx").exists()
    assert run("verify", "folded.safetensors", "--limit", "20").code == 0


def test_without_the_packages_for_onnx_the_weights_are_written_anyway(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "model.safetensors"
    copy.write_bytes(model.read_bytes())
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = run("export", "model.safetensors", "--limit", "20")
    assert done.code == 0, done.err
    assert 'no ONNX file is written; that needs more packages: pip install "certtrain[onnx]"' in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "model-folded.safetensors"}
    asked = run("export", "model.safetensors", "--onnx", "net.onnx", "--limit", "20")
    assert asked.code == 1
    assert 'pip install "certtrain[onnx]"' in asked.err


def test_without_a_model_the_newest_run_is_exported_and_named(run: Run, trained: Path, tmp_path: Path) -> None:
    refused = run("export")
    assert (refused.code, "there is no run with a network in the folder runs" in refused.err) == (1, True)
    shutil.copytree(trained, tmp_path / "runs" / "mine")
    done = run("export", "--weights", "folded.safetensors", "--limit", "20")
    assert (done.code, "the newest run, runs/mine" in done.err) == (0, True)
    assert (tmp_path / "folded.safetensors").exists()


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
    assert [entry.get("what", entry.get("examples")) for entry in shown] == ["ONNX", 4]
    assert "../net.onnx,point_00005.vnnlib,300" in (tmp_path / "props/instances.csv").read_text()


def test_more_properties_than_there_are_examples_are_an_error(run: Run, model: Path, tmp_path: Path) -> None:
    words = ["export", str(model), "--vnnlib", "props", "--first", "350", "--count"]
    refused = run(*words, "11")
    assert (refused.code, refused.out) == (1, "")
    assert "digits (test) has 10 examples from number 350 on, not 11" in refused.err
    assert not (tmp_path / "props").exists()
    assert "wrote 10 properties" in run(*words, "10").out


@pytest.mark.parametrize("option", ["--count=3", "--first=1", "--eps=0.1", "--timeout=5"])
def test_options_of_properties_ask_for_their_folder(run: Run, model: Path, option: str) -> None:
    done = run("export", str(model), option)
    assert done.code == 2
    assert "--vnnlib" in done.err
    assert run("export", str(model), "--vnnlib", "props", "--timeout", "0").code == 2


def test_the_card_of_a_run_and_its_own_code(run: Run, trained: Path, tmp_path: Path) -> None:
    done = run("export", trained, "--card", "card.md")
    assert (done.code, done.out) == (0, "wrote card.md\n"), done.err
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert text == (trained / "README.md").read_text(encoding="utf-8")
    (python,) = [part.removeprefix("python\n") for part in text.split("```") if part.startswith("python")]
    (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    exec(python, {})
    (command,) = [line for line in text.splitlines() if line.startswith("certtrain verify")]
    verified = json.loads(run(*command.split()[1:], "--json").out)
    assert verified["certified"] == json.loads((trained / "report.json").read_text())["results"]["certified"]
    refused = run("export", trained, "--card", "card.md")
    assert (refused.code, "card.md exists already" in refused.err) == (1, True)
    other = run("export", "model.safetensors", "--card", "other.md")
    assert (other.code, "is not the model of a finished run" in other.err) == (1, True)
