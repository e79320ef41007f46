"""The instances of other people: their list, the table, and counterexamples as ONNX Runtime sees them."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from certtrain.competition.instances import Instance, Key
from certtrain.competition.results import InstanceResult
from certtrain.properties.cases import Case
from helpers.documents import ROOT
from helpers.onnx_files import node, save

FOREIGN: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "foreign" / "run.py"), run_name="foreign")
WORDS = {"sat", "unsat", "timeout", "unknown", "error"}


def listed(folder: Path, *sets: str) -> list[Any]:
    found: list[Any] = FOREIGN["read_list"](FOREIGN["LIST"], folder, 30.0, sets or None)
    return found


def test_the_list_names_instances_once_with_verdicts_and_times(tmp_path: Path) -> None:
    published = listed(tmp_path)
    assert len({each.instance.key for each in published}) == len(published) == 109
    assert len({each.instance.key.category for each in published}) == 19
    assert {word for each in published for word, _ in each.others} <= WORDS
    assert all(taken > 0 for each in published for _, taken in each.others)
    assert all(each.others for each in published)
    readme = (ROOT / "benchmarks" / "foreign" / "README.md").read_text(encoding="utf-8")
    assert "lists 109 instances" in readme
    assert "19 benchmarks" in readme
    years = {f"| 20{each.instance.key.category[:2]} |" for each in published}
    assert all(year in readme for year in years)


def test_the_table_counts_what_was_tried(tmp_path: Path) -> None:
    published = listed(tmp_path, "22_mnist_fc", "21_test")
    keys = [each.instance.key for each in published]
    words = ["sat", "unsat", "timeout", "unsat"]  # of: unsat published; none; unsat, in 74.8 s; sat, in 7 s
    results = {key: InstanceResult(word, 1.0) for key, word in zip(keys, words, strict=False)}
    _, test, fully_connected, both, _ = FOREIGN["table"](published, results, 30.0).splitlines()
    assert test.split() == ["21_test", "1", "1", "1", "1", "1"]
    assert fully_connected.split() == ["22_mnist_fc", "7", "3", "2", "1", "1"]
    assert both.split() == ["all", "8", "4", "3", "2", "2"]
    instances = [each.instance for each in published]
    assert FOREIGN["contradictions"](instances, results) == [
        "21_test/test_tiny.onnx, 21_test/test_tiny.vnnlib: sat, but unsat is published",
        "22_mnist_fc/mnist-net_256x2.onnx, 22_mnist_fc/prop_1_0.03.vnnlib: unsat, but sat is published",
    ]


def test_files_that_are_absent_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        FOREIGN["main"](["--files", str(tmp_path), "--sets", "21_test"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert f"0 of 1 instances have both files in {tmp_path}" in printed
    with pytest.raises(SystemExit, match="no instance of the sets 99"):
        FOREIGN["main"](["--files", str(tmp_path), "--sets", "99"])


@pytest.mark.parametrize(
    ("point", "problem"),
    [
        ("((X_0 0.5)\n (X_1 0.25)\n (Y_0 0.75))\n", None),
        ("((X_0 0.1)\n (X_1 0.25)\n (Y_0 0.75))\n", "does not confirm"),
        ("((X_0 1.5)\n (X_1 0.25)\n (Y_0 0.75))\n", "lies in no box"),
    ],
)
def test_onnx_runtime_confirms_counterexamples(
    point: str, problem: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network adds its two inputs, and its result must stay below 0.7."""
    save(tmp_path, [node("MatMul", "x w", "y")], ["n", 2], ["n", 1], w=torch.ones(2, 1))
    text = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)\n"
    text += "(assert (and (<= X_0 1) (>= X_0 0) (<= X_1 1) (>= X_1 0)))(assert (>= Y_0 0.7))"
    (tmp_path / "p.vnnlib").write_text(text)
    (tmp_path / "net_p.counterexample").write_text(point)
    instance = Instance(Key("some", "net.onnx", "p.vnnlib"), tmp_path, 1.0)
    found = FOREIGN["unconfirmed"]([instance], {instance.key: InstanceResult("sat", 1.0)}, tmp_path)
    assert [problem in line for line in found] == [True] if problem else found == []
    assert f"confirms {0 if problem else 1} of 1" in capsys.readouterr().out


def test_the_nearest_input_in_the_box_has_no_tolerance() -> None:
    one, row = torch.ones(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    case = Case(0.1 * one, 0.3 * one, row, one)
    for value in (0.1, 0.2, 0.3):
        found = FOREIGN["inside"](value * one, case, torch.float32)
        assert abs(float(found) - value) < 1e-7
        assert 0.1 <= float(found.double()) <= 0.3
    narrow = Case(0.1 * one, 0.1 * one, row, one)
    assert FOREIGN["inside"](0.1 * one, narrow, torch.float32) is None
    assert FOREIGN["inside"](0.1 * one, narrow, torch.float64) == 0.1
