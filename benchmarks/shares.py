"""Verification by several processes: the time of two beside one, and what the hand-out would give on many.

`measure` verifies by one process and by several, with one thread each, and compares times, verdicts and margins. Beside
other programs wall times say little. So the processor time of the busiest process, as a share of that of one process
alone, is printed too: it is the ratio on a machine with a core for each. `simulate` hands out the examples of a
certificate file among many ranks, as `certtrain verify` does, where each takes the seconds that the file records.

python benchmarks/adversarial.py --data-dir data --seed 1 --epochs 4 --out pgd.safetensors
python benchmarks/shares.py measure pgd.safetensors --data-dir data --eps 0.08 --limit 200 --out shares
python benchmarks/shares.py simulate shares/1.jsonl --ranks 1 2 4 8 16 32 64 --times 50
"""

import argparse
import heapq
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from certtrain.certfile.checking import ABSOLUTE, RELATIVE
from certtrain.certfile.sharing import handed_out
from certtrain.verification.methods import examples_at_once
from certtrain.verification.steps import ATTACK, INFERENCE

FIRST_ROUND = (INFERENCE, ATTACK, "ibp")
CLAIM = 0.001  # seconds that a look at the store is taken to cost; between processes of one machine it takes 20 µs
TICKS = os.sysconf("SC_CLK_TCK")


class Run(NamedTuple):
    """One verification: its seconds, and the processor seconds of each of its processes."""

    wall: float
    processor: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("model", type=Path)
    measuring.add_argument("--data-dir", type=Path)
    measuring.add_argument("--eps", default="0.08")
    measuring.add_argument("--limit", type=int, default=200)
    measuring.add_argument("--method", default="complete")
    measuring.add_argument("--workers", type=int, nargs="+", default=[2])
    measuring.add_argument("--out", type=Path, required=True)
    simulating = commands.add_parser("simulate")
    simulating.add_argument("file", type=Path)
    simulating.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    simulating.add_argument("--times", type=int, default=1, help="so many examples are drawn for each in the file")
    simulating.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    {"measure": _measure, "simulate": _simulate}[arguments.command](arguments)


# --- one process and several -----------------------------------------------------------------------------


def _measure(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = {workers: _verify(arguments, workers) for workers in (1, *arguments.workers)}
    alone, records = runs[1], _records(arguments.out / "1.jsonl")
    print("| processes | wall | processor, each | wall, ratio | processor of the busiest, ratio | the same verdicts |")
    print("|---|---|---|---|---|---|")
    for workers, run in runs.items():
        each = ", ".join(f"{seconds:.1f}" for seconds in run.processor)
        ratios = f"{run.wall / alone.wall:.2f} | {max(run.processor) / max(alone.processor):.2f}"
        same = _agreement(records, _records(arguments.out / f"{workers}.jsonl"))
        print(f"| {workers} | {run.wall:.1f} s | {each} s | {ratios} | {same} |")


def _verify(arguments: argparse.Namespace, workers: int) -> Run:
    out = arguments.out / f"{workers}.jsonl"
    words = [sys.executable, "-m", "certtrain", "verify", arguments.model, "--eps", arguments.eps]
    words += ["--limit", arguments.limit, "--method", arguments.method, "--timeout", "none", "--threads", 1]
    words += ["--workers", workers, "--out", out, "--force"]
    words += [] if arguments.data_dir is None else ["--data-dir", arguments.data_dir]
    start, spent = time.monotonic(), dict[int, float]()
    with subprocess.Popen([*map(str, words)], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for number in (process.pid, *_children(process.pid)):
                spent[number] = _processor(number) or spent.get(number, 0.0)
            time.sleep(0.05)
    if process.returncode:
        sys.exit(f"certtrain verify ended with exit code {process.returncode}")
    return Run(time.monotonic() - start, sorted((s for s in spent.values() if s > 1), reverse=True))


def _children(pid: int) -> list[int]:
    return [int(child) for child in (_read(f"/proc/{pid}/task/{pid}/children") or "").split()]


def _processor(pid: int) -> float | None:
    """The processor seconds of a process so far, without those of its children."""
    text = _read(f"/proc/{pid}/stat")
    return None if text is None else sum(map(int, text.rpartition(")")[2].split()[11:13])) / TICKS


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:  # the process has ended
        return None


def _records(path: Path) -> dict[int, dict[str, Any]]:
    lines = map(json.loads, path.read_text().splitlines())
    return {line["index"]: line for line in lines if line["kind"] == "point"}


def _agreement(first: dict[int, dict[str, Any]], second: dict[int, dict[str, Any]]) -> str:
    verdicts = sum(first[index]["verdict"] == second[index]["verdict"] for index in first)
    margins = sum(_close(first[index]["margin"], second[index]["margin"]) for index in first)
    return f"{verdicts} of {len(first)}, margins {margins} of {len(first)}"


def _close(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first == second
    return abs(first - second) <= RELATIVE * max(abs(first), abs(second)) + ABSOLUTE


# --- on many ---------------------------------------------------------------------------------------------


def _simulate(arguments: argparse.Namespace) -> None:
    header, *_ = map(json.loads, arguments.file.read_text().splitlines())
    records = list(_records(arguments.file).values())
    draw = random.Random(arguments.seed)
    drawn = [draw.choice(records) for _ in range(len(records) * arguments.times)] if arguments.times > 1 else records
    rounds = list(_rounds(drawn, header["batch_size"]))
    alone = sum(sum(seconds) for seconds, _ in rounds)
    longest = max(max(seconds, default=0.0) for seconds, _ in rounds)
    print(f"{len(drawn):,} examples, {alone:.0f} s by one rank; the longest takes {longest:.1f} s\n")
    print("| ranks | seconds | times as fast | busy | equal parts beforehand, times as fast |")
    print("|---|---|---|---|---|")
    for ranks in arguments.ranks:
        shared = sum(_makespan(seconds, handed_out(len(seconds), size, ranks), ranks) for seconds, size in rounds)
        fixed = sum(_makespan(seconds, _equal(len(seconds), ranks), ranks) for seconds, _ in rounds)
        print(f"| {ranks} | {shared:.1f} | {alone / shared:.1f} | {alone / shared / ranks:.0%} | {alone / fixed:.1f} |")


def _rounds(records: Sequence[dict[str, Any]], size: int) -> Iterable[tuple[list[float], int]]:
    """For each round, the seconds of its examples in order, and its batch size."""
    names = list(dict.fromkeys(name for record in records for name in record["tried"]))
    first = [sum(record["tried"].get(name, 0.0) for name in FIRST_ROUND) for record in records]
    yield first, size
    for name in (name for name in names if name not in FIRST_ROUND):
        yield [record["tried"][name] for record in records if name in record["tried"]], examples_at_once(name, size)


def _makespan(seconds: Sequence[float], parts: Iterable[range], ranks: int) -> float:
    """When the last rank ends, if whoever is free takes the next part."""
    free = [0.0] * ranks
    for part in parts:
        start = heapq.heappop(free)
        heapq.heappush(free, start + CLAIM + sum(seconds[place] for place in part))
    return max(free)


def _equal(count: int, ranks: int) -> list[range]:
    return [range(rank * count // ranks, (rank + 1) * count // ranks) for rank in range(ranks)]


if __name__ == "__main__":
    main()
