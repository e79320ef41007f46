"""certtrain bench: the instances of a benchmark, from their list to the table."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from certtrain.cli.exit_codes import ExitCode
from certtrain.competition import running
from certtrain.competition.instances import Instance
from certtrain.competition.results import InstanceResult
from certtrain.competition.running import Done
from certtrain.interchange.vnnlib import read_property
from helpers.command_line import Run


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A list of three instances whose files are there, and are empty."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in ("net.onnx", "p.vnnlib", "q.vnnlib.gz", "r.vnnlib"):
        (folder / name).touch()
    (folder / "instances.csv").write_text("net.onnx,p.vnnlib,60,sat\nnet.onnx,q.vnnlib,60,unsat\nnet.onnx,r.vnnlib,5\n")
    return folder / "instances.csv"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Instance]:
    """Results without processes: sat, sat, error …; returns the instances that were run."""
    found: list[Instance] = []
    results = [InstanceResult("sat", 1.0), InstanceResult("sat", 2.5), InstanceResult("error", 0.5)]

    def run(instances: list[Instance], options: object, **more: object) -> Iterator[Done]:
        found.extend(instances)
        for each, end in zip(instances, results, strict=False):
            yield Done(each, end, {"message": "no memory"} if end.word == "error" else {})

    monkeypatch.setattr(running, "run_instances", run)
    return found


def test_a_run_prints_each_instance_and_a_table_and_what_contradicts(
    run: Run, benchmark: Path, ran: list[Instance]
) -> None:
    done = run("bench", benchmark, "--timeout", "30s")
    assert done.code == ExitCode.DOES_NOT_HOLD
    assert done.err == ""
    assert [each.time_limit for each in ran] == [30, 30, 5]
    lines = done.out.splitlines()
    assert lines[0].split() == ["1/3", "sat", "1.00", "s", "net.onnx", "p.vnnlib"]
    assert lines[3].strip() == "no memory"
    assert re.split(r"\s{2,}", lines[4]) == [
        "category", "tried", "sat", "unsat", "unknown", "timeout", "error", "seconds", "differ"
    ]  # fmt: skip
    assert lines[5].split() == ["mnist", "3", "2", "0", "0", "0", "1", "4.0", "1", "of", "2"]
    assert lines[6] == "! mnist: net.onnx, q.vnnlib: sat, but unsat was expected"
    assert Path("results.csv").read_text().splitlines()[2] == "mnist,net.onnx,r.vnnlib,0,error,0.500"


def test_several_lists_have_a_row_each_and_one_for_all(run: Run, benchmark: Path, ran: list[Instance]) -> None:
    benchmark.write_text("net.onnx,p.vnnlib,60,sat\nnet.onnx,q.vnnlib,60,unsat\n")
    other = benchmark.parent.parent / "cifar" / "instances.csv"
    other.parent.mkdir()
    other.write_text("../mnist/net.onnx,../mnist/r.vnnlib,5\n")
    rows = [line.split() for line in run("bench", other, benchmark).out.splitlines()[5:8]]
    assert rows[0] == ["cifar", "1", "1", "0", "0", "0", "0", "1.0", "0", "of", "0"]
    assert rows[1] == ["mnist", "2", "1", "0", "0", "0", "1", "3.0", "0", "of", "1"]
    assert rows[2] == ["all", "3", "2", "0", "0", "0", "1", "4.0", "0", "of", "1"]
    shown = run("bench", benchmark, "--out", "other.csv", "--json")
    assert json.loads(shown.out)["contradictions"] == [
        {"category": "mnist", "network": "net.onnx", "property": "q.vnnlib", "result": "sat", "expected": "unsat"}
    ]


def test_the_same_command_runs_nothing_twice(run: Run, benchmark: Path, ran: list[Instance]) -> None:
    assert run("bench", benchmark, "--out", "r.csv").code == ExitCode.DOES_NOT_HOLD
    benchmark.write_text(benchmark.read_text() + "net.onnx,p.vnnlib,60\n./net.onnx,p.vnnlib,60\n")
    again = run("bench", benchmark, "--out", "r.csv")
    assert "3 of 4 instances have a result already" in again.err
    assert [each.key.network for each in ran] == ["net.onnx"] * 3 + ["./net.onnx"]
    assert "4/4  sat" in again.out
    refused = run("bench", benchmark, "--out", "r.csv", "--method", "milp")
    assert (refused.code, refused.out) == (1, "")
    assert "method was complete, now milp" in refused.err
    assert run("bench", benchmark, "--out", "r.csv", "--method", "milp", "--force").code == ExitCode.DOES_NOT_HOLD
    assert len(ran) == 8


def test_files_that_are_absent_are_told(run: Run, benchmark: Path, ran: list[Instance]) -> None:
    (benchmark.parent / "q.vnnlib.gz").unlink()
    found = run("bench", benchmark, "--json")
    assert "1 of 3 instances lack a file" in found.err
    assert f"{benchmark.parent / 'q.vnnlib'}" in found.err
    shown = json.loads(found.out)
    assert shown["categories"]["mnist"]["absent"] == 1
    assert shown["categories"]["mnist"]["instances"] == 2
    (benchmark.parent / "net.onnx").unlink()
    none = run("bench", benchmark, "--out", "other.csv")
    assert (none.code, none.out) == (1, "")
    assert not Path("other.csv").exists()


def test_a_fault_in_an_instance_and_a_stop_have_their_exit_codes(
    run: Run, benchmark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(instances: list[Instance], options: object, **more: object) -> Iterator[Done]:
        yield Done(instances[0], InstanceResult("error", 1.0), {"message": "falsified", "exit_code": 4})

    def stops(instances: list[Instance], options: object, **more: object) -> Iterator[Done]:
        signal.raise_signal(signal.SIGTERM)
        yield from ()

    monkeypatch.setattr(running, "run_instances", fails)
    assert run("bench", benchmark).code == ExitCode.FAULT
    monkeypatch.setattr(running, "run_instances", stops)
    stopped = run("bench", benchmark, "--force")
    assert stopped.code == ExitCode.INTERRUPTED
    assert f"continue with: certtrain bench {benchmark}\n" in stopped.err


def test_verdicts_of_another_verifier_are_compared(run: Run, benchmark: Path, ran: list[Instance]) -> None:
    Path("theirs.csv").write_text("mnist,b/mnist/net.onnx,b/mnist/r.vnnlib.gz,1,unsat,4\nm,net.onnx,q.vnnlib,1,sat,1\n")
    found = run("bench", benchmark, "--expected", "theirs.csv", "--json")
    assert found.code == 0
    assert json.loads(found.out)["categories"]["mnist"]["expected"] == 2


def test_instances_are_decided_in_processes_of_their_own(run: Run, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX export needs the extra 'onnx'")
    assert run("export", model, "--vnnlib", "props", "--count", "1", "--eps", "0.9", "--limit", "5").code == 0
    Path("props/bad.vnnlib").write_text("(assert")
    Path("props/instances.csv").write_text("model.onnx,point_00000.vnnlib,60\nmodel.onnx,bad.vnnlib,60\n")
    words = ["bench", "props/instances.csv", "--jobs", "2", "--counterexamples", "found", "--method", "crown-ibp"]
    done = run(*words, "--json")
    counts = json.loads(done.out)["categories"]["props"]
    assert (counts["sat"], counts["error"]) == (1, 1)
    (case, *_) = read_property(Path("props/point_00000.vnnlib")).cases
    text = Path("found/model_point_00000.counterexample").read_text()
    values = [float(value) for value in re.findall(r"\(X_\d+ (\S+)\)", text)]
    assert all(low <= value <= high for low, value, high in zip(case.lower, values, case.upper, strict=True))
    details = [json.loads(line) for line in Path("results.csv.jsonl").read_text().splitlines()[1:]]
    assert {each["property"]: each.get("by") for each in details} == {
        "point_00000.vnnlib": "attack",
        "bad.vnnlib": None,
    }
    assert any("bad.vnnlib: line 1" in each.get("message", "") for each in details)
