"""A page of the documentation: its fenced blocks, and running them as they stand."""

import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from helpers.command_line import run_here

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

    `certtrain` and `python` are run in this process, which has loaded torch; what a script imports from the folder is
    forgotten after it.
    """
    return "".join(_run_line(shlex.split(line, comments=True), folder) for line in block.splitlines())


def _run_line(words: list[str], folder: Path) -> str:
    terminal = {"COLUMNS": "160", "PYTHONIOENCODING": "utf-8", "CERTTRAIN_CACHE": str(folder / ".cache")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in terminal.items():
            patch.setenv(name, value)
        return _PROGRAMS[words[0]](*words[1:])


def _certtrain(*words: str) -> str:
    code, out, err = run_here(*words)
    assert code == 0, err
    return out


def _python(script: str) -> str:
    out, before = io.StringIO(), set(sys.modules)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.syspath_prepend(".")
        runpy.run_path(script, run_name="__main__")
        for name in set(sys.modules) - before:
            if _is_in(Path.cwd(), sys.modules[name]):
                del sys.modules[name]
    return out.getvalue()


def _is_in(folder: Path, module: ModuleType) -> bool:
    return Path(getattr(module, "__file__", None) or "/").resolve().is_relative_to(folder.resolve())


_PROGRAMS = {"certtrain": _certtrain, "python": _python}
