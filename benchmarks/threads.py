"""The time of a training step by the way its threads wait, on an idle machine and beside busy programs.

    python benchmarks/threads.py [--presets digits mnist-cpu cifar10-70ep] [--seconds 8] [--load 2] [--repeats 3]

Each measurement is a process of its own, since OpenMP reads how threads wait when torch is loaded. The ways alternate,
and the table has the median over the repeats of the median step of each. The busy programs are --load processes that
train `mnist-cpu` in the way "PyTorch's own".
"""

import torch  # isort: skip  # before certtrain, which would set how threads wait

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from certtrain.bounds.chunks import inference_work
from certtrain.bounds.supported import checked_graph
from certtrain.network.models import InputSpec, build_model
from certtrain.runtime.threads import threads_for
from certtrain.spec.preset import load_preset
from certtrain.training.step import Stepper

SHAPES = {"digits": (1, 8, 8), "mnist-cpu": (1, 28, 28)}
FEWEST_STEPS = 5  # of a measurement, after the first two
CERTTRAIN = "certtrain"
WAYS = {
    "PyTorch's own": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    CERTTRAIN: {"OMP_WAIT_POLICY": "PASSIVE"},
}
THREAD_VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")


def step_seconds(name: str, seconds: float, by_work: bool) -> float:
    """The median time of a step of the preset's network on random images, measured for so many seconds."""
    preset = load_preset(name)
    shape, size = SHAPES.get(name, (3, 32, 32)), preset.train.batch_size
    network = build_model(preset.model, InputSpec(shape, 10, (0.5,) * shape[0], (0.25,) * shape[0]))
    x, labels = torch.rand(size, *shape), torch.randint(10, (size,))
    work = size * inference_work(checked_graph(network.eval(), shape), x[:1]) if by_work else sys.maxsize
    stepper, times = Stepper(preset, network, 100), list[float]()
    with threads_for(work, "cpu"):
        while sum(times) < seconds or len(times) < FEWEST_STEPS + 2:
            start = time.perf_counter()
            stepper.run(300, x, labels)
            times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def process(way: str, name: str, seconds: float) -> "subprocess.Popen[str]":
    """A process that measures one way."""
    environment = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES} | WAYS[way]
    command = [sys.executable, __file__, "--measure", name, "--seconds", str(seconds), "--way", way]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@contextmanager
def load(count: int) -> Iterator[None]:
    """A context in which so many processes are busy."""
    busy = [process("PyTorch's own", "mnist-cpu", 1e6) for _ in range(count)]
    try:
        time.sleep(10 if count else 0)  # until they have started to train
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def measured(way: str, name: str, seconds: float) -> float:
    """Seconds for each step, measured in a process of its own."""
    answer, _ = process(way, name, seconds).communicate()
    return float(answer)


def main() -> None:
    """Measure everything and print a table; with --measure, measure one way in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["digits", "mnist-cpu", "cifar10-70ep"])
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds of one measurement")
    parser.add_argument("--load", type=int, default=2, help="number of busy processes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(step_seconds(arguments.measure, arguments.seconds, arguments.way == CERTTRAIN))
        return
    print(f"milliseconds a step; {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{'preset':14}{'machine':12}" + "".join(f"{way:>15}" for way in WAYS))
    for busy in (0, arguments.load):
        with load(busy):
            for name in arguments.presets:
                found = [[measured(way, name, arguments.seconds) for way in WAYS] for _ in range(arguments.repeats)]
                medians = [statistics.median(column) * 1e3 for column in zip(*found, strict=True)]
                machine = f"{busy} busy" if busy else "idle"
                print(f"{name:14}{machine:12}" + "".join(f"{value:15.1f}" for value in medians), flush=True)


if __name__ == "__main__":
    main()
