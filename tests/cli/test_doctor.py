"""certtrain doctor: its results, and its exit code."""

import json
from collections.abc import Iterator

import pytest

from certtrain.doctor.checking import Absent, Check
from helpers.command_line import Run


def broken() -> str:
    raise RuntimeError("is broken")


def absent() -> str:
    raise Absent("is not here", "get it")


def use(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    def all_checks(preset: str, device: str) -> Iterator[Check]:
        yield from checks

    monkeypatch.setattr("certtrain.doctor.checks.all_checks", all_checks)


def test_all_is_well_though_something_is_absent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Check("one", lambda: "1.0", "", True), Check("two", absent, ""), Check("three", broken, "mend it"))
    done = run("doctor")
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["one", "pass", "1.0"]
    assert ["two", "absent", "is", "not", "here"] in lines
    assert ["→", "get", "it"] in lines
    assert ["three", "fails", "RuntimeError:", "is", "broken"] in lines
    assert lines[-1] == ["certtrain", "works", "here"]


def test_a_broken_need_ends_with_an_error_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Check("one", lambda: "1.0", ""), Check("two", broken, "mend it", True))
    done = run("doctor")
    assert (done.code, done.out.splitlines()[-1]) == (1, "certtrain does not work here: see two")
    found = run("doctor", "--json")
    assert found.code == 1
    parsed = json.loads(found.out)
    assert parsed["works"] is False
    assert [(check["name"], check["status"]) for check in parsed["checks"]] == [("one", "pass"), ("two", "fails")]


def test_an_unknown_preset_is_an_error(run: Run) -> None:
    refused = run("doctor", "--preset", "none")
    assert (refused.code, "there is no preset 'none'" in refused.err) == (1, True)
