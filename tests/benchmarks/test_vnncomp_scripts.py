"""The three scripts by which the competition calls a verifier."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.documents import ROOT
from helpers.onnx_files import node, save

SCRIPTS = ROOT / "benchmarks" / "vnncomp"
HEAD = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)\n"
BOX = "(assert (and (<= X_0 1) (>= X_0 0) (<= X_1 1) (>= X_1 0)))\n"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def call(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CERTTRAIN_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = [str(SCRIPTS / script), *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_instance_is_prepared_and_run(tmp_path: Path) -> None:
    network = save(tmp_path, [node("MatMul", "x w", "y")], ["n", 2], ["n", 1], w=torch.ones(2, 1))
    (tmp_path / "p.vnnlib").write_text(f"{HEAD}{BOX}(assert (>= Y_0 0.7))")
    (tmp_path / "out.txt").write_text("no_result_in_file\n")
    instance = ("v1", "some", network, tmp_path / "p.vnnlib")
    assert call("prepare_instance.sh", *instance).returncode == 0
    done = call("run_instance.sh", *instance, tmp_path / "out.txt", "60")
    assert done.returncode == 0, done.stderr
    word, first, *_, last = (tmp_path / "out.txt").read_text().splitlines()
    assert word == "sat"
    assert first.startswith("((X_0 ")
    assert last.startswith(" (Y_0 ")
    assert last.endswith("))")


def test_an_instance_that_cannot_be_read_is_not_prepared(tmp_path: Path) -> None:
    network = save(tmp_path, [node("MatMul", "x w", "y")], ["n", 2], ["n", 1], w=torch.ones(2, 1))
    (tmp_path / "p.vnnlib").write_text("(assert")
    done = call("prepare_instance.sh", "v1", "some", network, tmp_path / "p.vnnlib")
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {tmp_path / 'p.vnnlib'}: line 1: this bracket is never closed\n",
    )


@pytest.mark.parametrize("script", ["install_tool.sh", "prepare_instance.sh", "run_instance.sh"])
def test_another_version_or_other_arguments_are_refused(script: str) -> None:
    for words in ((), ("v2", "some", "net.onnx", "p.vnnlib", "out.txt", "60"), ("v1", "some") * (script[0] != "i")):
        done = call(script, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"usage: {script} v1")
