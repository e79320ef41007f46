"""The command line as a whole: all commands, and networks and data that every one of them takes or refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

from certtrain import cli
from helpers.command_line import QUICK, TINY, Run

MAIN_COMMANDS = ("train", "verify", "stats", "export", "init")
OTHER_COMMANDS = ("check", "decide", "bench")


def test_every_command_and_option_has_help() -> None:
    group = get_command(cli.app)
    commands = group.commands  # type: ignore[attr-defined]
    assert set(commands) == set(cli.COMMANDS)
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
    first, again = (
        json.loads(run("verify", f"mine/model{end}.safetensors", "--limit", "90", "--json").out)
        for end in ("", "-folded")
    )
    assert again["certified"] == pytest.approx(first["certified"], abs=1)
    assert (tmp_path / "mine" / "model.onnx").exists()
    found = json.loads(run("init", "--preset", "digits", *narrow, "--out", "i.safetensors", "--json").out)
    (scheme,) = found["schemes"]
    assert {layer["name"] for layer in scheme["layers"] if layer["halved"]} >= {"block2.conv1", "linear1"}
    assert len(scheme["in_training"]) == len(layers)


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
    message = "holds one class, 'cat', but a classifier needs at least two"
    for words in ([*QUICK, *own, "--out", "mine"], ["init", "-p", "digits", *TINY, *own, "--out", "m.safetensors"]):
        refused = run(*words)
        assert refused.code == 1
        assert message in refused.err
        assert not (tmp_path / words[-1]).exists()
    for split in ("train", "test"):
        shutil.copytree(one_class / split / "cat", one_class / split / "dog")
    assert run(*QUICK, *own, "--out", "mine").code == 0
    for split in ("train", "test"):
        shutil.rmtree(one_class / split / "dog")
    for command in ("verify", "stats", "export"):
        refused = run(command, "mine/model.safetensors", "--data-dir", str(one_class))
        assert (refused.code, message in refused.err) == (1, True)


def test_help_lists_the_main_commands_first_and_shows_no_type_for_switches(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = run("--help").out
    places = [re.search(rf"│ {name} ", text) for name in (*MAIN_COMMANDS, *OTHER_COMMANDS)]
    starts = [place.start() for place in places if place is not None]
    assert len(starts) == 8
    assert starts == sorted(starts)
    heading = text.index("Certificates, properties and benchmarks")
    assert starts[4] < heading < starts[5]
    assert "<bool>" not in text


@pytest.mark.parametrize("name", [*MAIN_COMMANDS, *OTHER_COMMANDS])
def test_every_command_has_two_examples_that_fit_and_no_types(
    name: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = run(name, "--help").out
    assert "<bool>" not in text
    assert "<int" not in text
    lines = text.partition("Examples:")[2].split("\n")
    assert sum(line.strip().startswith(f"certtrain {name} ") for line in lines) == 2
