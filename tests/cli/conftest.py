"""The command line run in this process, and a small trained network for it."""

from pathlib import Path

import pytest

from helpers.command_line import QUICK, Run, run_here


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return run_here


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = run_here(*QUICK, "--out", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def model(trained: Path) -> Path:
    """A trained model file."""
    return trained / "model.safetensors"
