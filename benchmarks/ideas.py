"""Ideas to make certified training faster or better, ranked on short MNIST runs, several seeds each.

Every run is judged on 5,000 held-out training examples; the test set is never looked at. Each result is one line of
a file as soon as it is there, and what is in the file already is not run again.

python benchmarks/ideas.py --data-dir DATA --out ideas.jsonl
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from seeds import run

from certtrain.allocator import keep_freed_memory
from certtrain.device import choose_device

SHORT = {
    "train.epochs": 8,
    "eps.length": 3,
    "train.milestones": [6, 7],
    "train.compile": "off",
    "train.batch_norm_statistics": "clean",
    "data.validation": 5000,
    "data.verify_on": "validation",
}
LINEAR = {"train.schedule": "linear", "train.warmup": 0.5, "train.learning_rate": 2e-3}
IDEAS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "centre statistics": {"train.batch_norm_statistics": "centre"},
    "bf16": {"train.precision": "bf16"},
    "linear rate": LINEAR,
    "moving average": {"train.average": 0.995},
    "linear rate, moving average": LINEAR | {"train.average": 0.995},
    "batch 128": {"train.batch_size": 128, "train.learning_rate": 1e-3},
    "batch 512": {"train.batch_size": 512, "train.learning_rate": 2e-3},
    "ramp twice as long": {"eps.length": 6, "train.milestones": [7]},
    "no regularisers": {"regularizer.tightness": False, "regularizer.relu_balance": False},
}


def known(path: Path) -> dict[tuple[str, int], dict[str, float]]:
    """The results in the file, by idea and seed."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["idea"], line["seed"]): line for line in lines}


def show(found: dict[tuple[str, int], dict[str, float]]) -> None:
    """A table: mean and standard deviation of each idea over its seeds."""
    print("| idea | seeds | natural % | certified % | seconds over those as it is |\n|---|---|---|---|---|")
    for idea in IDEAS:
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
    """Parse the arguments, train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("ideas.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(IDEAS), default=list(IDEAS))
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    keep_freed_memory()
    device, found = choose_device(arguments.device), known(arguments.out)
    for seed in arguments.seeds:
        for idea in arguments.only:
            if (idea, seed) in found:
                continue
            overrides = [f"{field}={json.dumps(value)}" for field, value in (SHORT | IDEAS[idea]).items()]
            found[idea, seed] = run("mnist-cpu", seed, overrides, arguments.data_dir, device)
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"idea": idea, "seed": seed, **found[idea, seed]}) + "\n")
    show(found)


if __name__ == "__main__":
    main()
