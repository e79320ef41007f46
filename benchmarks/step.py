"""The time of a certified training step, as a multiple of that of a standard step.

In one process, several kinds of steps alternate: the standard step (natural cross-entropy, clipping, fused Adam) and
certtrain's full step (bounds, certified loss, both regularisers, clipping, fused Adam), eager and compiled, in each
arithmetic that the device has: by IBP, with BatchNorm's statistics from the clean batch and from the boxes' centres,
and by every other objective. All ratios are to the standard step in fp32 of the same round. The limit is the number of
passes that an objective cannot do without, at the pace of the standard step's passes in the same arithmetic. Peak
memory is measured in a process of its own for each kind.

python benchmarks/step.py                     # CNN-7 at CIFAR-10 shape, batch 64
python benchmarks/step.py --preset mnist-cpu  # the network of any preset
python benchmarks/step.py --only "compiled .*(MTL|SABR)"
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from certtrain.data import Augmentation, Batches
from certtrain.network.initialization import ibp_init_
from certtrain.network.models import InputSpec, build_model
from certtrain.runtime.allocator import keep_freed_memory
from certtrain.runtime.device import choose_device
from certtrain.runtime.precision import arithmetic, tensor_cores
from certtrain.spec.preset import Preset, load_preset
from certtrain.training.optimizer import Adam
from certtrain.training.step import Stepper

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "tinyimagenet": (3, 64, 64)}
EPOCH = 1000  # steps; the measured steps are in the middle of the ramp
IMAGES = 5000  # random images, from which batches are drawn


IBP = "IBP"
OBJECTIVES: dict[str, dict[str, Any]] = {
    IBP: {"name": "ibp"},
    "CROWN-IBP, fused": {"name": "crown-ibp"},
    "CROWN-IBP, by class": {"name": "crown-ibp", "loss_fusion": False},
    "MTL-IBP": {"name": "mtl-ibp"},
    "CC-IBP": {"name": "cc-ibp"},
    "Exp-IBP": {"name": "exp-ibp"},
    "SABR, 8 steps": {"name": "sabr", "attack": {"steps": 8}},
    "TAPS, 10 steps": {"name": "taps", "latent_attack": {"steps": 10}},
    "STAPS, 8 and 10 steps": {"name": "staps", "attack": {"steps": 8}, "latent_attack": {"steps": 10}},
    "PGD, 8 steps": {"name": "pgd", "attack": {"steps": 8}},
}
# Passes of the batch, forward ones and backward ones by inputs or by weights. Standard: one each. IBP: clean batch and
# box, 3 of each; with the centres' statistics 2. An attack step: one forward and one backward by inputs. MTL-IBP: clean
# batch, an attack step, and the box with the attacked batch. SABR: clean batch, 8 attack steps, the small box.
PASSES = {IBP: 9, "MTL-IBP": 14, "CC-IBP": 14, "Exp-IBP": 14, "SABR, 8 steps": 25, "PGD, 8 steps": 22}
STANDARD, CENTRE = 3, 6


@dataclass(frozen=True)
class Way:
    """One kind of step."""

    kind: str  # standard, eager or compiled
    precision: str
    centre: bool = False
    objective: str = IBP

    def __str__(self) -> str:
        if self.kind == "standard":
            return f"standard {self.precision}"
        statistics = ", centre statistics" if self.centre else ""
        return f"{self.kind} {self.precision} {self.objective}{statistics}"

    @property
    def passes(self) -> int | None:
        """The passes of its batch; None where they depend on the network."""
        if self.kind == "standard":
            return STANDARD
        return CENTRE if self.centre else PASSES.get(self.objective)


def ways(device: str) -> list[Way]:
    """All kinds of steps; the first is the baseline."""
    precisions = ["fp32", "tf32", "bf16"] if device == "cuda" else ["fp32", "bf16"]
    standard = [Way("standard", precision) for precision in precisions]
    centre = [Way(kind, precision, True) for kind in ("eager", "compiled") for precision in precisions]
    others = [
        Way(kind, precision, objective=name)
        for name in OBJECTIVES
        for kind in ("eager", "compiled")
        for precision in (precisions if "CROWN" not in name else ["fp32"])
    ]
    return standard + centre + others


@dataclass
class Bench:
    """A preset's network on random images, for any kind of step."""

    preset: Preset
    device: str

    def __post_init__(self) -> None:
        shape = SHAPES[self.preset.data.name]
        generator = torch.Generator().manual_seed(0)
        self.spec = InputSpec(shape, 10, (0.5,) * shape[0], (0.25,) * shape[0])
        self.batches = Batches(
            torch.randint(256, (IMAGES, *shape), generator=generator, dtype=torch.uint8),
            torch.randint(10, (IMAGES,), generator=generator),
            batch_size=self.preset.train.batch_size,
            seed=0,
            augmentation=Augmentation(self.preset.data.flip, self.preset.data.crop_padding),
            device=self.device,
        )
        self.x, self.labels = self.batches.batch(0, 0)

    def network(self) -> nn.Sequential:
        network = build_model(self.preset.model, self.spec)
        ibp_init_(network, torch.Generator().manual_seed(0))
        return network.to(self.device, memory_format=torch.channels_last).train()

    def step(self, way: Way, *, cuda_graphs: bool = True) -> Callable[[], None]:
        """A function that takes one step; its first calls compile it."""
        if way.kind == "standard":
            return self._standard(way.precision)
        changes = {"precision": way.precision, "batch_norm_statistics": "centre" if way.centre else "clean"}
        settings = self.preset.train.model_copy(update=changes)
        values = self.preset.model_copy(update={"train": settings}).model_dump()
        preset = load_preset(values | {"objective": OBJECTIVES[way.objective]})
        compiled = way.kind == "compiled"
        return self.certified(Stepper(preset, self.network(), EPOCH, compile=compiled, cuda_graphs=cuda_graphs))

    def certified(self, stepper: Stepper) -> Callable[[], None]:
        """A function that takes one step of `stepper`, in the middle of the ramp."""
        middle = (self.preset.eps.start - 1) * EPOCH + self.preset.eps.length * EPOCH // 2
        return lambda: stepper.run(middle, self.x, self.labels)

    def _standard(self, precision: str) -> Callable[[], None]:
        network, x, settings = self.network(), self.x.contiguous(memory_format=torch.channels_last), self.preset.train
        # The same optimiser as certtrain's, so that memory can be compared: torch's own loads its compiler.
        optimizer = Adam(network.parameters(), settings.learning_rate, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            with tensor_cores(precision == "tf32"):  # the backward pass as well
                with arithmetic(precision, self.device):  # type: ignore[arg-type]
                    loss = F.cross_entropy(network(x), self.labels)
                loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            optimizer.step()

        return step

    def seconds(self, action: Callable[[], object]) -> float:
        """The wall time of one call, until the device has finished its work."""
        self._finish()
        start = time.perf_counter()
        action()
        self._finish()
        return time.perf_counter() - start

    def _finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def peak_memory(bench: Bench, way: Way) -> float:
    """The peak memory in MiB of three steps: allocated memory on a GPU, resident memory of the process on a CPU."""
    step = bench.step(way)
    for _ in range(3):
        step()
    if bench.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with open("/proc/self/status", encoding="ascii") as status:  # getrusage would include the parent's peak
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10


def peak_of_a_process(arguments: argparse.Namespace, way: Way) -> float:
    command = [sys.executable, __file__, "--preset", arguments.preset, "--batch-size", str(arguments.batch_size)]
    command += [
        "--device",
        arguments.device,
        "--memory-of",
        json.dumps([way.kind, way.precision, way.centre, way.objective]),
    ]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def at_least_two(text: str) -> int:
    """The number in `text`, which must be two or more, as quartiles need two values."""
    if int(text) < 2:
        raise argparse.ArgumentTypeError("two or more")
    return int(text)


def spread(values: list[float]) -> str:
    """The median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def limit(way: Way, times: dict[Way, list[float]]) -> str:
    """The time of the way's passes at the standard step's pace, in standard fp32 steps; nothing where unknown."""
    first, same = next(iter(times)), Way("standard", way.precision)
    if way.passes is None:
        return ""
    return f"{way.passes / STANDARD * statistics.median(times[same]) / statistics.median(times[first]):.2f}"


def main() -> None:
    """Parse the arguments, take the steps, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10-160ep")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=at_least_two, default=15)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", metavar="REGEX", help="only kinds of certified steps whose name matches")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.device = choose_device(arguments.device)
    preset = load_preset(arguments.preset, {"train.batch_size": arguments.batch_size})
    bench = Bench(preset, arguments.device)
    if arguments.memory_of:
        print(peak_memory(bench, Way(*json.loads(arguments.memory_of))))
        return
    keep_freed_memory()
    import torch._dynamo.config

    torch._dynamo.config.cache_size_limit = 64  # each kind of step compiles the same functions for itself
    chosen = [way for way in ways(bench.device) if way.kind == "standard" or re.search(arguments.only, str(way))]
    steps = {way: bench.step(way) for way in chosen}
    compiling = {way: sum(bench.seconds(step) for _ in range(2)) for way, step in steps.items()}
    times: dict[Way, list[float]] = {way: [] for way in steps}
    data = []
    for number in range(arguments.rounds):
        for way, step in steps.items():
            times[way].append(bench.seconds(step))
        data.append(bench.seconds(lambda number=number: bench.batches.batch(0, number % 10)))
    standard = times[next(iter(times))]
    print(
        f"{arguments.preset}, batch {arguments.batch_size}, {torch.get_num_threads()} threads, {bench.device},", end=" "
    )
    print(f"torch {torch.__version__}, {arguments.rounds} rounds; median (quartiles)\n")
    print("| way | ms | times the standard step | limit | peak MiB | first two steps, s |\n|---|---|---|---|---|---|")
    for way, seconds in times.items():
        ratios = [mine / reference for mine, reference in zip(seconds, standard, strict=True)]
        memory = "" if arguments.no_memory else f"{peak_of_a_process(arguments, way):,.0f}"
        cells = (way, f"{1e3 * statistics.median(seconds):.1f}", spread(ratios), limit(way, times), memory)
        print("|", " | ".join(map(str, cells)), f"| {compiling[way]:.0f} |", flush=True)
    print(f"\nmaking a batch: {1e3 * statistics.median(data):.2f} ms", end="; ")
    fastest = min(times, key=lambda way: statistics.median(times[way]) if way.kind != "standard" else float("inf"))
    share = statistics.median(data) / statistics.median(times[fastest])
    print(f"{100 * share:.2f} % of the fastest certified step ({fastest})")


if __name__ == "__main__":
    main()
