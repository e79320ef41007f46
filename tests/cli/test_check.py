"""certtrain check: certificates that hold, and that do not."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.command_line import TINY, Run


def test_a_check_says_what_holds(run: Run, model: Path) -> None:
    assert "wrote c.jsonl" in run("verify", str(model), "--limit", "30", "--network", "folded", "--out", "c.jsonl").out
    whole = run("check", "c.jsonl", str(model))
    assert whole.code == 0, whole.err
    assert "all 30 records hold (ε = 0.02, the network as folded, float32, method ibp)" in whole.out
    part = run("check", "c.jsonl", str(model), "--limit", "10").out
    assert "partial check: the first 10 of 30 records hold" in part


def test_what_a_verification_takes_from_a_file_is_said(run: Run, model: Path) -> None:
    words = ("verify", str(model), "--limit", "30", "--out", "c.jsonl")
    assert "unchecked" not in run(*words).err
    assert "30 results taken from c.jsonl unchecked; `certtrain check` computes them again" in run(*words).err


def test_a_check_of_another_model_or_a_changed_record_fails(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("verify", str(model), "--limit", "30", "--out", "c.jsonl").code == 0
    assert run("init", "-p", "digits", *TINY, "--out", "fresh.safetensors").code == 0
    refused = run("check", "c.jsonl", "fresh.safetensors")
    assert (refused.code, refused.out) == (1, "")
    assert "c.jsonl is about another model than fresh.safetensors: the weights differ" in refused.err
    text = (tmp_path / "c.jsonl").read_text()
    (tmp_path / "c.jsonl").write_text(text.replace('"margin":', '"margin":1', 1))
    assert "one of them was changed" in run("check", "c.jsonl", str(model)).err


def test_certificates_that_do_not_hold_have_an_exit_code(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("verify", model, "--limit", "30", "--out", "c.jsonl").code == 0
    resealed(tmp_path / "c.jsonl", lambda record: {**record, "margin": 2 * record["margin"]})
    done = run("check", "c.jsonl", model)
    assert (done.code, done.out) == (3, "")
    assert "c.jsonl does not hold: example" in done.err


def resealed(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change every certified record of the file, and write a seal that fits."""
    header, *points, seal = [json.loads(line) for line in path.read_text().splitlines()]
    points = [change(point) if point["verdict"] == "certified" else point for point in points]
    body = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in [header, *points])
    seal["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    path.write_text(body + json.dumps(seal, separators=(",", ":")) + "\n")
