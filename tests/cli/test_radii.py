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
        (["--eps", "0.1,0.2", "--out", "c.jsonl"], "it takes one radius; --eps has several"),
        (["--eps", "0.1,0.2", "--image", "seven.png"], "it takes one radius; --eps has several"),
        (["--eps", "0.1..0.2"], "needs its number of radii"),
    ],
)
def test_what_does_not_fit_is_refused(run: Run, model: Path, words: list[str], message: str) -> None:
    refused = run("verify", str(model), *words)
    assert refused.code == 2
    assert message in " ".join(refused.err.replace("│", " ").split())


def test_an_interrupt_names_the_missing_radii(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        interrupted = True

    radii = importlib.import_module("certtrain.cli.radii")
    monkeypatch.setattr(radii, "Stopper", lambda seconds, on_interrupt: Interrupted())
    done = run("verify", str(model), "--eps", "0.1,0.2")
    assert (done.code, done.out) == (130, "")
    assert "these radii are missing: 0.1, 0.2" in done.err
