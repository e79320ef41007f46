"""The paper's claims at a scale that two CPU cores can bear: MNIST at ε = 0.3 and 0.4, a small deep network.

Each method trains with a short and with a long warm-up, with several seeds: vanilla IBP, CROWN-IBP with loss fusion,
both again with BatchNorm, the paper's method, and that without each of its improvements in turn. They train on 10,000
examples for equally many steps, and are judged on 2,500 held-out ones; the test set is not looked at. A result is a
file of its own in the folder, written when the run is over; what is there already is not run again, so the command can
be stopped and started at will.

`claims_report.py` makes a table and a page of what is there.

python benchmarks/claims.py run --data-dir DATA --folder claims --jobs 2
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RADII = (0.3, 0.4)
SEEDS = (0, 1, 2)
NETWORK = {
    "model.channels": [8, 8, 16, 16],
    "model.kernels": [3, 3, 3, 3],
    "model.strides": [2, 1, 2, 1],
    "model.linear": [64],
}
# Natural in epoch 1, then the ramp, and what is left at the full radius.
WARM_UPS: dict[str, dict[str, Any]] = {
    "short": {"eps.start": 2, "eps.length": 4},
    "long": {"eps.start": 2, "eps.length": 8},
}
COMMON = {
    "train.epochs": 12,
    "train.milestones": [10, 11],
    "train.batch_size": 64,
    "train.learning_rate": 1e-3,
    "train.batch_norm_statistics": "clean",
    "train.compile": "off",
    "data.examples": 10000,
    "data.validation": 2500,
    "data.verify_on": "validation",
}
NO_NORM = {"model.batch_norm": False}
NO_REGULARIZERS = {"regularizer.tightness": False, "regularizer.relu_balance": False}
VANILLA = {"init": "xavier", **NO_REGULARIZERS}
CROWN = {**VANILLA, "bounds.method": "crown-ibp"}
METHODS: dict[str, dict[str, Any]] = {
    "vanilla IBP": VANILLA | NO_NORM,
    "vanilla IBP with BatchNorm": VANILLA,
    "CROWN-IBP": CROWN | NO_NORM,
    "CROWN-IBP with BatchNorm": CROWN,
    "fast": {},
    "fast without IBP initialisation": {"init": "xavier"},
    "fast without BatchNorm": NO_NORM,
    "fast without tightness": {"regularizer.tightness": False},
    "fast without balance": {"regularizer.relu_balance": False},
}


@dataclass(frozen=True)
class Run:
    """One training."""

    method: str
    warm_up: str
    eps: float
    seed: int

    def file(self, folder: Path) -> Path:
        """Where its result is, or will be."""
        words = f"{self.method} {self.warm_up} {self.eps} {self.seed}"
        return folder / f"{words.replace(' ', '-')}.json"

    def changes(self) -> dict[str, Any]:
        """What it changes in the preset `mnist-cpu`."""
        own = METHODS[self.method] | WARM_UPS[self.warm_up]
        return NETWORK | COMMON | own | {"eps.max": self.eps, "seed": self.seed}


def runs(arguments: argparse.Namespace) -> Iterator[Run]:
    """All runs, one seed after the other, so that a part of them is a whole table."""
    for seed, eps, warm_up, method in product(arguments.seeds, arguments.eps, WARM_UPS, METHODS):
        yield Run(method, warm_up, eps, seed)


def read(folder: Path) -> dict[Run, dict[str, Any]]:
    """The results in the folder; they must all have been made with the settings that stand here."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    found = {Run(**record["run"]): record for record in records}
    for run, record in found.items():
        if record.get("settings") != run.changes():
            raise SystemExit(f"{run.file(folder)} was made with other settings: move it away")
    return found


def train_one(run: Run, data_dir: Path | None, folder: Path) -> str:
    """Train, and write the result; a line that says how it went."""
    import torch

    from certtrain.allocator import keep_freed_memory
    from certtrain.errors import NonFiniteError
    from certtrain.preset import load_preset
    from certtrain.storage import write_atomic
    from certtrain.trainer import Surroundings, train

    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as place:
        out, failure, results = Path(place) / "run", None, None
        try:
            report = train(load_preset("mnist-cpu", run.changes()), out, Surroundings(data_dir))
            assert report is not None  # nothing stops it
            results = report.to_dict()
        except NonFiniteError as error:  # a result as well
            failure = str(error)
        metrics = out / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    record = {"run": asdict(run), "settings": run.changes(), "results": results, "failure": failure}
    record["epochs"] = [json.loads(line) for line in lines]
    write_atomic(run.file(folder), json.dumps(record).encode())
    outcome = failure or f"certified {100 * results['certified_accuracy']:.2f} %" if results else failure
    return f"{run}: {outcome}"


def run_all(arguments: argparse.Namespace) -> None:
    """Train what is missing, in so many processes."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    there = read(arguments.folder)
    missing = [run for run in runs(arguments) if run not in there]
    print(f"{len(missing)} runs to do", flush=True)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(train_one, run, arguments.data_dir, arguments.folder) for run in missing]
        for job in as_completed(jobs):
            print(job.result(), flush=True)


def main() -> None:
    """Parse the arguments; train, or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run", help="train what is missing")
    command.set_defaults(do=run_all)
    command.add_argument("--data-dir", type=Path)
    command.add_argument("--folder", type=Path, default=Path("claims"))
    command.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    command.add_argument("--eps", type=float, nargs="+", default=list(RADII))
    command.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
