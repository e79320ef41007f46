"""Train a preset with several seeds, and print mean and standard deviation of its results on the test set.

python benchmarks/seeds.py digits --seeds 0 1 2
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from certtrain import RunContext, train
from certtrain.runtime.allocator import keep_freed_memory
from certtrain.runtime.device import choose_device
from certtrain.spec.preset import load_preset, parse_override

FIGURES = ("natural_accuracy", "pgd_accuracy", "certified_accuracy")


def run(preset: str, seed: int, overrides: list[str], data_dir: Path | None, device: str) -> dict[str, float]:
    """The results of one training, and its seconds."""
    changes = dict(parse_override(text) for text in overrides) | {"seed": seed}
    seconds: list[float] = []

    def emit(event: object) -> None:
        if type(event).__name__ == "Finished":
            seconds.append(event.seconds)

    with tempfile.TemporaryDirectory() as folder:
        report = train(load_preset(preset, changes), Path(folder) / "run", RunContext(data_dir, device, emit=emit))
    assert report is not None  # since nothing stops the run
    results = report.to_dict()
    return {name: results[name] for name in FIGURES} | {"seconds": seconds[0] + results["seconds"]}


def main() -> None:
    """Parse the arguments, train, print a line for each seed and one for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    keep_freed_memory()
    device, found = choose_device(arguments.device), []
    for seed in arguments.seeds:
        found.append(run(arguments.preset, seed, arguments.overrides, arguments.data_dir, device))
        print(json.dumps({"seed": seed, **found[-1]}), flush=True)
    for name in FIGURES:
        shares = [100 * result[name] for result in found]
        spread = f" ± {statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
        print(f"{name}: {statistics.mean(shares):.2f}{spread} %", file=sys.stderr)


if __name__ == "__main__":
    main()
