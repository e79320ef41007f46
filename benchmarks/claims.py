"""The claims of Shi et al. 2021 at a scale for two CPU cores: MNIST at ε = 0.3 and 0.4, with a small deep network.

Each method is trained with a short and with a long warm-up, with several seeds: vanilla IBP, CROWN-IBP with loss
fusion, both again with BatchNorm, the paper's method, and that without each of its improvements in turn. All are
trained on 10,000 examples with the same number of steps, and evaluated on 2,500 held-out ones; the test set is not
used. Each finished run writes a file with its result into the folder, and is not run again if its file exists, so the
command can be stopped and started again at any time.

With `--preset FILE.toml` the data, network, epochs and ε are those of that preset, with the same methods; its ramp is
the long warm-up, half of it the short one. `claims_report.py` makes tables and a page of the results.

python benchmarks/claims.py run --data-dir DATA --folder claims --jobs 2
python benchmarks/claims.py run --preset my.toml --folder mine
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from claims_plan import FILE, MNIST, SEEDS, Plan, Run, check_plan, plan_for, save_plan

STATES = ("active", "unstable", "inactive", "dead")


def runs(plan: Plan, arguments: argparse.Namespace) -> Iterator[Run]:
    """All runs, one seed after the other, so that the first runs make a complete table."""
    radii = arguments.eps or plan.radii
    for seed, eps, warm_up, method in product(arguments.seeds, radii, plan.warm_ups, plan.methods):
        yield Run(method, warm_up, eps, seed)


def read(folder: Path, plan: Plan) -> dict[Run, dict[str, Any]]:
    """The results in the folder. They must be complete, and made with the plan's settings."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == FILE:
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            run = Run(**record["run"])
            same = plan.has(run) and record.get("settings") == plan.changes(run)
            if same and record["results"] is not None:
                _check(record, plan.epochs)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(f"{path} is damaged or no result of claims.py ({error!r}): move it away") from None
        if not same:
            raise SystemExit(f"{path} was made with other settings: move it away")
        found[run] = record
    return found


def _check(record: dict[str, Any], epochs: int) -> None:
    """Check that the numbers for the report exist. Raises KeyError, TypeError or ValueError."""
    lines = record["epochs"]
    numbers = [record["results"][name] for name in ("natural_accuracy", "certified_accuracy")]
    numbers += [line["validation_certified_accuracy"] for line in lines]
    numbers += [layer[state] for line in lines for layer in line["layers"] for state in STATES]
    if len(lines) != epochs or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{len(lines)} of {epochs} epochs, or numbers that are not finite")


def train_one(plan: Plan, run: Run, data_dir: Path | None, folder: Path) -> str:
    """Train, and write the result. Returns a line with the outcome."""
    import torch

    from certtrain import RunContext, train
    from certtrain.errors import NonFiniteError
    from certtrain.runtime.allocator import keep_freed_memory
    from certtrain.storage import write_atomic

    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder_of_run:
        out, failure, results = Path(folder_of_run) / "run", None, None
        try:
            report = train(plan.preset_of(run), out, RunContext(data_dir))
            assert report is not None  # since nothing stops the run
            results = report.to_dict()
        except NonFiniteError as error:  # this is a result too
            failure = str(error)
        metrics = out / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    record = {"run": asdict(run), "settings": plan.changes(run), "results": results, "failure": failure}
    record["epochs"] = [json.loads(line) for line in lines]
    write_atomic(run.file(folder), json.dumps(record).encode())
    outcome = failure or f"certified {100 * results['certified_accuracy']:.2f} %" if results else failure
    return f"{run}: {outcome}"


def run_all(arguments: argparse.Namespace) -> None:
    """Train the runs without a result, in several processes."""
    plan = _plan(arguments)
    check_plan(arguments.folder, plan)
    done = read(arguments.folder, plan)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    save_plan(arguments.folder, plan)
    missing = [run for run in runs(plan, arguments) if run not in done]
    for remark in plan.remarks if arguments.preset else []:
        print(remark)
    print(f"{len(missing)} runs to do", flush=True)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(train_one, plan, run, arguments.data_dir, arguments.folder) for run in missing]
        for job in as_completed(jobs):
            print(job.result(), flush=True)


def _plan(arguments: argparse.Namespace) -> Plan:
    """The plan that the arguments choose. With --preset, the preset of each run must be valid."""
    from certtrain.errors import CerttrainError

    if arguments.preset is None:
        return MNIST
    try:
        plan = plan_for(arguments.preset, arguments.data_dir, tuple(arguments.eps or ()))
        for run in runs(plan, arguments):
            plan.preset_of(run)
    except CerttrainError as error:
        raise SystemExit(f"error: {error}") from None
    return plan


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run", help="train the runs without a result")
    command.set_defaults(do=run_all)
    command.add_argument("--preset", help="a preset's name or file, instead of MNIST and the small network")
    command.add_argument("--data-dir", type=Path)
    command.add_argument("--folder", type=Path, default=Path("claims"))
    command.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    command.add_argument("--eps", type=float, nargs="+", help="radii; by default 0.3 and 0.4, or the preset's")
    command.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
