"""The command line where its output is full, closed, or of few characters."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from certtrain import cli
from certtrain.cli.output import REPLACEMENTS
from helpers.command_line import TINY, run_here

TRAIN = ["train", "--preset", "digits", "--epochs", "1", *TINY, "--out", "run"]
NAMES = ["snow-\u2603"]  # of files
COMMANDS = {
    "help": ["--help"],
    "version": ["--version"],
    "train --help": ["train", "--help"],
    "verify --help": ["verify", "--help"],
    "init": ["init", "--preset", "digits", *TINY, "--limit", "20", "--out", "other.safetensors", "--force"],
    "init --json": ["init", "--preset", "digits", *TINY, "--limit", "20", "--compare", "--json"],
    "stats": ["stats", "m.safetensors", "--limit", "50"],
    "stats --json": ["stats", "m.safetensors", "--limit", "50", "--json"],
    "verify": ["verify", "m.safetensors", "--limit", "20"],
    "verify --json": ["verify", "m.safetensors", "--limit", "20", "--json"],
    "check": ["check", "c.jsonl", "m.safetensors"],
    "check --json": ["check", "c.jsonl", "m.safetensors", "--json"],
    "decide": ["decide", "m.safetensors", "p.vnnlib"],
    "decide --json": ["decide", "m.safetensors", "p.vnnlib", "--json"],
    "export": ["export", "m.safetensors", "--weights", "folded.safetensors", "--force"],
    **{name: ["stats", f"{name}.safetensors", "--limit", "50"] for name in NAMES},
    "train": TRAIN,
    "train --json": [*TRAIN, "--json"],
}
# Latin-1 has all that ASCII has, so that what every command prints needs to be tried with ASCII alone.
IN_LATIN = {name: COMMANDS[name] for name in ("stats", "stats --json", *NAMES)}
PROPERTY = "\n".join(
    [
        *(f"(declare-const X_{pixel} Real)" for pixel in range(64)),
        *(f"(declare-const Y_{label} Real)" for label in range(10)),
        *(f"(assert (and (>= X_{pixel} 0) (<= X_{pixel} 0.1)))" for pixel in range(64)),
        "(assert (>= Y_0 Y_1))",
    ]
)
FULL = Path("/dev/full")
pytestmark = pytest.mark.slow
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")

# A process for each kind of output, forked from one that has loaded torch; each command has a standard output of its
# own. Pages, which are not printed, are not drawn.
RUN_ALL = """
import io, json, os, shutil, sys
from certtrain import cli, render
from certtrain.training import api, completion
completion.write_report = lambda run, path: path.write_text("drawn")
completion.write_sheets = lambda model, images, report, folder: None
kept = []
def outcome(kind, words):
    shutil.rmtree("run", ignore_errors=True)
    render.console.out.quiet = False  # as Rich leaves it where a pipe is closed
    if kind == "closed":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open("/dev/full" if kind == "full" else "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(writing, 1)
    sys.stdout = open(1, "w", encoding="utf-8" if kind in ("full", "closed") else kind, closefd=False)
    sys.stderr, sys.argv = io.StringIO(), ["certtrain", *words]
    kept.append(sys.stdout)  # what is not written would be complained of
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    text = open("out", encoding=kind).read() if kind in ("ascii", "latin-1") else ""
    return code, sys.stderr.getvalue(), text, os.path.exists("run")
for kind, commands in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        found = {name: outcome(kind, words) for name, words in commands.items()}
        with open(f"{kind}.json", "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.wait()
"""


class Outcome(NamedTuple):
    """What a command left behind: its exit code, both streams, and whether there is a run's folder."""

    code: int
    err: str
    out: str
    run: bool


All = dict[str, dict[str, Outcome]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> All:
    """For each kind of output (full, closed, or an encoding's name) what becomes of each command."""
    place = tmp_path_factory.mktemp("output")
    (place / "p.vnnlib").write_text(PROPERTY)
    for words in (
        ["init", "--preset", "digits", *TINY, "--limit", "20", "--out", "m.safetensors"],
        ["verify", "m.safetensors", "--limit", "20", "--out", "c.jsonl"],
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            assert run_here(*words).code == 0
    for name in NAMES:
        shutil.copy(place / "m.safetensors", place / f"{name}.safetensors")

    asked = {"full": COMMANDS, "closed": COMMANDS, "ascii": COMMANDS, "latin-1": IN_LATIN}
    if not FULL.exists():
        del asked["full"]
    command = [sys.executable, "-c", RUN_ALL, json.dumps(asked)]
    subprocess.run(command, check=True, capture_output=True, cwd=place)
    return {kind: _outcomes(place / f"{kind}.json") for kind in asked}


def _outcomes(path: Path) -> dict[str, Outcome]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: Outcome(*values) for name, values in found.items()}


@needs_full
@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_is_full_is_one_error(name: str, outcomes: All) -> None:
    found = outcomes["full"][name]
    assert (found.code, found.err) == (1, "error: cannot write to the standard output: No space left on device\n")
    assert not found.run  # nothing is in the way of the next try


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_is_closed_ends_it_quietly(name: str, outcomes: All) -> None:
    found = outcomes["closed"][name]
    assert (found.code, found.err, found.run) == (1, "", False)


@pytest.mark.parametrize(
    ("encoding", "name"), [*(("ascii", name) for name in COMMANDS), *(("latin-1", name) for name in IN_LATIN)]
)
def test_any_encoding_will_do(encoding: str, name: str, outcomes: All) -> None:
    found = outcomes[encoding][name]
    assert (found.code, found.err) == (0, "")
    if "--json" in COMMANDS[name]:
        assert [json.loads(part) for part in (found.out.splitlines() if name.startswith("train") else [found.out])]
    elif name not in ("version", "decide", "export", *NAMES):
        assert "eps" in found.out
    assert ("?" in found.out) == (name in NAMES)


def test_what_an_encoding_lacks_is_spelt(outcomes: All) -> None:
    text = outcomes["ascii"]["stats"].out
    assert "m: digits, train set, 50 examples, eps = 0.02" in text
    assert "# active = unstable . inactive" in text
    assert all(words.isascii() for words in REPLACEMENTS.values())


@needs_full
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["train", "--help"]])
def test_the_program_ends_with_nothing_more_to_say(words: list[str], buffered: bool) -> None:
    command = [sys.executable, *([] if buffered else ["-u"]), "-m", "certtrain", *words]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with FULL.open("w", encoding="utf-8") as output:
        full = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env=own)
    assert full.returncode == 1
    assert full.stderr == "error: cannot write to the standard output: No space left on device\n"
    shell = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, env=own
    )  # closed from the start
    assert (shell.returncode, shell.stderr) == (0, "")


def test_failures_of_other_files_are_not_taken_for_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(OSError, match="Input/output error"):
        cli.main()
