"""certtrain presets: the table, one preset, JSON."""

import json
from pathlib import Path

import pytest

from certtrain.spec.preset import load_preset, preset_names
from helpers.command_line import Run


def test_the_table_has_every_preset(run: Run) -> None:
    rows = [row.split() for row in run("presets").out.splitlines()[1:-1]]
    assert [row[0] for row in rows if len(row) > 1] == preset_names()
    assert [row[0] for row in rows if len(row) == 1] == ["cifar10", "digits", "mnist", "tinyimagenet"]
    (digits,) = [row for row in rows if row[0] == "digits" and len(row) > 1]
    assert digits[1:5] == ["0.1", "ibp", "cnn", "50"]
    assert "23 s on two CPU cores" in " ".join(digits)


def test_a_narrow_terminal_shows_each_preset_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from certtrain.render import console

    monkeypatch.setattr(console.out, "_width", 80)
    lines = run("presets").out.splitlines()
    assert len(lines) <= len(preset_names()) + 7
    assert all(len(line) <= 80 for line in lines)
    assert "23 s on two CPU cores" not in "\n".join(lines)


def test_the_list_as_json(run: Run) -> None:
    rows = {row["name"]: row for row in json.loads(run("presets", "--json").out)}
    row = rows["cifar10-8-255-mtl-ibp"]
    assert (row["data"], row["eps"], row["objective"], row["network"]) == ("cifar10", 8 / 255, "mtl-ibp", "cnn7")
    assert row["source"].startswith("CTBench's settings")


def test_one_preset_can_be_saved_and_used(run: Run, tmp_path: Path) -> None:
    shown = run("presets", "digits")
    assert shown.code == 0, shown.err
    (tmp_path / "mine.toml").write_text(shown.out, encoding="utf-8")
    assert load_preset(tmp_path / "mine.toml") == load_preset("digits")
    assert run("presets", "mine.toml").out.splitlines()[-1] == shown.out.splitlines()[-1]


def test_one_preset_as_json(run: Run) -> None:
    found = json.loads(run("presets", "cifar10-8-255-mtl-ibp", "--json").out)
    fields = {field["field"]: field for field in found["fields"]}
    assert found["extends"] == ["cifar10-8-255", "cifar10-160ep"]
    assert (fields["objective.alpha"]["value"], fields["objective.alpha"]["set"]) == (0.6, True)
    assert fields["train.momentum"]["set"] is False
    assert "the weight of the bounds" in fields["objective.alpha"]["meaning"].lower()


def test_an_unknown_preset_ends_with_the_known_ones(run: Run) -> None:
    refused = run("presets", "none")
    assert (refused.code, "digits" in refused.err) == (1, True)
