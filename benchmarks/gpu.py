"""What a GPU should be asked first, in one call that may be cut at any moment.

The stages, in order; each writes its figures as lines of JSON to OUT/gpu.jsonl as it has them, and what a stage
makes lies in OUT as well, in files of 15 MiB at most:

steps      a step of CNN-7 in each arithmetic, eager, compiled and with CUDA graphs, beside the standard step
precision  a few epochs in each arithmetic on held-out images: time an epoch, and the loss after each
train      cifar10-160ep, seed 0, whole, in the fastest arithmetic whose loss is that of fp32
speedrun   cifar10-speedrun
seeds      cifar10-160ep, seeds 1 and 2

A stage is begun only if the time that is left will do for it, by what the stages before took. A training that the
time cuts keeps its metrics.

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

PIECE = 15 * 2**20  # bytes of a file
CLOSE = 0.02  # a loss is that of fp32 if it is within this share of it
EPOCHS, ROUNDS = 3, 10
# On a CPU the same stages with little to do.
SMALL: dict[str, Any] = {
    "data.examples": 2000, "model.width": 4, "model.linear_size": 32, "train.epochs": 3, "eps.start": 1,
    "eps.length": 1, "train.milestones": [2],
}  # fmt: skip


@dataclass
class Session:
    """Where results go, and how much time is left."""

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
        """Seconds."""
        return self.minutes * 60 - (time.monotonic() - self.start)

    def tell(self, stage: str, **values: Any) -> None:
        """Write a line, and print it."""
        line = json.dumps({"stage": stage, "at": round(time.monotonic() - self.start, 1), **values})
        with (self.out / "gpu.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def changes(self, **more: Any) -> dict[str, Any]:
        """Of a preset: those of the rehearsal, if it is one, and `more`, whose names have __ for dots."""
        named = {name.replace("__", "."): value for name, value in more.items()}
        return (SMALL if self.rehearsal else {}) | named

    @property
    def precisions(self) -> list[str]:
        return ["fp32", "tf32", "bf16"] if self.device == "cuda" else ["fp32", "bf16"]


# --- the stages ------------------------------------------------------------------------------------------


def steps(session: Session) -> None:
    """Milliseconds and ratios to the standard step in fp32, way by way, the slowest to compile last."""
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
        except Exception as error:  # one way that fails leaves the others
            session.tell("steps", way=str(way), error=f"{type(error).__name__}: {str(error)[:300]}")
            continue
        milliseconds = 1e3 * statistics.median(mine for _, mine in pairs)
        ratio = statistics.median(mine / theirs for theirs, mine in pairs)
        session.tell("steps", way=str(way), ms=milliseconds, ratio=ratio, first_steps_seconds=compiling)


def ways(session: Session) -> Iterator[Way]:
    for kind in ("standard", "eager", "compiled", "graphs"):
        for precision in session.precisions:
            yield Way(kind, precision)
            if kind == "compiled":
                yield Way(kind, precision, centre=True)


def captured(bench: Bench, way: Way) -> Callable[[], None]:
    """The compiled step, its kernels replayed as CUDA graphs."""
    settings = bench.preset.train.model_copy(update={"precision": way.precision})
    stepper = Stepper(bench.preset.model_copy(update={"train": settings}), bench.network(), EPOCH, compile=True)
    stepper.compiled.graph = torch.compile(stepper._loss, fullgraph=True, dynamic=False, mode="reduce-overhead")
    return bench.certified(stepper)


def precision(session: Session) -> None:
    """Which arithmetic is fastest and trains as fp32 does."""
    found = {name: list(short_run(session, name)) for name in session.precisions}
    reference = found["fp32"][-1]["loss"]
    good = [name for name, epochs in found.items() if abs(epochs[-1]["loss"] - reference) <= CLOSE * reference]
    session.fastest = min(good, key=lambda name: seconds_an_epoch(found[name]))
    session.epoch_seconds = seconds_an_epoch(found[session.fastest])
    session.tell("precision", fastest=session.fastest, seconds_an_epoch=session.epoch_seconds, as_good_as_fp32=good)


def short_run(session: Session, name: str) -> list[dict[str, Any]]:
    """The epochs of a short training, judged on held-out images."""
    changes = session.changes(
        train__epochs=EPOCHS, eps__start=1, eps__length=2, train__milestones=[], train__precision=name,
        train__compile="on", data__validation=500 if session.rehearsal else 5000, data__verify_on="validation",
    )  # fmt: skip
    run(session, f"short-{name}", "cifar10-160ep", changes, 1e9)
    epochs = metrics(session.out / f"short-{name}.jsonl")
    for epoch in epochs:
        session.tell("precision", precision=name, **{key: epoch[key] for key in ("epoch", "loss", "seconds")})
    return epochs


def seconds_an_epoch(epochs: Sequence[Mapping[str, Any]]) -> float:
    """Without the first one, which compiles."""
    return float(epochs[-1]["seconds"] - epochs[0]["seconds"]) / max(len(epochs) - 1, 1)


def whole(session: Session, preset: str, name: str, **more: Any) -> None:
    """A training to its end, or as far as the time goes, and what it gives."""
    fits = session.changes(train__precision=session.fastest, train__compile="on", **more)
    if preset == "cifar10-speedrun":  # which has an arithmetic of its own
        fits.pop("train.precision")
    run(session, name, preset, fits, session.left - 30)


def run(session: Session, name: str, preset: str, changes: dict[str, Any], seconds: float) -> None:
    """Train; keep metrics, results and the network in pieces."""
    folder, end = session.out.parent / f"{session.out.name}-runs" / name, time.monotonic() + seconds
    shutil.rmtree(folder, ignore_errors=True)

    def should_stop() -> str | None:
        return "the time is over" if time.monotonic() >= end else None

    context = RunContext(session.data, session.device, should_stop=should_stop)
    report = train(load_preset(preset, changes), folder, context)
    shutil.copy(folder / "metrics.jsonl", session.out / f"{name}.jsonl")
    if report is None:
        session.tell(name, stopped=len(metrics(folder / "metrics.jsonl")))
        return
    figures = {key: report.to_dict()[key] for key in ("natural_accuracy", "pgd_accuracy", "certified_accuracy")}
    session.tell(name, **figures, seconds=metrics(folder / "metrics.jsonl")[-1]["seconds"])
    if not name.startswith("short"):
        keep(folder / "model.safetensors", session.out / name)


def keep(model: Path, target: Path) -> None:
    """The weights rounded to bfloat16, in pieces that are small enough to bring back."""
    tensors = {key: t.bfloat16() if t.is_floating_point() else t for key, t in load_model(model).state_dict().items()}
    data = save(tensors)
    for number, first in enumerate(range(0, len(data), PIECE)):
        target.with_suffix(f".{number}.part").write_bytes(data[first : first + PIECE])


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- all of them -----------------------------------------------------------------------------------------


def stages(session: Session) -> Iterator[tuple[str, float, Callable[[], None]]]:
    """Each by its name, the seconds that it needs, and what it does."""
    epochs = 3 if session.rehearsal else 160
    yield "steps", 0.0, lambda: steps(session)
    yield "precision", 60.0, lambda: precision(session)
    yield "train", 60.0, lambda: whole(session, "cifar10-160ep", "train", seed=0)
    yield "speedrun", session.epoch_seconds * epochs / 3, lambda: whole(session, "cifar10-speedrun", "speedrun")
    for seed in (1, 2):
        needed = session.epoch_seconds * epochs
        yield f"seed {seed}", needed, lambda seed=seed: whole(session, "cifar10-160ep", f"seed-{seed}", seed=seed)


def main() -> None:
    """Parse the arguments, go through the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="by default all")
    parser.add_argument("--rehearse", action="store_true", help="everything small, on whatever device there is")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = choose_device("auto")
    session = Session(arguments.out, arguments.data_dir, device, arguments.minutes, arguments.rehearse)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    session.tell("begin", device=name, torch=torch.__version__, rehearsal=arguments.rehearse)
    for stage, needed, work in stages(session):
        if arguments.only and stage not in arguments.only:
            continue
        if session.left < needed:
            session.tell(stage, skipped=f"{session.left:.0f} s are left, and it needs {needed:.0f}")
            continue
        try:
            work()
        except Exception as error:  # one stage that fails leaves the others
            session.tell(stage, error=f"{type(error).__name__}: {str(error)[:500]}")
    session.tell("end")


if __name__ == "__main__":
    main()
