"""How long commands take to start: help, wrong arguments, and a training up to the end of its first step.

Each measurement is a process of its own, from its start to its end; the cases alternate. The training of the digits
exits after its first step, so that its time is that until the end of the first step. Importing torch is a lower limit
for every command that computes. On a busy machine processor time is more meaningful than wall time.

python benchmarks/startup.py
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CERTTRAIN = (sys.executable, "-m", "certtrain")
FIRST_STEP = """
import os
from certtrain.training import step
from certtrain import cli

run = step.Stepper.run

def run_once(self, *batch):
    run(self, *batch)
    os._exit(0)

step.Stepper.run = run_once
cli.main()
"""
CASES = {
    "python alone": (sys.executable, "-c", "pass"),
    "certtrain --help": (*CERTTRAIN, "--help"),
    "an unknown option": (*CERTTRAIN, "train", "--nothing"),
    "an unknown preset": (*CERTTRAIN, "train", "--preset", "nothing"),
    "no such data folder": (*CERTTRAIN, "train", "--preset", "mnist-cpu", "--data-dir", "no-such-folder"),
    "a field out of range": (*CERTTRAIN, "train", "--preset", "digits", "--set", "train.epochs=0"),
    "a missing model file": (*CERTTRAIN, "verify", "nothing"),
    "import torch": (sys.executable, "-c", "import os, torch; os._exit(0)"),
    "train to the first step": (sys.executable, "-c", FIRST_STEP, "train", "--preset", "digits", "--device", "cpu"),
}


def seconds(command: tuple[str, ...]) -> tuple[float, float]:
    """Wall and processor time of one process, which runs in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        start, spent = time.perf_counter(), processor()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        taken, spent = time.perf_counter() - start, processor() - spent
        left = sorted(path.name for path in Path(folder).iterdir())
    if done.returncode not in (0, 1, 2) or "Traceback" in done.stderr or left not in ([], ["runs"]):
        raise SystemExit(f"{command} ended with {done.returncode} and left {left}:\n{done.stderr}")
    return taken, spent


def processor() -> float:
    """The processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Alternate the cases and print medians and quartiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {case: [] for case in CASES}
    for number in range(-1, arguments.rounds):  # the first round only fills the system's file cache
        for case, command in CASES.items():
            taken = seconds(command)
            times[case] += [taken] if number >= 0 else []
    print("| case | wall s, median (quartiles) | least | processor s, median |\n|---|---|---|---|")
    for case, pairs in times.items():
        walls, processors = zip(*pairs, strict=True)
        low, middle, high = statistics.quantiles(walls, n=4)
        print(
            f"| {case} | {middle:.2f} ({low:.2f}–{high:.2f}) | {min(walls):.2f} | {statistics.median(processors):.2f} |"
        )


if __name__ == "__main__":
    main()
