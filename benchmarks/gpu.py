"""The most important measurements on a GPU, in one command that may be interrupted at any moment.

The stages, in order. Each writes its figures as lines of JSON to OUT/gpu.jsonl at once, and its other files to OUT, in
parts of at most 15 MiB:

steps      a step of CNN-7 in each arithmetic, eager, compiled and with CUDA graphs, compared with the standard step
precision  a few epochs in each arithmetic, with held-out images: time for each epoch, and the loss after it
train      cifar10-160ep, seed 0, in the fastest arithmetic whose loss is that of fp32
speedrun   cifar10-speedrun
seeds      cifar10-160ep, seeds 1 and 2

A stage is started only if the time that is left is enough, judged by the earlier stages. A training that runs out of
time keeps its metrics.

python benchmarks/gpu.py --data-dir DATA --out OUT --minutes 9
python benchmarks/gpu.py --data-dir DATA --out OUT --rehearse     # on a CPU: small networks, few images, all stages
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from step import EPOCH, Bench, Way

from certtrain import RunContext, load_model, load_preset, train
from certtrain.runtime.device import choose_device
from certtrain.training.step import Stepper

PIECE = 15 * 2**20  # the largest file, in bytes
CLOSE = 0.02  # a loss is that of fp32 if it differs by at most this share
EPOCHS, ROUNDS = 3, 10
# The changes of a rehearsal: the same stages with little to do.
SMALL: dict[str, Any] = {
    "data.examples": 2000, "model.width": 4, "model.linear_size": 32, "train.epochs": 3, "eps.start": 1,
    "eps.length": 1, "train.milestones": [2],
}  # fmt: skip


@dataclass
class Session:
    """The folders, the device, the time that is left, and what the stages found out."""

    out: Path
    data: Path
    device: str
    minutes: float
    rehearsal: bool
    start: float = field(default_factory=time.monotonic)
    fastest: str = "fp32"
    epoch_seconds: float = 0.0

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.minutes * 60 - (time.monotonic() - self.start)

    def report(self, stage: str, **values: Any) -> None:
        """Write a line, and print it."""
        line = json.dumps({"stage": stage, "at": round(time.monotonic() - self.start, 1), **values})
        with (self.out / "gpu.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def changes(self, **more: Any) -> dict[str, Any]:
        """Changes to a preset: those of a rehearsal, if it is one, and `more`, whose names have __ for dots."""
        named = {name.replace("__", "."): value for name, value in more.items()}
        return (SMALL if self.rehearsal else {}) | named

    @property
    def precisions(self) -> list[str]:
        return ["fp32", "tf32", "bf16"] if self.device == "cuda" else ["fp32", "bf16"]


# --- the stages ------------------------------------------------------------------------------------------


def steps(session: Session) -> None:
    """Milliseconds of each kind of step, and ratios to the standard step in fp32; the slowest to compile is last."""
    preset = load_preset("cifar10-160ep", session.changes(train__batch_size=128))
    bench = Bench(preset, session.device)
    standard = bench.step(Way("standard", "fp32"))
    for _ in range(3):
        standard()
    for way in ways(session):
        try:
            step = captured(bench, way) if way.kind == "graphs" else bench.step(way)
            compiling = sum(bench.seconds(step) for _ in range(3))
            pairs = [(bench.seconds(standard), bench.seconds(step)) for _ in range(ROUNDS)]
        except Exception as error:  # if one kind of step fails, go on with the others
            session.report("steps", way=str(way), error=f"{type(error).__name__}: {str(error)[:300]}")
            continue
        milliseconds = 1e3 * statistics.median(mine for _, mine in pairs)
        ratio = statistics.median(mine / theirs for theirs, mine in pairs)
        session.report("steps", way=str(way), ms=milliseconds, ratio=ratio, first_steps_seconds=compiling)


def ways(session: Session) -> Iterator[Way]:
    for kind in ("standard", "eager", "compiled", "graphs"):
        for precision in session.precisions:
            yield Way(kind, precision)
            if kind == "compiled":
                yield Way(kind, precision, centre=True)


def captured(bench: Bench, way: Way) -> Callable[[], None]:
    """The compiled step, with its kernels as CUDA graphs."""
    settings = bench.preset.train.model_copy(update={"precision": way.precision})
    stepper = Stepper(bench.preset.model_copy(update={"train": settings}), bench.network(), EPOCH, compile=True)
    stepper.compiled.graph = torch.compile(stepper._loss, fullgraph=True, dynamic=False, mode="reduce-overhead")
    return bench.certified(stepper)


def precision(session: Session) -> None:
    """Find the fastest arithmetic whose loss is that of fp32."""
    found = {name: list(short_run(session, name)) for name in session.precisions}
    reference = found["fp32"][-1]["loss"]
    good = [name for name, epochs in found.items() if abs(epochs[-1]["loss"] - reference) <= CLOSE * reference]
    session.fastest = min(good, key=lambda name: seconds_an_epoch(found[name]))
    session.epoch_seconds = seconds_an_epoch(found[session.fastest])
    session.report("precision", fastest=session.fastest, seconds_an_epoch=session.epoch_seconds, as_good_as_fp32=good)


def short_run(session: Session, name: str) -> list[dict[str, Any]]:
    """The epochs of a short training, evaluated on held-out images."""
    changes = session.changes(
        train__epochs=EPOCHS, eps__start=1, eps__length=2, train__milestones=[], train__precision=name,
        train__compile="on", data__validation=500 if session.rehearsal else 5000, data__verify_on="validation",
    )  # fmt: skip
    run(session, f"short-{name}", "cifar10-160ep", changes, 1e9)
    epochs = metrics(session.out / f"short-{name}.jsonl")
    for epoch in epochs:
        session.report("precision", precision=name, **{key: epoch[key] for key in ("epoch", "loss", "seconds")})
    return epochs


def seconds_an_epoch(epochs: Sequence[Mapping[str, Any]]) -> float:
    """Seconds for each epoch, without the first one, in which the step is compiled."""
    return float(epochs[-1]["seconds"] - epochs[0]["seconds"]) / max(len(epochs) - 1, 1)


def whole(session: Session, preset: str, name: str, **more: Any) -> None:
    """Run a training to its end, or until the time is up, and report its results."""
    fits = session.changes(train__precision=session.fastest, train__compile="on", **more)
    if preset == "cifar10-speedrun":  # this preset sets its own arithmetic
        fits.pop("train.precision")
    run(session, name, preset, fits, session.left - 30)


def run(session: Session, name: str, preset: str, changes: dict[str, Any], seconds: float) -> None:
    """Train, and keep the metrics, the results and the network in parts."""
    folder, end = session.out.parent / f"{session.out.name}-runs" / name, time.monotonic() + seconds
    shutil.rmtree(folder, ignore_errors=True)

    def should_stop() -> str | None:
        return "the time is up" if time.monotonic() >= end else None

    context = RunContext(session.data, session.device, should_stop=should_stop)
    report = train(load_preset(preset, changes), folder, context)
    shutil.copy(folder / "metrics.jsonl", session.out / f"{name}.jsonl")
    if report is None:
        session.report(name, stopped=len(metrics(folder / "metrics.jsonl")))
        return
    figures = {key: report.to_dict()[key] for key in ("natural_accuracy", "pgd_accuracy", "certified_accuracy")}
    session.report(name, **figures, seconds=metrics(folder / "metrics.jsonl")[-1]["seconds"])
    if not name.startswith("short"):
        keep(folder / "model.safetensors", session.out / name)


def keep(model: Path, target: Path) -> None:
    """Write the weights, rounded to bfloat16, in parts that are small enough."""
    tensors = {key: t.bfloat16() if t.is_floating_point() else t for key, t in load_model(model).state_dict().items()}
    data = save(tensors)
    for number, first in enumerate(range(0, len(data), PIECE)):
        target.with_suffix(f".{number}.part").write_bytes(data[first : first + PIECE])


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- the command -----------------------------------------------------------------------------------------


def stages(session: Session) -> Iterator[tuple[str, float, Callable[[], None]]]:
    """Each stage: its name, the seconds that it needs, and its function."""
    epochs = 3 if session.rehearsal else 160
    yield "steps", 0.0, lambda: steps(session)
    yield "precision", 60.0, lambda: precision(session)
    yield "train", 60.0, lambda: whole(session, "cifar10-160ep", "train", seed=0)
    yield "speedrun", session.epoch_seconds * epochs / 3, lambda: whole(session, "cifar10-speedrun", "speedrun")
    for seed in (1, 2):
        needed = session.epoch_seconds * epochs
        yield f"seed {seed}", needed, lambda seed=seed: whole(session, "cifar10-160ep", f"seed-{seed}", seed=seed)


def main() -> None:
    """Parse the arguments and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="by default all")
    parser.add_argument("--rehearse", action="store_true", help="run everything in small, on any device")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = choose_device("auto")
    session = Session(arguments.out, arguments.data_dir, device, arguments.minutes, arguments.rehearse)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    session.report("begin", device=name, torch=torch.__version__, rehearsal=arguments.rehearse)
    for stage, needed, work in stages(session):
        if arguments.only and stage not in arguments.only:
            continue
        if session.left < needed:
            session.report(stage, skipped=f"{session.left:.0f} s are left, and it needs {needed:.0f}")
            continue
        try:
            work()
        except Exception as error:  # if one stage fails, go on with the others
            session.report(stage, error=f"{type(error).__name__}: {str(error)[:500]}")
    session.report("end")


if __name__ == "__main__":
    main()
