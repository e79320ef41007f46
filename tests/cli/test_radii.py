"""certtrain verify --eps with several radii."""

import importlib
import json
from pathlib import Path

import pytest

from helpers.command_line import Run
from helpers.html_pages import Page


def test_a_table_and_a_page_of_accuracies_against_eps(run: Run, model: Path, tmp_path: Path) -> None:
    words = ["verify", str(model), "--eps", "0..0.08:3", "--limit", "60", "--html", "sweep.html"]
    done = run(*words)
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines() if line.startswith("0")]
    assert [row[0] for row in rows] == ["0", "0.04", "0.08"]
    assert rows[0][1] == rows[0][2] == rows[0][3], "without a perturbation all that is right is certified"
    assert "mean certified radius, among these radii" in done.out
    text = (tmp_path / "sweep.html").read_text()
    page = Page(text)
    assert text.count("<svg") == 1
    assert [row[:4] for row in page.tables[0][1:]] == [row[:4] for row in rows]
    assert not [target for target in page.loads if not target.startswith("#")]
    refused = run(*words)
    assert (refused.code, "exists already" in refused.err) == (1, True)
    assert run(*words, "--force", "--json").code == 0


def test_each_image_has_its_radius_in_json(run: Run, model: Path) -> None:
    found = json.loads(run("verify", str(model), "--eps", "2/255,0.08", "--limit", "30", "--json").out)
    assert [each["eps_text"] for each in found["radii"]] == ["2/255", "0.08"]
    assert len(found["certified_radius"]) == 30
    assert {each["certified_eps"] for each in found["certified_radius"]} <= {None, 2 / 255, 0.08}
    single = json.loads(run("verify", str(model), "--eps", "0.08", "--limit", "30", "--json").out)
    assert found["radii"][1]["certified"] >= single["certified"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eps", "0.1,0.2", "--image", "seven.png"], "it takes one radius; --eps has several"),
        (["--eps", "0.1..0.2"], "needs its number of radii"),
    ],
)
def test_what_does_not_fit_is_refused(run: Run, model: Path, words: list[str], message: str) -> None:
    refused = run("verify", str(model), *words)
    assert refused.code == 2
    assert message in " ".join(refused.err.replace("│", " ").split())


SWEEP = ("--eps", "2/255,0.05,0.08", "--limit", "40", "--method", "auto", "--timeout", "none", "--out", "c.jsonl")
FILES = ("c-2_255.jsonl", "c-0.05.jsonl", "c-0.08.jsonl")


def test_each_radius_has_the_certificate_file_that_it_has_alone(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("verify", model, *SWEEP)
    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == sorted(FILES)
    assert all(f"wrote {name}" in done.out for name in FILES)
    alone = run("verify", model, "--eps", "0.05", *SWEEP[2:-1], "alone.jsonl")
    assert alone.code == 0, alone.err
    assert verdicts(tmp_path / FILES[1]) == verdicts(tmp_path / "alone.jsonl")
    for name in FILES:
        checked = run("check", name, model)
        assert checked.code == 0, checked.err


def test_several_radii_go_on_where_they_were_stopped(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(run("verify", model, *SWEEP, "--json").out)
    sealed = {name: (tmp_path / name).read_bytes() for name in FILES}
    (tmp_path / FILES[0]).unlink()
    lines = sealed[FILES[2]].splitlines(keepends=True)
    (tmp_path / FILES[2]).write_bytes(b"".join(lines[:20]) + lines[20][:9])
    monkeypatch.setattr("sys.argv", ["certtrain", "verify"])
    done = run("verify", model, *SWEEP, "--json")
    assert done.code == 0, done.err
    again = json.loads(done.out)
    assert again["certified_radius"] == whole["certified_radius"]
    assert again["out"] == list(FILES)
    assert (tmp_path / FILES[1]).read_bytes() == sealed[FILES[1]], "nothing of it was computed again"
    assert (tmp_path / FILES[2]).read_bytes().startswith(b"".join(lines[:20]))
    assert [run("check", name, model).code for name in FILES] == [0, 0, 0]


def test_a_file_of_another_task_is_refused_before_any_radius(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("verify", model, "--eps", "0.08", "--limit", "5", "--out", FILES[2]).code == 0
    done = run("verify", model, *SWEEP)
    assert (done.code, "c-0.08.jsonl was written for another task" in done.err) == (1, True)
    assert [path.name for path in tmp_path.glob("*.jsonl")] == [FILES[2]]
    assert run("verify", model, *SWEEP, "--force").code == 0


def verdicts(path: Path) -> dict[int, tuple[str, str | None]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["index"]: (line["verdict"], line["method"]) for line in lines if line["kind"] == "point"}


def test_an_interrupt_names_the_missing_radii(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        interrupted = True

    radii = importlib.import_module("certtrain.cli.radii")
    monkeypatch.setattr(radii, "Stopper", lambda seconds, on_interrupt: Interrupted())
    done = run("verify", str(model), "--eps", "0.1,0.2")
    assert (done.code, done.out) == (130, "")
    assert "these radii are missing: 0.1, 0.2" in done.err


def test_an_interrupt_gives_the_limits_at_the_radius_that_it_stopped(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stops:
        def __init__(self, seconds: float | None, on_interrupt: object) -> None:
            self.asked = 0

        @property
        def interrupted(self) -> bool:
            self.asked += 1
            return self.asked > 12  # between the batches of the first radius

    monkeypatch.setattr(importlib.import_module("certtrain.cli.radii"), "Stopper", Stops)
    done = run("verify", str(model), "--eps", "0.1,0.2", "--attack", "none", "--batch-size", "20", "--method", "ibp")
    assert done.code == 130
    assert "stopped at ε = 0." in done.out
    assert "robust accuracy lies between" in done.out
