"""Test certified boxes with random, corner and adversarial points, and count those that violate a certificate.

Small networks of every supported kind are trained on the digits that come with certtrain, for a few seconds each; or
give model files. Some test images are certified by every bound method, at several radii. Then plain inference is run on
points in the certified boxes, in equal numbers of uniform points, corners and steps of attacks; in batches of several
sizes, one by one, and with the sums of every layer in another order. A point is a violation for a method if its box is
certified and

- class: the label's logit is not the largest, or the logits are not finite, or
- smallest: a margin, the label's logit minus another, is below the smallest margin in the certificate (with "real" by
  more than rounding in float64, else at all), or
- each: in float64, a margin is below the method's own bound for it in real arithmetic, by more than rounding.

The column "closest" is the smallest difference between an observed margin and the certificate's smallest margin.

The exit status is 1 if there is any violation, or if nothing was certified.

python benchmarks/soundness.py
python benchmarks/soundness.py --points 2000 --quick
python benchmarks/soundness.py --models runs/mnist/model.safetensors --data-dir DATA
python benchmarks/soundness.py --random 2000          # random networks with all supported layers
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from random_trials import Total, random_campaign
from torch import Generator, Tensor, nn

from certtrain import ibp_init_, load_model, margin_bounds, objective_terms
from certtrain.attack import APGD, PGD, attack
from certtrain.attack.criterion import computing_in
from certtrain.bounds.box import box_ends
from certtrain.bounds.graph import Normalize
from certtrain.bounds.methods import METHODS
from certtrain.bounds.rounding import ARITHMETICS
from certtrain.data import ImageSet, derive_seed, load_images, to_unit
from certtrain.network.assembly import load_split
from certtrain.network.models import InputSpec, build_model
from certtrain.spec.architecture import CNN, MLP, Architecture, ResNeXt, WideResNet
from certtrain.verification.certificate import DEFAULT_ARITHMETIC, Certifier

SHAPE, MEAN, STD = (1, 8, 8), (0.3,), (0.35,)
SIZES = (256, 64, 7, 1)
SHARES = {256: 1, 64: 1, 7: 5, 1: 20}
"""For each batch size: only one of so many points is used, since small batches are slow."""
RADII = (0.01, 0.3, 1, 2)
"""The radii of the boxes as multiples of ε: in small boxes bounds are tight, of large ones few are certified."""


class OwnNetwork(nn.Module):
    """A network like a user's own: with functional calls, a layer that is called twice, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize(MEAN, STD)
        self.first, self.twice = nn.Conv2d(1, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.bn, self.side = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.hidden, self.out = nn.Linear(24, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.normalize(x)))
        x = self.side(x) + self.twice(torch.relu(self.bn(self.twice(x))))
        x = nn.functional.max_pool2d(torch.relu(x), 2)
        return self.out(torch.tanh(self.hidden(torch.flatten(x, 1))))


def named(architecture: Architecture) -> nn.Module:
    return build_model(architecture, InputSpec(SHAPE, 10, MEAN, STD))


def _dense(*activations: nn.Module) -> nn.Module:
    """Hidden layers of 32 units, each followed by its activation."""
    sizes = [64] + [32] * len(activations)
    layers = [part for n, act in enumerate(activations) for part in (nn.Linear(sizes[n], sizes[n + 1]), act)]
    return nn.Sequential(Normalize(MEAN, STD), nn.Flatten(), *layers, nn.Linear(sizes[-1], 10))


def _pooled(pool: nn.Module) -> nn.Module:
    convolution = nn.Conv2d(1, 8, 3, padding=1)
    layers = (convolution, nn.ReLU(), pool, nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))
    return nn.Sequential(Normalize(MEAN, STD), *layers)


CHANNELS = {"channels": (6, 8), "kernels": (3, 3), "strides": (1, 2), "linear": (32,)}
SMALL = {"stem": 4, "blocks": (1, 1), "strides": (1, 2), "linear_size": 24}
KINDS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: named(MLP(name="mlp", hidden=(48, 32), batch_norm=False)),
    "mlp, BatchNorm": lambda: named(MLP(name="mlp", hidden=(48, 32))),
    "cnn": lambda: named(CNN(name="cnn", **CHANNELS, batch_norm=False)),
    "cnn, BatchNorm": lambda: named(CNN(name="cnn", **CHANNELS)),
    "wide-resnet": lambda: named(WideResNet(name="wide-resnet", widen_factor=1, **SMALL)),
    "resnext": lambda: named(ResNeXt(name="resnext", bottleneck_width=2, **SMALL)),
    "leaky relu": lambda: _dense(nn.LeakyReLU(0.1), nn.LeakyReLU(0.1)),
    "sigmoid": lambda: _dense(nn.Sigmoid()),
    "tanh": lambda: _dense(nn.Tanh(), nn.Tanh()),
    "max pooling": lambda: _pooled(nn.MaxPool2d(2)),
    "average pooling": lambda: _pooled(nn.AvgPool2d(2)),
    "own module": OwnNetwork,
}


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode with its test images, pixels (N, …) and labels (N,)."""

    name: str
    network: nn.Module
    x: Tensor
    labels: Tensor
    eps: float


@dataclass
class Tally:
    """The certificates of one method for a network, and the violations that were found."""

    network: str
    method: str
    boxes: int = 0
    certified: int = 0
    points: int = 0
    wrong_class: int = 0
    below_smallest: int = 0
    below_each: int = 0
    closest: float = torch.inf
    """The smallest difference between an observed margin and the certificate's smallest margin."""

    @property
    def violations(self) -> int:
        """The number of violations of all kinds."""
        return self.wrong_class + self.below_smallest + self.below_each


# --- the networks ----------------------------------------------------------------------------------------


def trained(network: nn.Module, images: ImageSet, eps: float, steps: int, seed: int) -> nn.Module:
    """The network after certified training with interval bounds; ε rises for two thirds of the steps."""
    generator = Generator().manual_seed(seed)
    x, labels = to_unit(images.images), images.labels
    ibp_init_(network, generator)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator)
        radius = eps * min(1.0, step / (steps * 2 / 3))
        loss = objective_terms(network.train(), x[rows], labels[rows], radius, eps_max=eps).total
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 8)
        optimizer.step()
    return network.eval()


def digit_subjects(arguments: argparse.Namespace) -> Iterator[Subject]:
    """A network of each kind, trained on digits."""
    train, test = (load_images("digits", split) for split in ("train", "test"))
    for name in arguments.kinds:
        with torch.random.fork_rng():
            torch.manual_seed(arguments.seed)
            network = trained(KINDS[name](), train, arguments.eps, arguments.steps, arguments.seed)
        x, labels = to_unit(test.images[: arguments.images]), test.labels[: arguments.images]
        yield Subject(name, network, x, labels, arguments.eps)


def file_subjects(arguments: argparse.Namespace) -> Iterator[Subject]:
    """The networks of the files, on the first test images of their data."""
    for path in arguments.models:
        network = load_model(path)
        images = load_split(network.metadata, "test", arguments.data_dir)
        x, labels = to_unit(images.images[: arguments.images]), images.labels[: arguments.images]
        yield Subject(path.parent.name or path.name, network, x, labels, network.metadata.eps)


# --- the points ------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """A network that records the full batches (N, …) of an attack, and their smallest margins (N,)."""

    def __init__(self, network: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.network, self.labels = network, labels
        self.points, self.margins = list[Tensor](), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        if len(x) == len(self.labels):
            self.points.append(x.detach().clone())
            self.margins.append(smallest_margin(logits.detach(), self.labels))
        return logits


def sample_points(boxes: Subject, rounds: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (P, …) in the boxes and the row of each (P,): `rounds` for each box, by attacks, uniform and corners."""
    lower, upper = box_ends(boxes.x, boxes.eps)
    generator = Generator().manual_seed(derive_seed(seed, boxes.name))
    tried = attack_steps(boxes, -(-rounds // 3), seed)
    points = []
    for number in range(rounds):
        share = torch.rand(lower.shape, generator=generator).to(lower)
        if number % 3 == 0:
            points.append(tried[number // 3 % len(tried)])
        elif number % 3 == 1:
            points.append((lower + (upper - lower) * share).clamp(lower, upper))
        else:
            points.append(torch.where(share < 0.5, lower, upper))
    return torch.cat(points), torch.arange(len(lower), device=lower.device).repeat(rounds)


def attack_steps(boxes: Subject, count: int, seed: int) -> Tensor:
    """The points of the attacks in each box with the smallest margins (count, N, …), after any counterexample."""
    settings = (PGD(10, 1, seed, targets=9), APGD("dlr", 10, 1, seed, targets=9), APGD("ce", 10, 1, seed))
    recorder = Recorder(boxes.network, boxes.labels)
    broken = attack(recorder, boxes.x, boxes.labels, boxes.eps, settings).adversarial
    worst = torch.stack(recorder.margins).topk(min(count, len(recorder.margins)), dim=0, largest=False).indices
    tried = torch.stack(recorder.points)[worst, torch.arange(len(broken), device=broken.device)]
    return torch.cat([broken.unsqueeze(0), tried])


# --- inference -------------------------------------------------------------------------------------------


class Reordered(nn.Module):
    """A linear layer or convolution whose sums run over its inputs in another order."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, generator: Generator) -> None:
        super().__init__()
        self.layer, self.order = copy.deepcopy(layer), torch.randperm(layer.weight.shape[1], generator=generator)
        self.layer.weight.data = self.layer.weight.data[:, self.order]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, self.order])


def reordered(network: nn.Module, seed: int) -> nn.Module:
    """The same function in real arithmetic, with every sum in another order, but for grouped convolutions."""
    generator, result = Generator().manual_seed(seed), copy.deepcopy(network)
    for parent in list(result.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
                setattr(parent, name, Reordered(layer, generator))
    return result


def inferences(network: nn.Module, points: Tensor, arithmetic: str, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of the points by plain inference in all batch sizes and orders, with the points' numbers."""
    if arithmetic == "real":  # float64 stands for exact arithmetic
        network, points = copy.deepcopy(network).double(), points.double()
    other = reordered(network, seed)
    order = torch.randperm(len(points), generator=Generator().manual_seed(seed)).to(points.device)
    for size in SIZES:
        for chunk in order[:: SHARES[size]].split(size):
            for version in (network, other) if size > 1 else (network,):
                with computing_in(arithmetic, points.device.type):
                    yield chunk, version(points[chunk])


def smallest_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The smallest margin (B,) from logits (B, K); −∞ where these are not finite."""
    column = labels.unsqueeze(1)
    smallest = margins(logits, labels).scatter(1, column, torch.inf).amin(dim=1)
    return torch.where(logits.isfinite().all(dim=1), smallest, -torch.inf)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus each logit (B, K), in float64, whose rounding is negligible here."""
    return logits.double().gather(1, labels.unsqueeze(1)) - logits.double()


# --- the campaign ----------------------------------------------------------------------------------------


def campaign(subject: Subject, methods: list[str], count: int, arithmetic: str, seed: int) -> list[Tally]:
    """Test the subject's boxes of several radii with about `count` points in all; one tally for each method."""
    tallies = [Tally(subject.name, method) for method in methods]
    for share in RADII:
        at = replace(subject, eps=subject.eps * share)
        try_radius(at, tallies, -(-count // len(RADII)), arithmetic, seed)
    return tallies


@torch.no_grad()
def try_radius(subject: Subject, tallies: list[Tally], count: int, arithmetic: str, seed: int) -> None:
    """Certify the boxes by every method, and count the violations by points in those that any method certified."""
    claims = [
        Certifier(subject.network, tally.method, arithmetic=arithmetic).certify(subject.x, subject.labels, subject.eps)
        for tally in tallies
    ]
    proved = [claim.certified.to(subject.x.device) for claim in claims]
    for tally, mine in zip(tallies, proved, strict=True):
        tally.boxes, tally.certified = tally.boxes + len(mine), tally.certified + int(mine.sum())
    kept = torch.stack(proved).any(dim=0)
    if not kept.any():
        return
    boxes = replace(subject, x=subject.x[kept], labels=subject.labels[kept])
    points, rows = sample_points(boxes, -(-count // len(boxes.x)), seed)
    exact = copy.deepcopy(boxes.network).double()
    seen = Margins(observed(boxes, points, rows, arithmetic, seed), margins(exact(points.double()), boxes.labels[rows]))
    for tally, claim, mine in zip(tallies, claims, proved, strict=True):
        each = margin_bounds(exact, boxes.x.double(), boxes.labels, boxes.eps, method=tally.method)
        held = mine[kept][rows]
        bounds = Margins(claim.margin[kept][rows], each[rows])
        count_violations(tally, seen.take(held), bounds.take(held), tolerance=1e-9 if arithmetic == "real" else 0.0)


class Margins(NamedTuple):
    """The smallest margins (P,) of some points in the deployed arithmetic, and all margins (P, K) in float64."""

    smallest: Tensor
    each: Tensor

    def take(self, which: Tensor) -> "Margins":
        """The margins of the points in the mask `which`."""
        return Margins(self.smallest[which], self.each[which])


def observed(boxes: Subject, points: Tensor, rows: Tensor, arithmetic: str, seed: int) -> Tensor:
    """The smallest margin of each point (P,) over all batch sizes and orders."""
    worst = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    for chunk, logits in inferences(boxes.network, points, arithmetic, seed):
        worst[chunk] = worst[chunk].minimum(smallest_margin(logits, boxes.labels[rows[chunk]]))
    return worst


def count_violations(tally: Tally, seen: Margins, bounds: Margins, tolerance: float) -> None:
    """Add a method's violations. `tolerance` is for the smallest margin; all margins have that of float64."""
    size = seen.each.abs().amax(dim=1).clamp(min=1)
    gap = seen.smallest - bounds.smallest
    tally.points += len(gap)
    tally.wrong_class += int((~(seen.smallest > 0)).sum())
    tally.below_smallest += int((~(gap >= -tolerance * size)).sum())
    tally.below_each += int((~(seen.each >= bounds.each - 1e-9 * size.unsqueeze(1))).any(dim=1).sum())
    tally.closest = min([tally.closest, *gap.tolist()])


def show(tallies: list[Tally]) -> None:
    print("| network | method | boxes | certified | points | class | smallest | each | closest |")
    print("|---|---|---|---|---|---|---|---|---|")
    for t in tallies:
        counts = f"{t.boxes} | {t.certified} | {t.points:,} | {t.wrong_class} | {t.below_smallest} | {t.below_each}"
        print(f"| {t.network} | {t.method} | {counts} | {t.closest:.2g} |")


def parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", help="model files, instead of networks that are trained here")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument(
        "--arithmetic", choices=list(ARITHMETICS), default=DEFAULT_ARITHMETIC, help="of the deployed network"
    )
    parser.add_argument("--points", type=int, default=120_000, help="number of points in all, each for every method")
    parser.add_argument("--images", type=int, help="number of test images for each network; 60, or 12 with --quick")
    parser.add_argument("--steps", type=int, help="number of training steps; 400, or 60 with --quick")
    parser.add_argument("--eps", type=float, default=0.03, help="radius of training and of boxes, without --models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", type=int, metavar="N", help="test so many random networks instead")
    parser.add_argument("--quick", action="store_true", help="short trainings and few images")
    arguments = parser.parse_args(words)
    arguments.images = arguments.images or (12 if arguments.quick else 60)
    arguments.steps = arguments.steps or (60 if arguments.quick else 400)
    return arguments


def main(words: list[str] | None = None) -> int:
    """Parse the arguments, test each network, print the table; returns the exit status."""
    arguments = parsed(words)
    if arguments.random:
        return try_random(arguments.random, arguments.seed)
    subjects = file_subjects(arguments) if arguments.models else digit_subjects(arguments)
    count = -(-arguments.points // len(arguments.models or arguments.kinds))
    start, tallies = time.monotonic(), list[Tally]()
    for subject in subjects:
        tallies += campaign(subject, arguments.methods, count, arguments.arithmetic, arguments.seed)
        print(f"{subject.name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    show(tallies)
    return verdict(tallies)


def try_random(count: int, seed: int) -> int:
    """Test random networks and print the faults; returns the exit status."""
    start = time.monotonic()

    def progress(total: Total) -> None:
        if total.networks % 100 == 0:
            print(f"{total.networks:,} networks: {time.monotonic() - start:.0f} s", file=sys.stderr)

    total = random_campaign(count, seed, progress)
    print("\n".join(total.faults))
    print(
        f"seed {seed}: {total.networks:,} networks, {total.claims:,} claims, {total.certified:,} certified boxes, "
        f"{len(total.faults)} faults, {time.monotonic() - start:.0f} s"
    )
    return 1 if total.faults or not total.certified else 0


def verdict(tallies: list[Tally]) -> int:
    """Print a summary; returns 1 if there are violations, or if nothing was certified for a network."""
    violations, tried = sum(t.violations for t in tallies), sum(t.points for t in tallies)
    networks = {t.network: max(s.points for s in tallies if s.network == t.network) for t in tallies}
    print(f"\n{sum(networks.values()):,} points, {tried:,} trials of a method, {violations} violations")
    empty = [name for name, points in networks.items() if not points]
    if empty:
        print(f"nothing was certified: {', '.join(empty)}; train longer or use a smaller --eps")
    return 1 if violations or empty else 0


if __name__ == "__main__":
    sys.exit(main())
