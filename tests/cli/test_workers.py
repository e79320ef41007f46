"""Verification by several processes: the file and the verdicts of one process, also if processes are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from certtrain.cli.workers import _without_workers
from helpers.command_line import Run, run_here

AUTO = ["--eps", "0.06", "--limit", "60", "--method", "auto", "--timeout", "none"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def records(path: Path) -> dict[int, dict[str, Any]]:
    """The last record of each example."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {line["index"]: line for line in lines if line["kind"] == "point"}


def header(path: Path) -> Any:
    return json.loads(path.read_text().partition("\n")[0])


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates that one process writes."""
    path = tmp_path_factory.mktemp("alone") / "c.jsonl"
    assert run_here(*command(model, path)[3:]).code == 0
    return path


def command(model: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "certtrain", "verify", str(model), *AUTO, "--out", str(out), *more]


def check_same(found: Path, expected: Path) -> None:
    """The same task and verdicts, and margins within the tolerance of `certtrain check`; both files are whole."""
    assert header(found) == header(expected)
    ours, theirs = records(found), records(expected)
    assert ours.keys() == theirs.keys()
    for index, record in theirs.items():
        for name in ("label", "verdict", "method", "sha256"):
            assert ours[index][name] == record[name], index
        margins = ours[index]["margin"], record["margin"]
        assert margins[0] == margins[1] or margins[0] == pytest.approx(margins[1], rel=1e-6, abs=1e-9)
    assert [json.loads(path.read_text().splitlines()[-1])["counts"] for path in (found, expected)] == [
        json.loads(expected.read_text().splitlines()[-1])["counts"]
    ] * 2


@pytest.mark.slow
def test_workers_write_the_certificates_of_one_process(run: Run, model: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.jsonl"
    done = subprocess.run(
        command(model, out, "--workers", "3", "--json"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 60, "only one process prints"
    check_same(out, alone)
    assert run("check", out, model).code == 0


RADII = ["--eps", "0.02,0.05,0.08", "--limit", "40", "--method", "alpha-crown", "--timeout", "none"]


@pytest.mark.slow
def test_workers_share_the_examples_at_each_of_several_radii(run: Run, model: Path) -> None:
    alone, shared = (["--out", f"{name}.jsonl"] for name in ("alone", "shared"))
    expected = json.loads(run("verify", model, *RADII, "--json", *alone).out)
    words = [sys.executable, "-m", "certtrain", "verify", str(model), *RADII, "--json", *shared, "--workers", "2"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["certified_radius"] == expected["certified_radius"]
    counts = ("eps", "certified", "falsified", "open", "implied")
    assert [[each[name] for name in counts] for each in found["radii"]] == [
        [each[name] for name in counts] for each in expected["radii"]
    ]
    for eps in ("0.02", "0.05", "0.08"):
        check_same(Path(f"shared-{eps}.jsonl"), Path(f"alone-{eps}.jsonl"))


@pytest.mark.slow
def test_torchrun_starts_the_processes(model: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.jsonl"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "certtrain"]
    done = subprocess.run(
        [*start, *command(model, out)[3:]], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("certified") > 0
    check_same(out, alone)


def children(pid: int) -> list[int]:
    """The processes that it started with multiprocessing, without the one that tracks resources."""
    found = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    lines = [line.split(maxsplit=1) for line in found.stdout.splitlines()]
    return [int(number) for number, words in lines if "spawn_main" in words]


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def at_work(process: "subprocess.Popen[Any]", out: Path, workers: int) -> list[int]:
    """The processes that it started, once the first record is in the file; looked up before, since that takes long."""
    wait_for(lambda: len(children(process.pid)) == workers - 1)
    found = children(process.pid)
    wait_for(lambda: lines_of(out) > 1)
    return found


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_that_it_sent(model: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.jsonl"
    words = command(model, out, "--workers", "3")
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        os.kill(at_work(process, out, 3)[0], signal.SIGKILL)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert b"ended early (exit code -9)" in err
    check_same(out, alone)


@pytest.mark.slow
def test_a_verification_of_which_rank_0_is_killed_goes_on(model: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.jsonl"
    words = command(model, out, "--workers", "2")
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        (other,) = at_work(process, out, 2)
        process.kill()
        process.wait()
        wait_for(lambda: not Path(f"/proc/{other}").exists(), seconds=10)
    before = lines_of(out)
    done = run_here(*words[3:-2])  # one process goes on with what several began
    assert done.code == 0, done.err
    assert lines_of(out) > before
    check_same(out, alone)


@pytest.mark.slow
def test_an_interrupt_stops_all_of_them(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.jsonl"
    words = command(model, out, "--workers", "2")
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        (other,) = at_work(process, out, 2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "continue with" in err
    assert not Path(f"/proc/{other}").exists()


def test_workers_are_refused_where_they_make_no_sense(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("verify", model, "--image", "a.png", "--workers", "2")
    assert (done.code, "--workers" in done.err) == (2, True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "leave --workers out" in run("verify", model, "--workers", "2").err
    monkeypatch.delenv("RANK", raising=False)
    assert "RANK is not set" in run("verify", model).err


def test_the_other_processes_do_not_start_more() -> None:
    words = ["certtrain", "verify", "m", "--workers", "2", "--eps", "0.1", "--workers=3"]
    assert list(_without_workers(words)) == ["certtrain", "verify", "m", "--eps", "0.1"]
