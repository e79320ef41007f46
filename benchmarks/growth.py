"""How a certified training step's time and memory grow with batch, width, depth and image size.

The base is a network of 3×3 convolutions, and one of the four is doubled at a time. Each size is measured in a process
of its own: first the peak memory over three certified steps (eager, float32, both regularisers), on a CPU as the
increase of resident memory, on a GPU as allocated memory; then the seconds of certified and standard steps (natural
cross-entropy, clipping, fused Adam), alternating. An exponent is the slope of a straight line through the logarithms:
1 is linear growth.

python benchmarks/growth.py
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.network.initialization import ibp_init_
from certtrain.network.models import InputSpec, build_model
from certtrain.runtime.allocator import keep_freed_memory
from certtrain.runtime.device import choose_device
from certtrain.runtime.precision import tensor_cores
from certtrain.spec.architecture import CNN
from certtrain.spec.preset import Preset, load_preset
from certtrain.training.step import Stepper

EPOCH = 1000  # steps; the measured steps are in the middle of the ramp


@dataclass(frozen=True)
class Size:
    """The size of a batch and its network: `depth` convolutions of `width` channels, images of `side`² pixels."""

    batch: int = 32
    width: int = 32
    depth: int = 4
    side: int = 16

    def preset(self) -> Preset:
        """The CIFAR-10 preset with this network."""
        times = (1,) * self.depth
        model = CNN(
            name="cnn",
            channels=tuple(self.width * n for n in times),
            kernels=tuple(3 * n for n in times),
            strides=times,
            linear=(64,),
        )
        return load_preset("cifar10-160ep").model_copy(update={"model": model})

    def network(self, device: str) -> nn.Sequential:
        spec = InputSpec((3, self.side, self.side), 10, (0.5,) * 3, (0.25,) * 3)
        network = build_model(self.preset().model, spec)
        ibp_init_(network, torch.Generator().manual_seed(0))
        return network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload,no-any-return]

    def images(self, device: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(self.batch, 3, self.side, self.side, generator=generator)
        labels = torch.randint(10, (self.batch,), generator=generator)
        return x.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)


# What is doubled, with a function for its number of units, and its sizes.
AXES: dict[str, tuple[Callable[[Size], int], list[Size]]] = {
    "batch": (lambda size: size.batch, [Size(batch=n) for n in (16, 32, 64, 128)]),
    "width": (lambda size: size.width, [Size(width=n) for n in (16, 32, 64, 128)]),
    "depth": (lambda size: size.depth, [Size(depth=n) for n in (2, 4, 8, 16)]),
    "image size": (lambda size: size.side**2, [Size(side=n) for n in (8, 16, 32, 64)]),
}


def certified_step(size: Size, device: str) -> Callable[[], None]:
    preset, (x, labels) = size.preset(), size.images(device)
    stepper = Stepper(preset, size.network(device), EPOCH)
    middle = (preset.eps.start - 1) * EPOCH + preset.eps.length * EPOCH // 2
    return lambda: stepper.run(middle, x, labels)


def standard_step(size: Size, device: str) -> Callable[[], None]:
    network, settings, (x, labels) = size.network(device), size.preset().train, size.images(device)
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()

    return step


@tensor_cores(False)
def measure(size: Size, rounds: int, device: str) -> dict[str, Any]:
    """MiB and seconds of this process: the peak memory of certified steps, then the times of both kinds of steps."""
    # One small step first, so that what torch loads at its first step does not count.
    certified_step(replace(size, batch=2, width=1, depth=1, side=2), device)()
    before = resident("VmRSS")
    certified = certified_step(size, device)
    for _ in range(3):
        certified()
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else resident("VmHWM") - before
    keep_freed_memory()
    standard, times = standard_step(size, device), []
    for number in range(-1, rounds):
        pair = seconds(certified, device), seconds(standard, device)
        times += [pair] if number >= 0 else []
    return {"mib": peak, "certified": [c for c, _ in times], "standard": [s for _, s in times]}


def resident(entry: str) -> float:
    """The resident memory of this process in MiB: VmRSS is that of now, VmHWM the peak."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(entry)) / 2**10


def seconds(action: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_a_process(size: Size, rounds: int, device: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--rounds", str(rounds), "--device", device, "--one", json.dumps(asdict(size))]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def exponent(units: list[int], values: list[float]) -> float:
    """The slope of the least-squares line through the logarithms."""
    return statistics.linear_regression([math.log(n) for n in units], [math.log(v) for v in values]).slope


def show(axis: str, found: dict[Size, dict[str, Any]]) -> None:
    """Print the rows of one axis, and its exponents."""
    count, sizes = AXES[axis]
    units = [count(size) for size in sizes]
    rows = [found[size] for size in sizes]
    certified, standard = ([statistics.median(row[kind]) for row in rows] for kind in ("certified", "standard"))
    for n, row, mine in zip(units, rows, certified, strict=True):
        low, ratio, high = statistics.quantiles(
            [c / s for c, s in zip(row["certified"], row["standard"], strict=True)], n=4
        )
        print(
            f"| {axis} | {n:,} | {1e3 * mine:.1f} | {1e3 * mine / n:.3g} | {ratio:.2f} ({low:.2f}–{high:.2f}) "
            f"| {row['mib']:.0f} | {row['mib'] / n:.3g} |"
        )
    slopes = [exponent(units, values) for values in (certified, standard, [row["mib"] for row in rows])]
    print(f"| **{axis}** | exponents | **{slopes[0]:.2f}** | | standard: {slopes[1]:.2f} | **{slopes[2]:.2f}** | |")


def main() -> None:
    """Parse the arguments, measure each size, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    if arguments.one:
        print(json.dumps(measure(Size(**json.loads(arguments.one)), arguments.rounds, device)))
        return
    sizes = dict.fromkeys(size for _, sizes in AXES.values() for size in sizes)
    found = {size: in_a_process(size, arguments.rounds, device) for size in sizes}
    base = asdict(Size())
    print(
        f"from {', '.join(f'{name} {n}' for name, n in base.items())}; {torch.get_num_threads()} threads, {device}, ",
        end="",
    )
    print(f"torch {torch.__version__}, {arguments.rounds} rounds; median, of ratios with quartiles\n")
    print("| doubled | units | ms a step | ms a unit | times the standard step | peak MiB | MiB a unit |")
    print("|---|---|---|---|---|---|---|")
    for axis in AXES:
        show(axis, found)


if __name__ == "__main__":
    main()
