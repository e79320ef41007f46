"""A page of the documentation: its fenced blocks, and running them as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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


def run(command: str, folder: Path) -> str:
    """What a shell block prints in `folder`, with this checkout as certtrain; any failure of a line is an error."""
    programs = folder / ".programs"
    programs.mkdir(exist_ok=True)
    for name, program in {"certtrain": f"{sys.executable} -m certtrain", "python": sys.executable}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        (programs / name).chmod(0o755)
    paths = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    terminal = {"COLUMNS": "160", "PYTHONIOENCODING": "utf-8", "CERTTRAIN_CACHE": str(folder / ".cache")}
    done = subprocess.run(
        ["sh", "-ec", command],
        cwd=folder,
        env=os.environ | paths | terminal,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
