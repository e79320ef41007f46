"""A page of the documentation: its fenced blocks, and running them as they stand."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.command_line import Outcome, run_here

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


class Block(NamedTuple):
    """A fenced block. `file` is the name in its first line's comment, if there is one."""

    language: str
    text: str
    file: str | None


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", page, flags=re.M | re.S):
        name = re.match(r"# ([\w-]+\.(?:py|toml))\n", text)
        found.append(Block(language, text, name and name[1]))
    return found


def commands(page: str) -> list[str]:
    """The page's shell blocks."""
    return [block.text for block in blocks(page) if block.language == "sh"]


def run(block: str, folder: Path) -> str:
    """What the lines of a shell block print in `folder`, one command each; any failure of a line is an error.

    `certtrain` is run in this process, which has loaded torch; `python` in another, with this checkout as certtrain.
    """
    return "".join(_run_line(shlex.split(line, comments=True), folder) for line in block.splitlines())


def _run_line(words: list[str], folder: Path) -> str:
    terminal = {"COLUMNS": "160", "PYTHONIOENCODING": "utf-8", "CERTTRAIN_CACHE": str(folder / ".cache")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in (terminal | {"PYTHONPATH": str(ROOT)}).items():
            patch.setenv(name, value)
        code, out, err = _PROGRAMS[words[0]](*words[1:])
    assert code == 0, err
    return out


def _python(*words: str) -> Outcome:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


_PROGRAMS = {"certtrain": run_here, "python": _python}
