"""Images per second of plain inference, of interval bounds, and of `certtrain verify` with interval bounds.

In one process, the following alternate, batch by batch and without gradients:

- plain inference of the network in float32;
- the bounds of all margins in float32 (`margin_bounds`);
- the `Certifier`: logits in float32, bounds in float64, a verdict for each image;
- `verify` without an attack: inference, then the same bounds of the images that are classified correctly.

All ratios are to plain inference on the same batch.

python benchmarks/throughput.py                                       # CNN-7 at CIFAR-10 shape, random images
python benchmarks/throughput.py --model model.safetensors --data-dir data   # a model on its whole test set
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain import margin_bounds
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.data import ImageSet, to_unit
from certtrain.network.assembly import load_split
from certtrain.network.initialization import ibp_init_
from certtrain.network.modelfile import read_model
from certtrain.network.models import InputSpec, build_model
from certtrain.runtime.allocator import keep_freed_memory
from certtrain.runtime.device import choose_device
from certtrain.runtime.precision import tensor_cores
from certtrain.spec.preset import load_preset
from certtrain.verdicts import certified_examples
from certtrain.verification.cascade import Cascade
from certtrain.verification.certificate import DEFAULT_ARITHMETIC, Certifier
from certtrain.verification.methods import rounds_of

PLAIN, BOUNDS, CERTIFIER = "plain inference, float32", "bounds of the margins, float32", "Certifier, bounds in float64"
VERIFY = "verify, without attack"
EPS = 8 / 255


class Batch(NamedTuple):
    """Pixels (B, C, H, W) in channels-last memory and labels (B,) on the device, and the images themselves."""

    x: Tensor
    labels: Tensor
    images: ImageSet


Action = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Subject:
    """A network with the images on which it is measured."""

    network: nn.Module
    images: ImageSet
    eps: float
    device: str

    def batches(self, size: int) -> Iterator[Batch]:
        """The images in batches of that size."""
        for pixels, labels in zip(self.images.images.split(size), self.images.labels.split(size), strict=True):
            x = to_unit(pixels.to(self.device)).contiguous(memory_format=torch.channels_last)
            yield Batch(x, labels.to(self.device), replace(self.images, images=pixels, labels=labels))


def random_subject(rounds: int, size: int, device: str) -> Subject:
    """An initialised CNN-7 with the BatchNorm statistics of one batch, and random images of CIFAR-10's shape."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (rounds * size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (len(images),), generator=generator)
    network = build_model(load_preset("cifar10-160ep").model, InputSpec((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3))
    ibp_init_(network, generator)
    for layer in network.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.momentum = 1.0
    network.train()(to_unit(images[:64]))
    named = ImageSet("random", "test", images, labels, tuple("abcdefghij"))
    return Subject(network.eval(), named, EPS, device)


def real_subject(model: Path, data_dir: Path | None, device: str) -> Subject:
    """The network of a model file, on the whole test set of its data, at the ε of its training."""
    network = read_model(model)
    images = load_split(network.metadata, "test", data_dir)
    return Subject(network, images, network.metadata.eps, device)


def ways(subject: Subject, size: int) -> dict[str, Action]:
    """The functions that are measured: from a batch to logits, to bounds of margins, or to which are certified."""
    network = subject.network.to(subject.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    certifier, rounds = Certifier(network), rounds_of(network, "ibp", None, size, DEFAULT_ARITHMETIC, VERDICT_SETTINGS)

    def verified(batch: Batch) -> Tensor:
        results = Cascade(network, batch.images, subject.eps, rounds).run()
        return torch.tensor([result.verdict == "certified" for result in results])

    return {
        PLAIN: lambda batch: network(batch.x),
        BOUNDS: lambda batch: margin_bounds(network, batch.x, batch.labels, subject.eps),
        CERTIFIER: lambda batch: certifier.certify(batch.x, batch.labels, subject.eps).certified,
        VERIFY: verified,
    }


def seconds(action: Action, batch: Batch) -> tuple[float, Tensor]:
    """The wall time of one call, until the device has finished its work, and its result on the CPU."""
    start = time.perf_counter()
    result = action(batch).cpu()
    return time.perf_counter() - start, result


@torch.no_grad()
@tensor_cores(False)
def measure(subject: Subject, size: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """The seconds of every batch for each function, and how many examples each certifies."""
    times: dict[str, list[float]] = {way: [] for way in (PLAIN, BOUNDS, CERTIFIER, VERIFY)}
    certified = {BOUNDS: 0, CERTIFIER: 0, VERIFY: 0, "both": 0, "correct": 0}
    actions = ways(subject, size)
    for number, batch in enumerate(subject.batches(size)):
        if number == 0:
            warm_up(actions, batch)
        results = {}
        for way, action in actions.items():
            taken, results[way] = seconds(action, batch)
            times[way].append(taken)
        count(certified, results, batch.labels.cpu())
    return times, certified


def warm_up(actions: dict[str, Action], batch: Batch) -> None:
    for action in actions.values():
        action(batch)


def count(certified: dict[str, int], results: dict[str, Tensor], labels: Tensor) -> None:
    """Add one batch. Bounds in float32 alone are no certificates; they are counted to compare them."""
    alone, exact = certified_examples(results[BOUNDS], labels), results[CERTIFIER]
    certified[BOUNDS] += int(alone.sum())
    certified[CERTIFIER] += int(exact.sum())
    certified["both"] += int((alone & exact).sum())
    certified["correct"] += int((results[PLAIN].argmax(1) == labels).sum())
    certified[VERIFY] += int(results[VERIFY].sum())


def show(times: dict[str, list[float]], images: int) -> None:
    print("| way | images/s over all | times plain inference: median (quartiles) of batches | over all |")
    print("|---|---|---|---|")
    for way, values in times.items():
        ratios = [mine / plain for mine, plain in zip(values, times[PLAIN], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        over_all = sum(values) / sum(times[PLAIN])
        print(f"| {way} | {images / sum(values):.0f} | {middle:.2f} ({low:.2f}–{high:.2f}) | {over_all:.2f} |")


def main() -> None:
    """Parse the arguments, measure all functions on all batches, print a table for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model file; without it, an initialised CNN-7 on random images")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 200])
    parser.add_argument("--rounds", type=int, default=15, help="batches of random images")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    keep_freed_memory()
    for size in arguments.batch_sizes:
        subject = (
            real_subject(arguments.model, arguments.data_dir, device)
            if arguments.model
            else random_subject(arguments.rounds, size, device)
        )
        times, certified = measure(subject, size)
        print(f"\nbatch {size}, {len(subject.images):,} images, ε = {subject.eps:.4f}, ", end="")
        print(f"{torch.get_num_threads()} threads, {device}, torch {torch.__version__}\n")
        show(times, len(subject.images))
        print(f"\nclassified correctly: {certified['correct']:,}; ", end="")
        print(f"certified: {certified[VERIFY]:,} by verify, {certified[CERTIFIER]:,} by float64, ", end="")
        print(f"{certified[BOUNDS]:,} by float32 alone, {certified['both']:,} by both of these")


if __name__ == "__main__":
    main()
