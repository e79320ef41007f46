"""Ideas to make certified training faster or better, ranked on short runs of a small network with several seeds.

Every run is evaluated on 5,000 held-out training examples; the test set is not used. Each result is written to a file
at once, as one line, and is not run again if the file has it.

python benchmarks/ideas.py mnist --data-dir DATA --out ideas.jsonl      # for mnist-cpu
python benchmarks/ideas.py cifar10 --data-dir DATA --out ideas.jsonl    # for cifar10-speedrun
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certtrain import RunContext, train
from certtrain.runs.history import read_run
from certtrain.runtime.allocator import keep_freed_memory
from certtrain.runtime.device import choose_device
from certtrain.spec.preset import load_preset

FIGURES = ("natural_accuracy", "attacked_accuracy", "certified_accuracy")
Overrides = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A preset, the changes that make its runs short, and the changes of each idea."""

    preset: str
    short: Overrides
    ideas: dict[str, Overrides]


HELD_OUT: Overrides = {"train.compile": "off", "data.validation": 5000, "data.verify_on": "validation"}
SMALL = {"channels": [16, 32], "kernels": [4, 4], "strides": [2, 2], "linear": [100]}
LINEAR: Overrides = {
    "train.schedule": "linear",
    "train.milestones": [],
    "train.warmup": 0.5,
    "train.learning_rate": 2e-3,
}
BARE: Overrides = {"regularizer.tightness": False, "regularizer.relu_balance": False}
TRIALS = {
    "mnist": Trial(
        "mnist-cpu",
        {"train.epochs": 8, "eps.length": 3, "train.milestones": [6, 7], "train.batch_norm_statistics": "clean"},
        {
            "as it is": {},
            "centre statistics": {"train.batch_norm_statistics": "centre"},
            "bf16": {"train.precision": "bf16"},
            "linear rate": LINEAR,
            "moving average": {"train.average": 0.995},
            "linear rate, moving average": LINEAR | {"train.average": 0.995},
            "batch 128": {"train.batch_size": 128, "train.learning_rate": 1e-3},
            "batch 512": {"train.batch_size": 512, "train.learning_rate": 2e-3},
            "ramp twice as long": {"eps.length": 6, "train.milestones": [7]},
            "no regularisers": BARE,
        },
    ),
    "cifar10": Trial(
        "cifar10-speedrun",
        {"model.name": "cnn"}
        | {f"model.{field}": value for field, value in SMALL.items()}
        | {"train.epochs": 10, "eps.start": 1, "eps.length": 4, "train.milestones": [7, 9]}
        | {"train.precision": "fp32", "train.learning_rate": 5e-4, "data.examples": 20_000},
        {
            "as it is": {},
            "clean statistics": {"train.batch_norm_statistics": "clean"},
            "bf16": {"train.precision": "bf16"},
            "twice the rate": {"train.learning_rate": 1e-3},
            "four times the rate": {"train.learning_rate": 2e-3},
            "linear rate": LINEAR,
            "moving average": {"train.average": 0.995},
            "linear rate, moving average": LINEAR | {"train.average": 0.995},
            "batch 256, twice the rate": {"train.batch_size": 256, "train.learning_rate": 1e-3},
            "batch 512, four times the rate": {"train.batch_size": 512, "train.learning_rate": 2e-3},
            "ramp half as long": {"eps.length": 2},
            "ramp 1.5 times as long": {"eps.length": 6},
            "at 1.1 times the radius": {"eps.train_factor": 1.1},
            "no regularisers": BARE,
            "no crops": {"data.crop_padding": 0},
            "half the epochs": {"train.epochs": 5, "eps.length": 2, "train.milestones": [4]},
        },
    ),
}


def run(preset: str, seed: int, changes: Overrides, data_dir: Path | None, device: str) -> dict[str, float]:
    """The results of one training, and its seconds with those of the verification."""
    with tempfile.TemporaryDirectory() as folder:
        train(load_preset(preset, changes | {"seed": seed}), Path(folder) / "run", RunContext(data_dir, device))
        report = read_run(Path(folder) / "run").report
    assert report is not None  # since nothing stops the run
    seconds = report.training.seconds + report.verification_seconds
    return {name: getattr(report.results, name) for name in FIGURES} | {"seconds": seconds}


def known(path: Path, trial: str) -> dict[tuple[str, int], dict[str, float]]:
    """The trial's results in the file, by idea and seed."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["idea"], line["seed"]): line for line in lines if line["trial"] == trial}


def show(ideas: list[str], found: dict[tuple[str, int], dict[str, float]]) -> None:
    """Print a table with mean and standard deviation of each idea over its seeds."""
    print("| idea | seeds | natural % | certified % | seconds over those as it is |\n|---|---|---|---|---|")
    for idea in ideas:
        results = {seed: result for (name, seed), result in found.items() if name == idea}
        if not results:
            continue
        cells = [idea, str(len(results))]
        for figure in ("natural_accuracy", "certified_accuracy"):
            shares = [100 * result[figure] for result in results.values()]
            spread = f" ± {statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
            cells.append(f"{statistics.mean(shares):.2f}{spread}")
        base = [found["as it is", seed]["seconds"] for seed in results if ("as it is", seed) in found]
        mine = [result["seconds"] for seed, result in results.items() if ("as it is", seed) in found]
        cells.append(f"{statistics.median(mine) / statistics.median(base):.2f}" if base else "")
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Parse the arguments, train the runs without a result, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=list(TRIALS))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("ideas.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="IDEA", help="by default all")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    trial = TRIALS[arguments.trial]
    ideas = arguments.only or list(trial.ideas)
    if unknown := set(ideas) - trial.ideas.keys():
        parser.error(f"no such idea: {'; '.join(sorted(unknown))}; there are: {'; '.join(trial.ideas)}")
    keep_freed_memory()
    device, found = choose_device(arguments.device), known(arguments.out, arguments.trial)
    for seed in arguments.seeds:
        for idea in ideas:
            if (idea, seed) in found:
                continue
            changes = HELD_OUT | trial.short | trial.ideas[idea]
            found[idea, seed] = run(trial.preset, seed, changes, arguments.data_dir, device)
            with arguments.out.open("a", encoding="utf-8") as file:
                about = {"trial": arguments.trial, "idea": idea, "seed": seed}
                file.write(json.dumps(about | found[idea, seed]) + "\n")
    show(ideas, found)


if __name__ == "__main__":
    main()
