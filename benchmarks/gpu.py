"""The most important measurements on a GPU, in one command that may be interrupted at any moment.

The stages, in order. Each writes its figures as lines of JSON to OUT/gpu.jsonl at once, and its other files to OUT, in
parts of at most 15 MiB:

first      the commands train, verify and stats on digits: whether everything works on this GPU
steps      a step of CNN-7 in each arithmetic, eager, compiled and with CUDA graphs, compared with the standard step
precision  a few epochs in each arithmetic, with held-out images: time for each epoch, and the loss after it
train      cifar10-160ep, seed 0, in the fastest arithmetic whose loss is that of fp32
choose     cifar10-speedrun with CHANGES, each judged on held-out images; the next stage has the best one's
speedrun   cifar10-speedrun
seed-1, seed-2  cifar10-160ep with other seeds

With --preset NAME the stages steps and train are of another preset. A stage is started only if the time that is left is
enough, judged by the earlier stages; one that --only names is always started. A training that runs out of time keeps
its metrics, and its newest checkpoint's network if that is the one to keep.

python benchmarks/gpu.py --data-dir DATA --out OUT --minutes 9
python benchmarks/gpu.py --data-dir DATA --out OUT --only train --fastest tf32    # without the first stages
python benchmarks/gpu.py --join OUT/train --out model.safetensors                 # a network from its parts
python benchmarks/gpu.py --data-dir DATA --out OUT --rehearse     # on a CPU: small networks, few images, all stages
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step import Bench, Way

from certtrain import RunContext, load_model, load_preset, train
from certtrain.network.modelfile import write_model
from certtrain.runtime.device import choose_device
from certtrain.training.events import EpochDone
from certtrain.verification.verify import Report

PIECE = 15 * 2**20  # the largest file, in bytes
CLOSE = 0.02  # a loss is that of fp32 if it differs by at most this share
EPOCHS, ROUNDS = 3, 10
EPOCH_SECONDS = 2.5  # of cifar10-160ep on an H100, for stages that begin before an epoch was timed
# The changes of a rehearsal: the same stages with little to do.
SMALL: dict[str, Any] = {
    "data.examples": 2000, "model.width": 4, "model.linear_size": 32, "train.epochs": 3, "eps.start": 1,
    "eps.length": 1, "train.milestones": [2],
}  # fmt: skip


# What may make cifar10-speedrun better.
CHANGES: dict[str, dict[str, Any]] = {
    "as-it-is": {},
    "clean-statistics": {"train.batch_norm_statistics": "clean"},
    "lower-radius": {"eps.train_factor": 1.1},
}


@dataclass
class Session:
    """The folders, the device, the time that is left, and what the stages found out."""

    out: Path
    data: Path
    device: str
    minutes: float
    rehearsal: bool
    start: float = field(default_factory=time.monotonic)
    fastest: str = "tf32"
    kept: str = "train"
    preset: str = "cifar10-160ep"
    more: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    epoch_seconds: float = 0.0

    @property
    def runs(self) -> Path:
        """The folder of the runs, beside that of the figures."""
        return self.out.parent / f"{self.out.name}-runs"

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
        return (SMALL if self.rehearsal else {}) | self.more | named

    @property
    def training(self) -> float:
        """The seconds that cifar10-160ep takes, by its epochs so far, or else by those of an H100."""
        return (self.epoch_seconds or EPOCH_SECONDS) * (SMALL["train.epochs"] if self.rehearsal else 160)

    @property
    def precisions(self) -> list[str]:
        return ["fp32", "tf32", "bf16"] if self.device == "cuda" else ["fp32", "bf16"]


# --- the stages ------------------------------------------------------------------------------------------


def first(session: Session) -> None:
    """Train a small network, verify it by every method, and show its layers, as a user would."""
    model, few = session.runs / "digits" / "model.safetensors", ["--limit", "50"]
    command(session, "train", "--preset", "digits", "--epochs", "10", "--out", str(model.parent))
    command(session, "verify", str(model), "--method", "auto", "--timeout", "2s", *few)
    command(session, "verify", str(model), "--device", "cpu")
    command(session, "stats", str(model))


def command(session: Session, *words: str) -> None:
    """Run a command of certtrain, and report its time and the end of its output."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "certtrain", *words], capture_output=True, text=True)
    text = (done.stdout + done.stderr)[-1500:]
    print(text, flush=True)
    session.report(
        "first", command=" ".join(words), code=done.returncode, seconds=time.monotonic() - start, end=text[-600:]
    )


def steps(session: Session) -> None:
    """Milliseconds of each kind of step, and ratios to the standard step in fp32; the slowest to compile is last."""
    preset = load_preset(session.preset, session.changes())
    bench = Bench(preset, session.device)
    standard = bench.step(Way("standard", "fp32"))
    for _ in range(3):
        standard()
    for way in ways(session):
        if session.left < 20:
            session.report("steps", way=str(way), skipped="the time is up")
            continue
        try:
            step = with_or_without_graphs(bench, way)
            compiling = sum(bench.seconds(step) for _ in range(3))
            pairs = [(bench.seconds(standard), bench.seconds(step)) for _ in range(ROUNDS)]
        except Exception as error:  # if one kind of step fails, go on with the others
            session.report("steps", way=str(way), error=f"{type(error).__name__}: {str(error)[:300]}")
            continue
        milliseconds = 1e3 * statistics.median(mine for _, mine in pairs)
        ratio = statistics.median(mine / theirs for theirs, mine in pairs)
        row = chained(step)
        session.report("steps", way=str(way), ms=milliseconds, in_a_row=row, ratio=ratio, first_steps_seconds=compiling)


def ways(session: Session) -> Iterator[Way]:
    """The kinds of steps; the most important of those that are compiled come first, as each takes its time."""
    fast = [name for name in session.precisions if name != "fp32"]
    for kind in ("standard", "eager"):
        yield from (Way(kind, name) for name in session.precisions)
    for name in fast:
        yield Way("graphs", name)
    for name in fast:
        yield Way("compiled", name)
    yield Way("graphs", "bf16", centre=True)
    yield Way("graphs", "fp32")
    yield Way("compiled", "fp32")
    yield Way("compiled", "bf16", centre=True)


def with_or_without_graphs(bench: Bench, way: Way) -> Callable[[], None]:
    """A function that takes a step of this kind; a compiled step launches its kernels one by one."""
    torch._dynamo.reset()  # it compiles a function only so many times
    graphs = way.kind == "graphs"
    return bench.step(Way("compiled", way.precision, way.centre) if graphs else way, cuda_graphs=graphs)


def chained(step: Callable[[], None], count: int = 50) -> float:
    """The milliseconds of each of many steps that do not wait for one another."""
    finish()
    start = time.perf_counter()
    for _ in range(count):
        step()
    finish()
    return 1e3 * (time.perf_counter() - start) / count


def finish() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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


def choose(session: Session) -> None:
    """Find the changes with the largest certified accuracy on held-out images."""
    held_out = {"data.validation": 500 if session.rehearsal else 5000, "data.verify_on": "validation"}
    found: dict[str, float] = {}
    for name, changes in CHANGES.items():
        if session.left < 30:
            break
        report = run(session, name, "cifar10-speedrun", session.changes() | changes | held_out, session.left - 30)
        if report is not None:
            found[name] = report.certified_accuracy
    session.best = CHANGES[max(found, key=lambda name: found[name])] if found else {}
    session.report("choose", certified=found, best=session.best)


def whole(session: Session, preset: str, name: str, **more: Any) -> None:
    """Run a training to its end, or until the time is up, and report its results."""
    fits = session.changes(train__precision=session.fastest, train__compile="on", **more)
    if preset == "cifar10-speedrun":  # this preset sets its own arithmetic
        fits.pop("train.precision")
        fits |= session.best
    run(session, name, preset, fits, session.left - 30)


def run(session: Session, name: str, preset: str, changes: dict[str, Any], seconds: float) -> Report | None:
    """Train, and keep the metrics, the results and the network in parts."""
    torch._dynamo.reset()
    folder, end = session.runs / name, time.monotonic() + seconds
    shutil.rmtree(folder, ignore_errors=True)

    def should_stop() -> str | None:
        return "the time is up" if time.monotonic() >= end else None

    def on_event(event: Any) -> None:
        if isinstance(event, EpochDone):
            shutil.copy(folder / "metrics.jsonl", session.out / f"{name}.jsonl")
            if event.record.epoch % 10 == 1:
                print(json.dumps(event.record.to_dict() | {"layers": None}), flush=True)

    context = RunContext(session.data, session.device, should_stop=should_stop, emit=on_event)
    report = train(load_preset(preset, changes), folder, context)
    if report is None:
        session.report(name, stopped=len(metrics(folder / "metrics.jsonl")))
        if name == session.kept:  # as far as it came
            newest = load_model(folder, session.data)
            write_model(folder / "model.safetensors", newest, newest.metadata)
            split(folder / "model.safetensors", session.out / name)
        return None
    figures = {"training_seconds": metrics(folder / "metrics.jsonl")[-1]["seconds"], **report.to_dict()}
    session.report(name, **figures)
    if name == session.kept:
        split(folder / "model.safetensors", session.out / name)
    return report


def split(model: Path, target: Path) -> None:
    """Write a model file in parts that are small enough, its float32 weights rounded to 16 bits of mantissa."""
    data = bytearray(model.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for entry in json.loads(data[8:start]).values():
        if entry.get("dtype") == "F32":
            first, last = (start + place for place in entry["data_offsets"])
            weights = torch.frombuffer(data, dtype=torch.uint8)[first:last].view(torch.int32)
            weights.copy_((weights + 0x80) & ~0xFF)
    planes = zlib.compress(b"".join(bytes(data[place::4]) for place in range(4)), 1)
    for number, first in enumerate(range(0, len(planes), PIECE)):
        target.with_suffix(f".{number}.part").write_bytes(planes[first : first + PIECE])


def join(parts: Path, model: Path) -> None:
    """Write the model file of which `parts`.0.part, `parts`.1.part and so on are the parts."""
    files = sorted(parts.parent.glob(f"{parts.name}.*.part"), key=lambda file: int(file.suffixes[-2][1:]))
    planes = zlib.decompress(b"".join(file.read_bytes() for file in files))
    data, first = bytearray(len(planes)), 0
    for place in range(4):
        count = len(range(place, len(planes), 4))
        data[place::4] = planes[first : first + count]
        first += count
    model.write_bytes(data)


def metrics(path: Path) -> list[dict[str, Any]]:
    """The epochs of a run; none before the first is finished."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- the command -----------------------------------------------------------------------------------------


def stages(session: Session) -> Iterator[tuple[str, float, Callable[[], None]]]:
    """Each stage: its name, the seconds that it needs, and its function."""
    yield "first", 0.0, lambda: first(session)
    yield "steps", 0.0, lambda: steps(session)
    yield "precision", 60.0, lambda: precision(session)
    yield "train", session.training, lambda: whole(session, session.preset, "train", seed=0)
    yield "choose", 2 * session.training, lambda: choose(session)
    yield "speedrun", session.training / 3, lambda: whole(session, "cifar10-speedrun", "speedrun")
    for seed in (1, 2):
        work = partial(whole, session, "cifar10-160ep", f"seed-{seed}", seed=seed)
        yield f"seed-{seed}", session.training, work


def main() -> None:
    """Parse the arguments and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="by default all")
    parser.add_argument("--fastest", default="tf32", help="the arithmetic, if the stage precision does not run")
    parser.add_argument("--keep", default="train", metavar="STAGE", help="the stage whose network is kept in parts")
    parser.add_argument("--preset", default="cifar10-160ep", metavar="NAME", help="of the stages steps and train")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the presets")
    parser.add_argument("--join", type=Path, metavar="PARTS", help="put a network's parts together")
    parser.add_argument("--rehearse", action="store_true", help="run everything in small, on any device")
    arguments = parser.parse_args()
    if arguments.join:
        join(arguments.join, arguments.out)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = choose_device("auto")
    session = Session(arguments.out, arguments.data_dir, device, arguments.minutes, arguments.rehearse)
    session.fastest, session.kept = arguments.fastest if device == "cuda" else "fp32", arguments.keep
    session.preset = arguments.preset
    session.more = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in arguments.set)}
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    session.report("begin", device=name, torch=torch.__version__, rehearsal=arguments.rehearse)
    for stage, needed, work in stages(session):
        if arguments.only and stage not in arguments.only:
            continue
        if session.left < (0.0 if arguments.only else needed):
            session.report(stage, skipped=f"{session.left:.0f} s are left, and it needs {needed:.0f}")
            continue
        try:
            work()
        except Exception as error:  # if one stage fails, go on with the others
            session.report(stage, error=f"{type(error).__name__}: {str(error)[:500]}")
    session.report("end")


if __name__ == "__main__":
    main()
