"""Values of options, groups of options, and their completion in a shell."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from certtrain.cli import COMMANDS, app
from certtrain.cli.groups import with_groups
from certtrain.cli.options import memory_size
from certtrain.spec.choices import MethodName, Precision
from helpers.command_line import Run


@pytest.mark.parametrize(("text", "size"), [
    ("500MB", 500 * 10**6), ("1.5GiB", 3 * 2**29), ("2gib", 2**31), ("77", 77), ("10B", 10), ("3KiB", 3072)
])  # fmt: skip
def test_memory_is_written_with_a_unit(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "GiB", "1 parsec", "1e9", "0.2B", "nan", "9" * 400])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not an amount of memory"):
        memory_size(text)


@dataclass(frozen=True)
class Own:
    """What comes first."""

    first: Annotated[int, typer.Option(help="A number.")] = 1


@dataclass(frozen=True)
class Other:
    """What comes second."""

    second: Annotated[Literal["a", "b"], typer.Option(help="A letter.")] = "a"


def test_a_group_of_options_is_shown_and_given_as_one() -> None:
    seen: list[object] = []

    def command(name: Annotated[str, typer.Argument()], own: Own, other: Other) -> None:
        """Do it."""
        seen.append((name, own, other))

    own = typer.Typer(add_completion=False)
    own.command()(with_groups(command))
    assert CliRunner().invoke(own, ["x", "--second", "b"]).exit_code == 0
    assert seen == [("x", Own(1), Other("b"))]
    assert CliRunner().invoke(own, ["x", "--second", "c"]).exit_code == 2
    titles = {parameter.name: getattr(parameter, "rich_help_panel", None) for parameter in get_command(own).params}
    assert titles == {"name": None, "first": None, "second": "What comes second"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", list(COMMANDS)),
        ("verify --method ", list(get_args(MethodName))),
        ("verify --method c", ["crown-ibp", "crown", "complete"]),
        ("decide --method c", ["crown-ibp", "complete"]),
        ("verify --c", []),
        ("train --preset dig", ["digits"]),
        ("init -p tinyimagenet-w", ["tinyimagenet-wide-resnet"]),
        ("presets mnist-0.3-c", ["mnist-0.3-cc-ibp", "mnist-0.3-crown-ibp"]),
        ("train --precision ", list(get_args(Precision))),
    ],
)
def test_a_shell_completes_commands_options_and_names(line: str, words: list[str]) -> None:
    shell = {"COMP_WORDS": f"certtrain {line}", "COMP_CWORD": str(len(line.split(" ")))}
    program = "import sys; sys.argv = ['certtrain']; from certtrain.cli import main; main()"
    environment = os.environ | shell | {"_CERTTRAIN_COMPLETE": "complete_bash"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == words


ARGUMENTS = {"check": ["c", "m"], "decide": ["n", "p"], "bench": ["i"], "compare": ["r"], "tune": ["digits"]}
OF_PYDANTIC = re.compile(r"Value error|should (be|have|match)|unable to parse|Errno|Extra inputs|Field required")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_message_about_a_wrong_value_is_in_the_words_of_a_library(run: Run, name: str) -> None:
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    options = [p.opts[0] for p in command.params if p.param_type_name == "option" and not p.is_flag]
    for option in options:
        for value in ("wr ong", "-1"):
            done = run(name, *ARGUMENTS.get(name, []), f"{option}={value}")
            said = " ".join(done.err.replace("│", " ").split())
            assert done.code in (1, 2), (option, value)
            assert not OF_PYDANTIC.search(said), said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "pgd"], "Invalid value for '--method': 'pgd' is not one of 'auto', 'ibp', 'crown-ibp'"),
        (["--limit", "many"], "Invalid value for '--limit': must be a whole number, not 'many'"),
        (["--limit", "0"], "Invalid value for '--limit': must be at least 1, not "),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(run: Run, words: list[str], message: str) -> None:
    done = run("verify", *words)
    assert (done.code, message in " ".join(done.err.replace("│", " ").split())) == (2, True)


@pytest.mark.parametrize("words", [["verify"], ["stats"], ["export"], ["train", "-p", "digits", "--from"]])
def test_a_path_that_cannot_be_is_one_error(run: Run, words: list[str]) -> None:
    done = run(*words, "a" * 5000)
    assert (done.code, "there can be no model file" in done.err) == (1, True)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_no_word_of_the_help_is_broken(run: Run, monkeypatch: pytest.MonkeyPatch, name: str | None, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = run(*([] if name is None else [name]), "--help")
    assert max(map(len, done.out.splitlines())) <= width
    shown = set(done.out.replace("│", " ").split())
    program = get_command(app)
    command = program if name is None else program.commands[name]  # type: ignore[attr-defined]
    texts = [command.help, *(parameter.help for parameter in command.params if not parameter.hidden)]
    metavars = [str(parameter.metavar) for parameter in command.params if parameter.metavar and not parameter.hidden]
    choices = [f"<{'|'.join(each)}>" for each in _short_choices(command)]
    lost = {word for text in (*texts, *metavars, *choices) for word in text.split()} - shown
    assert lost == set()


def _short_choices(command: Any) -> list[tuple[str, ...]]:
    """The choices that stand in place of a value's name."""
    hints = get_type_hints(command.callback, include_extras=True) if command.callback else {}
    own = {p.name for p in command.params if p.metavar is None and not p.hidden}
    kinds = [part for name in own & hints.keys() for part in (get_args(hints[name])[0],)]
    kinds += [part for kind in kinds for part in get_args(kind)]
    return [get_args(kind) for kind in kinds if get_origin(kind) is Literal]
