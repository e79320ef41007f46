"""A search of the settings of `digits` by two processes on one study, of which one is killed and started again.

It prints how many trials were finished, whether any settings were tried twice, and how the best trial compares with the
preset's own settings on the held-out examples. The test set is not used.

python benchmarks/tuning.py --trials 20 --out tuning-digits
python benchmarks/tuning.py --trials 20 --out tuning-digits --storage postgresql+psycopg2://tuner@database/study
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SPACE = """
"train.learning_rate" = { low = 5e-4, high = 1e-2, log = true }
"train.batch_size" = [32, 64, 128]

[objective]
natural_share = { low = 0.0, high = 0.5 }
"""
KILL_AFTER = 0.25  # of the trials, when one process is in the middle of its next one
SETTLE = 5.0  # seconds into that trial


def main() -> None:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "space.toml").write_text(SPACE)
    words = ["tune", "digits", "--space", str(arguments.out / "space.toml"), "--trials", str(arguments.trials)]
    words += ["--out", str(arguments.out), "--lost-after", "20s", "--device", "cpu", *arguments.more]
    if arguments.storage is not None:
        words += ["--storage", arguments.storage]
    start = time.monotonic()
    search(words, arguments.out, arguments.trials)
    done = subprocess.run(_command(words, "--json"), check=True, capture_output=True, text=True)
    print("\n".join(summary(json.loads(done.stdout)["trials"])))
    print(f"{time.monotonic() - start:.0f} s on {os.cpu_count()} cores")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--storage", help="URL of a database; a file of SQLite if not given")
    parser.add_argument("more", nargs="*", help="more words for `certtrain tune`, after --")
    return parser.parse_args()


def _command(words: list[str], *more: str) -> list[str]:
    return [sys.executable, "-m", "certtrain", *words, *more]


def search(words: list[str], out: Path, trials: int) -> None:
    """Two processes search; the first is killed in the middle of a trial, and started again."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))}
    logs = [(out / f"process-{number}.log").open("w") for number in range(3)]

    def begin(number: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(_command(words), env=environment, stdout=logs[number], stderr=logs[number])

    first, second = begin(0), begin(1)
    while len(list(out.glob("trial-*/report.json"))) < KILL_AFTER * trials:
        time.sleep(1)
    time.sleep(SETTLE)
    first.send_signal(signal.SIGKILL)
    first.wait()
    codes = [process.wait() for process in (begin(2), second)]
    for log in logs:
        log.close()
    if any(codes):
        raise SystemExit(f"a process failed: see the logs in {out}")


def summary(trials: list[dict[str, Any]]) -> list[str]:
    """What the study holds, in sentences."""
    states = [trial["state"] for trial in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    different = len({json.dumps(trial["settings"], sort_keys=True) for trial in trials})
    own = next(trial for trial in trials if trial["reference"] and trial["state"] == "finished")
    finished = [trial for trial in trials if trial["state"] == "finished"]
    best = max(finished, key=lambda trial: (trial["certified"], trial["natural"]))
    better = [t for t in finished if t["certified"] >= own["certified"] and t["natural"] >= own["natural"] and t != own]
    beaten = [t for t in better if (t["certified"], t["natural"]) != (own["certified"], own["natural"])]
    return [
        f"{len(trials)} trials: {counts}; {different} different settings",
        f"the preset's own settings: {_accuracies(own)}",
        f"the best by certified accuracy, trial {best['number']}: {_accuracies(best)}, with {best['settings']}",
        f"{len(beaten)} trials beat the preset's own settings in one accuracy and are no worse in the other",
    ]


def _accuracies(trial: dict[str, Any]) -> str:
    return f"{trial['natural']:.2%} natural, {trial['certified']:.2%} certified"


if __name__ == "__main__":
    main()
