"""Several processes give the run of one: sums, statistics, gradients, files, stopping and going on."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.multiprocessing import ProcessContext, start_processes

from certtrain import resume, train
from certtrain.bounds.statistics import batch_statistics, pooled_statistics
from certtrain.data import Augmentation, Batches
from certtrain.errors import DataError, DeviceError
from certtrain.runs.checkpoint import RunFolder
from certtrain.training.distributed import SINGLE_PROCESS, process_group
from certtrain.training.events import Note, Started, Stopped
from helpers import processes
from helpers.objective_oracles import assert_step, oracles
from helpers.ranks import RANKS, SETTINGS, dying, everything, refreshed, work
from helpers.small_runs import metrics, report, small, without_seconds
from helpers.small_steps import WITHOUT_GRADIENT

pytestmark = pytest.mark.usefixtures("short")
ROOT = Path(__file__).parents[2]


# --- each batch is shared out ----------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_the_ranks_parts_are_the_whole_batch(ranks: int):
    images, labels = torch.randint(256, (31, 1, 4, 4), dtype=torch.uint8), torch.arange(31)
    options: dict[str, Any] = {"batch_size": 12, "seed": 0, "augmentation": Augmentation(flip=True, crop_padding=2)}
    whole = Batches(images, labels, **options)
    parts = [Batches(images, labels, **options, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in range(3):
        x, y = (torch.cat(tensors) for tensors in zip(*(part.batch(1, step) for part in parts), strict=True))
        assert torch.equal(x, whole.batch(1, step)[0])
        assert torch.equal(y, whole.batch(1, step)[1])
        assert torch.equal(parts[-1].whole_batch(1, step)[0], x)
        shares = [part.share(step) for part in parts]
        assert shares == [len(part.batch(1, step)[1]) / len(y) for part in parts]
        assert sum(shares) == pytest.approx(1)


def test_a_batch_smaller_than_the_ranks_is_an_error():
    images, labels = torch.zeros(14, 1, 2, 2, dtype=torch.uint8), torch.zeros(14).long()
    with pytest.raises(DataError, match="last batch of an epoch has 2 of 14 examples, too few for 3 processes"):
        Batches(images, labels, batch_size=4, seed=0, ranks=3)
    Batches(images, labels, batch_size=4, seed=0, ranks=2)


def test_pooled_statistics_are_those_of_all_points():
    points = torch.randn(7, 3, 2, 2, dtype=torch.float64) + 100
    layer, parts = torch.nn.BatchNorm2d(3), [points[:2], points[2:3], points[3:]]
    rows: list[Tensor] = []
    for part in parts:
        pooled_statistics(lambda row: rows.append(row) or torch.stack([row, row]))(layer, part)  # type: ignore[func-returns-value]
    mean, variance, size = pooled_statistics(lambda row: torch.stack(rows))(layer, points)[1:]
    expected = batch_statistics(layer, points)
    torch.testing.assert_close((mean, variance), (expected.mean, expected.variance))
    assert isinstance(size, Tensor)
    assert size.tolist() == [expected.size] * 3


# --- one process is alone --------------------------------------------------------------------------------


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group("cpu") as group:
        assert group is SINGLE_PROCESS
    assert group.is_leader
    assert group.on_leader(lambda: 3) == group.leader_first(lambda: 3) == 3


def test_half_an_environment_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(DeviceError, match="'RANK' is not set; start several processes by torchrun"),
        process_group("cpu"),
    ):
        pass


def test_more_processes_than_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"WORLD_SIZE": "9", "RANK": "8", "LOCAL_RANK": "8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(DeviceError, match="no GPU for process 8 of this machine, which has 2"),
        process_group("cuda"),
    ):
        pass


# --- two ranks, in one start of two processes ------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def started(function: Callable[[int, int, Path], None], path: Path) -> ProcessContext:
    """The ranks, each of which calls the function with its number, a free port and the path."""
    processes.context()  # so that torch is loaded once for all
    return start_processes(function, args=(free_port(), path), nprocs=RANKS, join=False, start_method=processes.METHOD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks left what they found."""
    path = tmp_path_factory.mktemp("ranks")
    ranks = started(work, path)
    while not ranks.join():
        pass
    return path


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each rank found."""
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process finds."""
    return everything(SINGLE_PROCESS)


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("name", SETTINGS)
def test_steps_of_two_ranks_are_those_of_one(name: str, rank: int, ranks: list[dict[str, Any]], alone: dict[str, Any]):
    for found, expected in zip(ranks[rank]["everything"][name], alone[name], strict=True):
        assert found[2].failed is None
        assert found[2].sums == pytest.approx(expected[2].sums, rel=1e-7)  # accuracies are float32
        for before, after in zip(expected[:2], found[:2], strict=True):
            assert before.keys() == after.keys()
            for key in before.keys() - WITHOUT_GRADIENT:
                torch.testing.assert_close(after[key], before[key], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rank", range(RANKS))
def test_two_ranks_have_the_references_losses_and_gradients(rank: int, ranks: list[dict[str, Any]]):
    for oracle, found in zip(oracles(), ranks[rank]["references"], strict=True):
        assert_step(oracle, *found)


def test_every_rank_has_the_same_bits(ranks: list[dict[str, Any]]):
    first, second = (found["everything"]["clean"][-1][0] for found in ranks)
    assert all(torch.equal(first[name], second[name]) for name in first if "running" not in name)


def test_statistics_computed_anew_are_the_same_bits_on_any_number_of_ranks(ranks: list[dict[str, Any]]):
    expected = refreshed(SINGLE_PROCESS)
    assert len(expected) == 6
    for rank in ranks:
        assert all(torch.equal(one, two) for one, two in zip(rank["refreshed"], expected, strict=True))


def test_a_failure_on_one_rank_is_everybodys(ranks: list[dict[str, Any]], alone: dict[str, Any]):
    answers = [found["everything"]["not finite"] for found in ranks]
    assert answers[0] == answers[1]
    step, text = answers[0]
    assert step == alone["not finite"][0] == 12
    assert text.partition(";")[2] == alone["not finite"][1].partition(";")[2]
    assert "'conv1_relu'" in text


def test_what_ranks_send_to_each_other(ranks: list[dict[str, Any]]):
    for found in (rank["among"] for rank in ranks):
        assert found["sum"].tolist() == [3.0, 6.0]
        assert found["gradient"].tolist() == found["compiled gradient"].tolist() == [3.0, 3.0]
        assert found["gathered"].tolist() == [[1.0, 2.0], [2.0, 4.0]]
        assert found["agree"] == (True, False)
        assert found["on leader"] == "from 0"
        assert found["first text"] == (None, "mine", "0")
        assert [tensor.tolist() for tensor in found["added"]] == [[3.0, 6.0], [[2.0, 2.0]] * 3]
    assert [rank["among"]["order"] for rank in ranks] == [[0], [1]]
    assert ranks[0]["among"]["leader first"] < ranks[1]["among"]["leader first"]


def test_only_the_first_rank_emits_events(ranks: list[dict[str, Any]], folder: Path):
    events = ranks[0]["runs"]["events"]
    assert any(event == Note("2 processes share each batch") for event in events)
    assert [event.step for event in events if isinstance(event, Started)] == [0, 13]
    assert replace(events[-1], seconds_left=None) == Stopped("time is up", 18, 30, folder / "run", None)
    assert ranks[1]["runs"]["events"] == []
    assert [rank["runs"]["results"] for rank in ranks] == [[None, None]] * 2


def test_an_error_of_the_first_rank_is_everybodys(ranks: list[dict[str, Any]]):
    for found in ranks:
        assert "exists already and is not an empty folder" in found["runs"]["error"]


# --- whole runs ------------------------------------------------------------------------------------------


def assert_alike(folder: Path, other: Path) -> None:
    """To rounding, but for the biases before BatchNorm, whose gradient is rounding alone, and what follows them."""
    first, second = (load_file(path / "model.safetensors") for path in (folder, other))
    for name in first.keys() - WITHOUT_GRADIENT:
        if "running_mean" not in name:
            torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)
    for one, two in zip(metrics(folder), metrics(other), strict=True):
        names = [name for name in one if name not in ("seconds", "layers") and "validation" not in name]
        assert {name: one[name] for name in names} == pytest.approx({name: two[name] for name in names}, rel=1e-3)
        assert [layer["name"] for layer in one["layers"]] == [layer["name"] for layer in two["layers"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert train(small(), out) is not None
    return out


def test_a_run_stopped_on_two_ranks_goes_on_in_one(folder: Path, ranks: list[dict[str, Any]], finished: Path):
    out = folder / "run"
    assert [path.name for path in RunFolder(out).checkpoints()][-1] == "step-000000018.safetensors"
    assert resume(out) is not None
    assert_alike(finished, out)


# A whole run, and then one to be interrupted, for which torch is loaded already; its ranks meet at another place.
TWO_RUNS = """
import os, sys
from certtrain.cli import main
elsewhere = {"MASTER_PORT": sys.argv[1], "TORCHELASTIC_USE_AGENT_STORE": "False"}
for name, place in (("small", {}), ("long", elsewhere)):
    os.environ.update(place)
    sys.argv = ["certtrain", "train", "--preset", f"{name}.json", "--out", name]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which torchrun has trained both runs, and what it printed."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "two_runs.py").write_text(TWO_RUNS, encoding="utf-8")
    for name, preset in (("small", small()), ("long", small(train__epochs=1000, train__compile="off"))):
        (folder / f"{name}.json").write_text(preset.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*command, "two_runs.py", str(free_port())], cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True
    )
    while not (folder / "long" / "metrics.jsonl").is_file() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert (folder / "long" / "metrics.jsonl").is_file(), stderr
    return folder, stdout


@pytest.mark.slow
def test_torchrun_trains_and_verifies(finished: Path, launched: tuple[Path, str]):
    folder, stdout = launched
    assert stdout.count("epoch 3/3") == 1
    assert_alike(finished, folder / "small")
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (finished, folder / "small")]
    alike = [[name for name in each if not name.startswith(("checkpoints/step-", "pictures"))] for each in names]
    assert alike[0] == alike[1]
    assert "pictures/verdicts.png" in names[1]
    expected = ["long", "long.json", "small", "small.json", "two_runs.py"]
    assert sorted(path.name for path in folder.iterdir()) == expected
    about = without_seconds(report(folder / "small"))
    assert about["training"] == {"steps": 30, "device": "cpu", "processes": 2}
    assert about["results"]["examples"] == 360


@pytest.mark.slow
def test_an_interrupt_stops_all_ranks_at_a_checkpoint(launched: tuple[Path, str]):
    folder, stdout = launched
    assert "interrupted" in stdout
    assert int(RunFolder(folder / "long").checkpoints()[-1].stem[5:]) > 0


def test_no_rank_waits_for_one_that_died(tmp_path: Path):
    ranks = started(dying, tmp_path).processes
    for process in ranks:
        process.join(timeout=60)
    assert [process.exitcode for process in ranks] == [1, 3]
    assert not (tmp_path / "out" / "report.json").exists()
