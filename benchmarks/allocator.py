"""What keeping freed memory is worth: a certified training step of `mnist-cpu`'s network, with and without it.

Each measurement is a fresh process, since the setting cannot be taken back; they alternate.

python benchmarks/allocator.py
"""

import statistics
import subprocess
import sys
import time

ROUNDS, STEPS, WARM_UP = 5, 20, 5


def measure(keep: bool) -> float:
    """Median seconds of a step in this process."""
    import torch

    from certtrain.allocator import keep_freed_memory
    from certtrain.models import InputSpec, build_model
    from certtrain.preset import load_preset
    from certtrain.step import Stepper

    if keep and not keep_freed_memory():
        raise SystemExit("this C library is not glibc: there is nothing to measure")
    preset = load_preset("mnist-cpu")
    network = build_model(preset.model, InputSpec((1, 28, 28), 10, (0.0,), (1.0,)))
    stepper = Stepper(preset, network.to(memory_format=torch.channels_last), steps_per_epoch=1000)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(preset.train.batch_size, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (len(x),), generator=generator)
    seconds = []
    for step in range(WARM_UP + STEPS):
        start = time.perf_counter()
        stepper.run(5000 + step, x, labels)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:])


def main() -> None:
    """Alternate fresh processes and print the ratio of their medians."""
    if len(sys.argv) > 1:
        print(measure(sys.argv[1] == "keep"))
        return
    found: dict[str, list[float]] = {"default": [], "keep": []}
    for _ in range(ROUNDS):
        for setting, seconds in found.items():
            result = subprocess.run([sys.executable, __file__, setting], capture_output=True, text=True, check=True)
            seconds.append(float(result.stdout))
    ratios = [default / keep for default, keep in zip(found["default"], found["keep"], strict=True)]
    for setting, seconds in found.items():
        print(f"{setting}: median {1e3 * statistics.median(seconds):.1f} ms a step")
    print(f"default/keep: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
