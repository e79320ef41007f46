"""The README's commands exist, and its Python runs."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from certtrain import cli
from certtrain.spec.epsilon import parse_eps
from certtrain.spec.preset import load_preset

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.M | re.S)


def test_the_first_two_blocks_are_one_line_each() -> None:
    first, second = _blocks("sh")[:2]
    assert first.count("\n") == second.count("\n") == 1
    assert "certtrain train --preset digits" in first
    assert second.strip().endswith("-m pytest")
    for command in (first, second):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")


def test_every_command_and_option_named_is_there() -> None:
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    calls = re.findall(rf"certtrain ({'|'.join(commands)})\b([^\n`]*)", "\n".join(_blocks("sh")))
    assert {name for name, _ in calls} == set(commands)
    for name, rest in calls:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest.split("#")[0])) <= known


def test_the_table_of_presets_says_what_they_say() -> None:
    section = TEXT.partition("## Presets")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.-]+)` \| ([^|]+) \| ([^|]+) \| `([\w-]+)` \|", section, flags=re.M)
    assert len(rows) > 5
    for name, data, eps, objective in rows:
        preset = load_preset(name)
        assert (preset.eps.max, preset.objective.name) == (parse_eps(eps), objective)
        assert preset.data.name in re.sub(r"\W", "", data).lower()
    assert "(docs/presets.md)" in section  # all of them


def test_the_public_names_are_all_there() -> None:
    import certtrain

    for name in re.findall(r"^\| `(\w+)\(", TEXT, flags=re.M):
        assert name in certtrain.__all__


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = _blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert "'misclassified'" not in capsys.readouterr().out, "the labels are the network's own"
