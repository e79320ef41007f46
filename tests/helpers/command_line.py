"""A command line as a test gives it, run in this process, and what it leaves behind."""

import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from certtrain import cli
from helpers.small_runs import without_pages

TINY = ["--set", "model={name='mlp', hidden=[8]}", "--set", "eps={max=0.02, start=1, length=1}"]
QUICK = ["train", "--preset", "digits", "--epochs", "2", *TINY]


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """All that was written, without its breaks of lines."""
        return " ".join(f"{self.out} {self.err}".split())


Run = Callable[..., Outcome]


def run_here(*words: object) -> Outcome:
    """Run the command line in this process, with these words."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["certtrain", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return Outcome(code, out.getvalue(), err.getvalue())


def run_in(folder: Path, *words: object) -> None:
    """Run the command line as the whole of a process of its own, in the folder and without pages."""
    torch.set_num_threads(1)
    os.chdir(folder)
    with without_pages():
        done = run_here(*words)
    sys.exit(done.code)
