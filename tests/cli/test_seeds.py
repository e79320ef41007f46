"""certtrain train --seeds."""

import json
from pathlib import Path

import pytest

from helpers.command_line import QUICK, Run


def test_a_report_with_mean_and_deviation_and_no_seed_twice(run: Run, tmp_path: Path) -> None:
    words = [*QUICK[:4], "1", *QUICK[5:], "--out", "many"]
    done = run(*words, "--seeds", "2")
    assert done.code == 0, done.err
    assert done.out.count("new run in many/seed-") == 2
    assert "standard deviation" in done.out
    assert "wrote many/report.html" in done.out
    more = run(*words, "--seeds", "1,4", "--json")
    events = [json.loads(line) for line in more.out.splitlines()]
    assert [event["folder"] for event in events if event["event"] == "started"] == ["many/seed-4"]
    assert [each["seed"] for each in events[-1]["runs"]] == [0, 1, 4]
    assert {each["figure"] for each in events[-1]["spread"]} == {"natural", "attacked", "certified"}
    compared = run("compare", "many")
    assert "standard deviation" in compared.out
    assert compared.out == run("compare", "many/seed-0", "many/seed-1", "many/seed-4").out
    other = run(*words, "--seeds", "2", "--set", "train.batch_size=32")
    assert (other.code, "other settings: train.batch_size was 64 and is 32" in other.err) == (1, True)
    (tmp_path / "many").rename(tmp_path / "moved")
    (tmp_path / "runs").mkdir()
    (tmp_path / "moved").rename(tmp_path / "runs" / "many")
    assert "the newest run, runs/many/seed-4" in run("verify", "--limit", "10", "--attack", "none").err


def test_a_stop_says_how_to_go_on(run: Run, tmp_path: Path) -> None:
    words = [*QUICK, "--out", "many", "--seeds", "2"]
    stopped = run(*words, "--time-budget", "0.000001s")
    assert stopped.code == 0
    assert "0 of 2 seeds are finished; to go on with all: certtrain train --resume many" in stopped.err
    assert run("train", "--resume", "many").code == 0
    assert len(list((tmp_path / "many").glob("seed-*/report.json"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "is no number of seeds"),
        (["--seeds", "1,1"], "has a seed twice"),
        (["--seeds", "1,2", "--seed", "3"], "it has no effect with a list of seeds"),
        (["--seeds", "a"], "is neither a number of seeds"),
        (["--seeds", "-1"], "is neither a number of seeds"),
        (["--resume", "many", "--seeds", "2"], "a resumed run keeps its preset"),
    ],
)
def test_what_is_no_list_of_seeds_is_refused(run: Run, words: list[str], message: str) -> None:
    start = [] if "--resume" in words else ["--preset", "digits"]
    refused = run("train", *start, *words)
    assert refused.code == 2
    assert message in " ".join(refused.err.replace("│", " ").split())
