"""The effect of keeping freed memory: a certified training step of `mnist-cpu`'s network, with and without it.

Each measurement is a new process, since the setting cannot be undone; both kinds
alternate. Page faults are exact; seconds on a shared machine are not.

python benchmarks/allocator.py
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

ROUNDS, STEPS, WARM_UP = 7, 20, 5


def measure(keep: bool) -> dict[str, float]:
    """The page faults, processor seconds and wall seconds of a step in this process."""
    import torch

    from certtrain.network.models import InputSpec, build_model
    from certtrain.runtime.allocator import keep_freed_memory
    from certtrain.spec.preset import load_preset
    from certtrain.training.step import Stepper

    if keep and not keep_freed_memory():
        raise SystemExit("this C library is not glibc: there is nothing to measure")
    preset = load_preset("mnist-cpu")
    network = build_model(preset.model, InputSpec((1, 28, 28), 10, (0.0,), (1.0,)))
    stepper = Stepper(preset, network.to(memory_format=torch.channels_last), steps_per_epoch=1000)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(preset.train.batch_size, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (len(x),), generator=generator)
    walls = []
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        stepper.run(5000 + step, x, labels)
        walls.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    faults = (after.ru_minflt - before.ru_minflt) / STEPS
    return {"faults": faults, "processor": seconds / STEPS, "wall": statistics.median(walls[WARM_UP:])}


def main() -> None:
    """Alternate new processes and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=["default", "keep"], nargs="?", help=argparse.SUPPRESS)
    setting = parser.parse_args().setting
    if setting is not None:
        print(json.dumps(measure(setting == "keep")))
        return
    found: dict[str, list[dict[str, float]]] = {"default": [], "keep": []}
    for _ in range(ROUNDS):
        for setting, results in found.items():
            result = subprocess.run([sys.executable, __file__, setting], capture_output=True, text=True, check=True)
            results.append(json.loads(result.stdout))
    for setting, results in found.items():
        faults, processor, wall = (statistics.median(r[n] for r in results) for n in ("faults", "processor", "wall"))
        print(
            f"{setting}: {faults:,.0f} page faults, {1e3 * processor:.1f} ms processor, {1e3 * wall:.1f} ms wall a step"
        )
    for name in ("processor", "wall"):
        ratios = [a[name] / b[name] for a, b in zip(found["default"], found["keep"], strict=True)]
        print(f"default/keep, {name}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
