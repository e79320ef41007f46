"""All training objectives at a scale for two CPU cores: MNIST at ε = 0.1 and 0.3, and CIFAR-10 at 2/255.

Each objective trains a small network of two convolutions with the same data, epochs, optimiser and ramp. Its own
numbers, such as α, are chosen among a few with seed 0, by the certified accuracy on held-out examples; then the
chosen setting is trained with the other seeds, and each of these networks is verified once on test images: natural
accuracy, accuracy under attack, certified accuracy by intervals, and by all methods with complete verification last.
Each training and each verification writes a file, and is not repeated if its file exists, so the command can be stopped
and started again at any time.

python benchmarks/objectives.py run --folder objectives --data-dir DATA --jobs 2
python benchmarks/objectives.py run --folder objectives --settings mnist-0.1 --objectives ibp sabr --seeds 0
python benchmarks/objectives.py show --folder objectives   # a table in Markdown, and objectives.svg in the folder
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

Fields = dict[str, Any]

EXAMPLES, HELD_OUT, EPOCHS = 10_000, 2_000, 10
TRIED, TRIAL_TIMEOUT = 200, 1.0  # held-out examples on which candidates are compared, and the seconds for each
TESTED, TIMEOUT = 200, 3.0  # test images on which the chosen networks are verified, and the seconds for each

COMMON: Fields = {
    "data.validation": HELD_OUT,
    "data.examples": EXAMPLES,
    "data.verify_on": "validation",
    "model.name": "cnn",
    "model.channels": [16, 32],
    "model.kernels": [4, 4],
    "model.strides": [2, 2],
    "model.linear": [100],
    "eps.start": 1,
    "eps.length": 6,
    "train.epochs": EPOCHS,
    "train.batch_size": 64,
    "train.learning_rate": 1e-3,
    "train.milestones": [8, 9],
    "train.batch_norm_statistics": "clean",
    "train.batch_norm_refresh": True,
}
SETTINGS: dict[str, tuple[str, Fields]] = {  # by name: a shipped preset, and changes to it
    "mnist-0.1": ("mnist-cpu", {"eps.max": 0.1}),
    "mnist-0.3": ("mnist-cpu", {"eps.max": 0.3}),
    "cifar10-2-255": ("cifar10-160ep", {"eps.max": "2/255"}),
}
ATTACK: Fields = {"steps": 5, "step_size": 0.5}
OBJECTIVES: dict[str, list[Fields]] = {  # the candidates of each
    "ibp": [{}],
    "crown-ibp": [{}],
    "pgd": [{"attack": ATTACK}],
    "mtl-ibp": [{"alpha": alpha} for alpha in (0.1, 0.4)],
    "cc-ibp": [{"alpha": alpha} for alpha in (0.1, 0.4)],
    "exp-ibp": [{"alpha": alpha} for alpha in (0.3, 0.6)],
    "sabr": [{"subselection_ratio": ratio, "attack": ATTACK} for ratio in (0.1, 0.4)],
    "taps": [{"gradient_scale": scale, "latent_attack": ATTACK} for scale in (1.0, 5.0)],
    "staps": [{"subselection_ratio": r, "attack": ATTACK, "latent_attack": ATTACK} for r in (0.1, 0.4)],
}


@dataclass(frozen=True)
class Work:
    """One network: what it is trained by, and where its files are."""

    setting: str
    objective: str
    candidate: int
    seed: int
    folder: Path
    data_dir: Path | None

    @property
    def run(self) -> Path:
        return self.folder / f"{self.setting}-{self.objective}-{self.candidate}-seed{self.seed}"

    @property
    def fields(self) -> Fields:
        return {"name": self.objective} | OBJECTIVES[self.objective][self.candidate]

    @property
    def time(self) -> Path:
        """The file with the processor time of the training; there once the training is finished."""
        return self.folder / f"{self.run.name}.time.json"

    def record(self, split: str) -> Path:
        """The file with the results on that part of the data."""
        return self.folder / f"{self.run.name}.{split}.json"


def trained(work: Work) -> Path:
    """The model file of a finished run. Trains, from the start, if there is none: its time is that of the whole."""
    from certtrain import RunContext, load_preset, train
    from certtrain.storage import write_json

    model = work.run / "model.safetensors"
    if work.time.exists():
        return model
    shutil.rmtree(work.run, ignore_errors=True)
    base, changes = SETTINGS[work.setting]
    values = load_preset(base).model_dump() | {"objective": work.fields}
    start = time.process_time()
    train(load_preset(values, COMMON | changes | {"seed": work.seed}), work.run, RunContext(work.data_dir))
    write_json(work.time, {"processor_seconds": time.process_time() - start})
    return model


def verified(work: Work, split: str, count: int, timeout: float) -> Fields:
    """The results on the first `count` images of a part of the data; computes them if there is no file yet."""
    from certtrain import load_model, load_preset, verify
    from certtrain.attack import PGD
    from certtrain.network.assembly import load_run_images
    from certtrain.storage import write_json
    from certtrain.verification.cascade import Limits

    path = work.record(split)
    if path.exists():
        found: Fields = json.loads(path.read_text())
        return found
    model = load_model(trained(work))
    preset = load_preset(str(work.run / "preset.json"))
    images = load_run_images(preset, work.data_dir, lambda what, done, total: None).part(split).take(count)
    report = verify(model, images, preset.eps.max, attack=PGD(steps=40, restarts=2), limits=Limits(timeout))
    record: Fields = (
        report.to_dict() | json.loads(work.time.read_text()) | {"timeout": timeout, "objective": work.fields}
    )
    write_json(path, record)
    return record


def trial(work: Work) -> float:
    """The certified accuracy on held-out examples."""
    _alone()
    return float(verified(work, "validation", TRIED, TRIAL_TIMEOUT)["certified_accuracy"])


def test(work: Work) -> Fields:
    """The results on test images."""
    _alone()
    return verified(work, "test", TESTED, TIMEOUT)


def _alone() -> None:
    """This process is one of several: one thread for each."""
    import torch

    torch.set_num_threads(1)


# --- the runs --------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    """Train and verify all that is asked for, and print a line for each."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    pairs = list(product(arguments.settings, arguments.objectives))
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        trials = {pair: [pool.submit(trial, each) for each in candidates(arguments, *pair)] for pair in pairs}
        for (setting, objective), futures in trials.items():
            accuracies = [future.result() for future in futures]
            print(f"{_now()} {setting} {objective}: held out {accuracies}", flush=True)
        tests = {
            (pair, seed): pool.submit(test, chosen(arguments, *pair, seed))
            for seed in arguments.seeds
            for pair in pairs
        }
        for ((setting, objective), seed), future in tests.items():
            found = future.result()
            print(f"{_now()} {setting} {objective} seed {seed}: {_cells(found)}", flush=True)


def _now() -> str:
    return time.strftime("%H:%M:%S")


def candidates(arguments: argparse.Namespace, setting: str, objective: str) -> list[Work]:
    """The candidates of an objective, with seed 0; none if there is no choice."""
    numbers = range(len(OBJECTIVES[objective]))
    if len(numbers) == 1:
        return []
    return [Work(setting, objective, n, 0, arguments.folder, arguments.data_dir) for n in numbers]


def chosen(arguments: argparse.Namespace, setting: str, objective: str, seed: int) -> Work:
    """The candidate with the largest certified accuracy on held-out examples, with that seed."""
    found = {work.candidate: work.record("validation") for work in candidates(arguments, setting, objective)}
    accuracies = {n: json.loads(record.read_text())["certified_accuracy"] for n, record in found.items()}
    best = max(accuracies, key=accuracies.__getitem__, default=0)
    return Work(setting, objective, best, seed, arguments.folder, arguments.data_dir)


# --- the table -------------------------------------------------------------------------------------------

COLUMNS = ("natural", "attacked", "by intervals", "certified", "open", "training, processor s")


def numbers_of(record: Fields) -> tuple[float, ...]:
    """The accuracies in %, and the processor time of the training, s."""
    by_intervals = record["certified_by"].get("ibp", 0) / record["examples"]
    shares = (record["natural_accuracy"], record["attacked_accuracy"], by_intervals, record["certified_accuracy"])
    opened = record["open"] / record["examples"]
    return (*(100 * share for share in (*shares, opened)), record["processor_seconds"])


def _cells(record: Fields) -> str:
    return ", ".join(f"{name} {number:.1f}" for name, number in zip(COLUMNS, numbers_of(record), strict=True))


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, str, list[Fields]]]:
    """The setting, the objective, and the test results of all its seeds."""
    for setting, objective in product(SETTINGS, OBJECTIVES):
        files = sorted(arguments.folder.glob(f"{setting}-{objective}-[0-9]-seed*.test.json"))
        if files:
            yield setting, objective, [json.loads(file.read_text()) for file in files]


def show(arguments: argparse.Namespace) -> None:
    """Print the table, and draw the picture."""
    print(f"| setting | objective | seeds | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 3)}")
    points: dict[str, list[tuple[str, float, float]]] = {}
    for setting, objective, records in rows(arguments):
        columns = list(zip(*map(numbers_of, records), strict=True))
        print(f"| {setting} | {_title(records[0])} | {len(records)} | {' | '.join(map(mean, columns))} |")
        point = objective, statistics.mean(columns[0]), statistics.mean(columns[3])
        points.setdefault(setting, []).append(point)
    if points:
        draw(points, arguments.folder / "objectives.svg")


def _title(record: Fields) -> str:
    fields = record["objective"]
    own = [f"{name} {value:g}" for name, value in fields.items() if isinstance(value, (int, float))]
    return ", ".join([fields["name"], *own]).replace("_", " ")


def mean(values: Sequence[float]) -> str:
    """The mean, and the sample standard deviation of several seeds."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def draw(points: dict[str, list[tuple[str, float, float]]], path: Path) -> None:
    """Natural against certified accuracy, a panel for each setting."""
    from matplotlib.figure import Figure

    figure = Figure((4.5 * len(points), 4), layout="constrained")
    for axes, (setting, objectives) in zip(
        figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True
    ):
        for name, natural, certified in objectives:
            axes.plot(natural, certified, "o")
            axes.annotate(name, (natural, certified), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set(title=setting, xlabel="natural accuracy, %", ylabel="certified accuracy, %")
        axes.margins(0.15)
    figure.savefig(path)
    print(f"\npicture: {path}")


def main() -> None:
    """Parse the arguments, then run or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    {"run": run, "show": show}[arguments.command](arguments)


if __name__ == "__main__":
    main()
