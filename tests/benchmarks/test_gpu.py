"""The measurements on a GPU: what they choose, what they leave out for want of time, and what they keep."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from certtrain import load_model
from certtrain.network.modelfile import write_model
from helpers.commands_of_benchmarks import benchmark
from helpers.tiny_classifier import metadata, network

gpu = benchmark("gpu")
Measured = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def session(tmp_path: Path) -> Any:
    """Nine minutes on a CPU."""
    (tmp_path / "out").mkdir()
    return gpu.Session(tmp_path / "out", tmp_path, "cpu", 9.0, True)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """The command with these options, as the lines that it writes."""

    def run(*options: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out"), *options])
        gpu.main()
        return lines(tmp_path / "out")

    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


def test_parts_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "PIECE", 200)
    described = metadata()
    original = network(described)
    write_model(tmp_path / "model.safetensors", original, described)
    gpu.split(tmp_path / "model.safetensors", tmp_path / "parts")
    assert len(list(tmp_path.glob("parts.*.part"))) > 1
    gpu.join(tmp_path / "parts", tmp_path / "joined.safetensors")
    joined = load_model(tmp_path / "joined.safetensors")
    assert joined.metadata == described
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(joined.state_dict()[name], tensor, rtol=2**-16, atol=0)


def test_the_changes_with_the_most_certified_on_held_out_images_are_chosen(
    session: Any, monkeypatch: pytest.MonkeyPatch
):
    reports = {"as-it-is": 0.30, "clean-statistics": 0.31, "lower-radius": None}  # the last one ran out of time
    given: list[dict[str, Any]] = []

    def run(session: Any, name: str, preset: str, changes: dict[str, Any], seconds: float) -> Any:
        given.append(changes)
        certified = reports.get(name)
        return None if certified is None else SimpleNamespace(certified_accuracy=certified)

    monkeypatch.setattr(gpu, "run", run)
    gpu.choose(session)
    assert all(changes["data.verify_on"] == "validation" for changes in given)
    assert session.best == gpu.CHANGES["clean-statistics"]
    assert lines(session.out)[-1]["certified"] == {"as-it-is": 0.30, "clean-statistics": 0.31}
    gpu.whole(session, "cifar10-speedrun", "speedrun")
    assert given[-1]["train.batch_norm_statistics"] == "clean"
    assert "train.precision" not in given[-1], "the preset has its own"
    assert "data.verify_on" not in given[-1]


def test_nothing_is_chosen_without_time(session: Any):
    session.minutes = 0.4
    gpu.choose(session)
    assert session.best == {}


def test_the_fastest_arithmetic_whose_loss_is_that_of_fp32_is_taken(session: Any, monkeypatch: pytest.MonkeyPatch):
    found = {"fp32": (2.0, 9.0), "tf32": (2.03, 5.0), "bf16": (2.05, 3.0)}  # loss, and seconds an epoch
    session.device = "cuda"

    def short_run(session: Any, name: str) -> list[dict[str, Any]]:
        loss, seconds = found[name]
        return [{"loss": loss, "seconds": 20 + seconds * epoch} for epoch in range(gpu.EPOCHS)]

    monkeypatch.setattr(gpu, "short_run", short_run)
    gpu.precision(session)
    assert (session.fastest, session.epoch_seconds) == ("tf32", 5.0)


def test_a_stage_that_fails_does_not_stop_the_next_ones(measured: Measured, monkeypatch: pytest.MonkeyPatch):
    def fail(session: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "first", fail)
    monkeypatch.setattr(gpu, "steps", lambda session: session.report("steps", ms=1.0))
    first, steps = measured("--only", "first", "steps")[1:3]
    assert first["error"] == "RuntimeError: no such kernel"
    assert steps["ms"] == 1.0


def test_stages_for_which_the_time_is_too_short_are_skipped_and_named(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
):
    for stage in ("first", "steps"):
        monkeypatch.setattr(gpu, stage, lambda session: None)
    begin, *skipped, end = measured("--minutes", "0.5")
    assert (begin["stage"], end["stage"]) == ("begin", "end")
    names = ["precision", "train", "choose", "speedrun", "seed-1", "seed-2"]
    assert [line["stage"] for line in skipped if "skipped" in line] == names


def test_a_training_that_runs_out_of_time_keeps_its_newest_network(session: Any, tmp_path: Path):
    session.more = {"data.examples": 256, "train.epochs": 2, "eps.length": 1, "train.milestones": []}
    gpu.run(session, "train", "digits", session.more, 0.0)
    assert lines(session.out)[-1] == {"stage": "train", "at": lines(session.out)[-1]["at"], "stopped": 0}
    gpu.join(session.out / "train", tmp_path / "joined.safetensors")
    assert load_model(tmp_path / "joined.safetensors").metadata.dataset == "digits"
