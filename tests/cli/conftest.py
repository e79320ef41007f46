"""The command line run in this process, and a small trained network for it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from certtrain import cli
from helpers.command_line import QUICK, Outcome, Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> Outcome:
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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    subprocess.run(
        [sys.executable, "-m", "certtrain", *QUICK, "--out", str(folder)], check=True, capture_output=True, timeout=120
    )
    return folder


@pytest.fixture(scope="session")
def model(trained: Path) -> Path:
    """A trained model file."""
    return trained / "model.safetensors"
