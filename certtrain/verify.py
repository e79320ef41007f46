"""Verification of a model on a set: bounds from below, attack from above, and their record."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certtrain.attack import Settings
from certtrain.attack import attack as search
from certtrain.certificate import ASSUMPTIONS, VERDICTS, Certificates, Certifier, Verdict
from certtrain.data import ImageSet, to_unit
from certtrain.errors import DataError, SoundnessError
from certtrain.modelfile import Classifier
from certtrain.precision import tensor_cores
from certtrain.storage import write_atomic


@dataclass(frozen=True)
class Point:
    """What is known about one example: the smallest margin's lower bound is None where it is not finite."""

    index: int
    label: int
    verdict: Verdict
    margin: float | None


@dataclass(frozen=True)
class Report:
    """Counts over a set, and the accuracies and errors that they give, as shares of all examples."""

    dataset: str
    split: str
    eps: float
    examples: int
    certified: int
    open: int
    falsified: int
    misclassified: int
    method: str
    attack: dict[str, int | str]
    assumptions: tuple[str, ...]
    seconds: float

    @property
    def natural_accuracy(self) -> float:
        """Share classified correctly."""
        return 1 - self.misclassified / self.examples

    @property
    def pgd_accuracy(self) -> float:
        """Share that the attack did not break: an upper limit on robust accuracy."""
        return (self.certified + self.open) / self.examples

    @property
    def certified_accuracy(self) -> float:
        """Share proved robust: a lower limit on robust accuracy."""
        return self.certified / self.examples

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the accuracies and errors."""
        accuracies = {
            "natural_accuracy": self.natural_accuracy,
            "pgd_accuracy": self.pgd_accuracy,
            "certified_accuracy": self.certified_accuracy,
            "natural_error": 1 - self.natural_accuracy,
            "verified_error": 1 - self.certified_accuracy,
        }
        return asdict(self) | accuracies


def to_json_lines(path: Path, points: Sequence[Point]) -> None:
    """Write one JSON object a line for each point. Raises StorageError."""
    lines = [json.dumps(asdict(point), allow_nan=False) for point in points]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


OnPoints = Callable[[list[Point]], None]


@tensor_cores(False)
def verify(
    model: Classifier,
    images: ImageSet,
    eps: float,
    *,
    attack: Settings,
    method: str = "auto",
    batch_size: int = 200,
    on_points: OnPoints = lambda points: None,
) -> Report:
    """Classify, attack and certify each example; `on_points` hears of each batch as it is done.

    Bounds are computed in float64, inference and attack in the model's own
    precision. Raises DataError if the images do not fit the model, and
    SoundnessError if a certified point was attacked: then a bound is wrong.
    """
    check_fit(model, images)
    start, counts = time.monotonic(), dict.fromkeys(VERDICTS, 0)
    certifier = Certifier(model, method)
    for first, x, labels in _batches(model, images, batch_size):
        broken = search(model, x, labels, eps, attack, first).broken
        points = _judge(first, labels, certifier.certify(x, labels, eps), broken)
        for point in points:
            counts[point.verdict] += 1
        on_points(points)
    return Report(
        dataset=images.name,
        split=images.split,
        eps=eps,
        examples=len(images),
        certified=counts["certified"],
        open=counts["open"],
        falsified=counts["falsified"],
        misclassified=counts["misclassified"],
        method=certifier.method,
        attack=attack.to_dict(),
        assumptions=ASSUMPTIONS,
        seconds=time.monotonic() - start,
    )


def check_fit(model: Classifier, images: ImageSet) -> None:
    """Raise DataError unless the images have the shape and the classes that the model was made for."""
    made_for = model.metadata
    if images.input_shape != made_for.input_shape:
        raise DataError(
            f"{images.name} has images of shape {images.input_shape} (channels, height, width), "
            f"but the model takes {made_for.input_shape}"
        )
    if images.class_names != made_for.class_names:
        raise DataError(
            f"{images.name} has {len(images.class_names)} classes ({', '.join(images.class_names[:3])}, …), "
            f"but the model tells apart {len(made_for.class_names)} ({', '.join(made_for.class_names[:3])}, …)"
        )


def _batches(model: Classifier, images: ImageSet, size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    device = next(model.parameters()).device
    for first in range(0, len(images), size):
        chunk = slice(first, first + size)
        yield first, to_unit(images.images[chunk].to(device)), images.labels[chunk].to(device)


def _judge(first: int, labels: Tensor, found: Certificates, broken: Tensor) -> list[Point]:
    rows = zip(labels.tolist(), found.verdicts, found.margin.tolist(), broken.tolist(), strict=True)
    return [_point(first + n, *row) for n, row in enumerate(rows)]


def _point(index: int, label: int, verdict: Verdict, margin: float, broken: bool) -> Point:
    if broken and verdict == "certified":
        raise SoundnessError(
            f"example {index} is certified with margin {margin:g}, yet an input in its box is misclassified. "
            "A bound is wrong or the margin is within rounding error: do not trust this model's certificates."
        )
    verdict = "falsified" if broken and verdict == "open" else verdict
    return Point(index, label, verdict, margin if torch.tensor(margin).isfinite() else None)
