"""A folder of properties for other verifiers: one VNN-LIB file a point, the competition's list, and an index.

The network is the one that is exported to ONNX, and the boxes are those that
certtrain bounds. Points come in the order of the data set, right or wrong, so
that counts are those of `verify --limit`; the index says which are
misclassified, and their properties are broken by the point itself.
"""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from certtrain.data import ImageSet, to_unit
from certtrain.errors import DataError, StorageError
from certtrain.interchange.vnnlib import robustness_text
from certtrain.network.modelfile import Classifier, versions
from certtrain.runtime.device import device_of
from certtrain.spec.epsilon import format_eps
from certtrain.storage import write_atomic
from certtrain.verdicts import correct_points
from certtrain.verification.verify import check_fit

INSTANCES, INDEX = "instances.csv", "index.json"
BATCH = 200
USUAL = 100  # points


@dataclass(frozen=True)
class Written:
    """What a folder of properties holds."""

    folder: Path
    points: int
    misclassified: int
    """Of these points."""
    eps: float

    def to_dict(self) -> dict[str, Any]:
        """All fields, the folder as text."""
        return asdict(self) | {"folder": str(self.folder)}

    def sentence(self) -> str:
        """What was written, in words."""
        wrong = f", {self.misclassified} of them misclassified" if self.misclassified else ""
        return f"wrote {self.points} properties for ε = {format_eps(self.eps)}{wrong}: {self.folder / INSTANCES}"


def export_properties(
    model: Classifier,
    images: ImageSet,
    folder: Path,
    *,
    onnx: Path,
    eps: float,
    first: int = 0,
    count: int | None = None,
    timeout: float = 300.0,
) -> Written:
    """Write the properties of `count` points from number `first` on, for the network in the file `onnx`.

    Without a `count` these are 100, or all that there are.

    `instances.csv` has a line "network,property,seconds" for each, its paths
    relative to the folder; `index.json` has examples, labels, ε and SHA-256 of
    every file. Both are written last, and those of an earlier export are taken
    away first: a folder that has them is whole. Raises DataError if the images
    do not fit or there are not so many points, and StorageError.
    """
    check_fit(model, images)
    if not 0 < timeout < math.inf:
        raise DataError(f"a time limit of {timeout:g} seconds is none; give a number above 0")
    check_points(images, first, count)
    numbers = range(first, min(first + (USUAL if count is None else count), len(images)))
    entries = []
    with ExitStack() as made:
        _clear(folder)
        for entry, text in _points(model, images, numbers, eps):
            path = folder / entry["file"]
            made.callback(path.unlink, missing_ok=True)
            write_atomic(path, text.encode())
            entries.append(entry | {"sha256": _sha256(path)})
        about = _about(model, images, eps, timeout) | {"onnx": _onnx(folder, onnx), "properties": entries}
        network = about["onnx"]["file"]
        write_atomic(folder / INDEX, (json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
        made.callback((folder / INDEX).unlink, missing_ok=True)
        write_atomic(folder / INSTANCES, _table([network, entry["file"], f"{timeout:g}"] for entry in entries))
        made.pop_all()  # all is written: nothing is taken back
    return Written(folder, len(entries), sum(not entry["correct"] for entry in entries), eps)


def check_points(images: ImageSet, first: int, count: int | None) -> None:
    """Raise DataError unless there are `count` examples from that number on, counted from 0; without it, one."""
    if first >= len(images):
        raise DataError(f"{images.name} ({images.split}) has {len(images)} examples; there is none with number {first}")
    left = len(images) - first
    if count is not None and count > left:
        raise DataError(f"{images.name} ({images.split}) has {left} examples from number {first} on, not {count}")


def _clear(folder: Path) -> None:
    """Take an earlier export's files away, the lists first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / INSTANCES, folder / INDEX, *folder.glob("point_*.vnnlib")):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror or error}") from error


@torch.no_grad()
def _points(model: Classifier, images: ImageSet, numbers: range, eps: float) -> Iterator[tuple[dict[str, Any], str]]:
    """The index's entry and the property of each point."""
    device = device_of(model)
    classes = len(model.metadata.class_names)
    for begin in range(numbers.start, numbers.stop, BATCH):
        part = slice(begin, min(begin + BATCH, numbers.stop))
        x = to_unit(images.images[part].to(device))
        labels, logits = images.labels[part].to(device), model(x)
        right = correct_points(logits, labels).tolist()
        rows = zip(x.cpu(), labels.tolist(), logits.argmax(1).tolist(), right, strict=True)
        for number, (pixels, label, predicted, correct) in enumerate(rows, start=begin):
            entry = {"file": f"point_{number:05}.vnnlib", "index": number, "label": label, "predicted": predicted}
            comment = (
                f"{images.name}, {images.split} set, example {number}, class {label}; "
                f"radius {format_eps(eps)} in pixels, cut to [0, 1]\n"
                "The outputs below are what must not be possible."
            )
            text = robustness_text(pixels, label, eps, classes, comment)
            yield entry | {"correct": correct}, text


def _table(rows: Iterable[Sequence[str]]) -> bytes:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue().encode()


def _about(model: Classifier, images: ImageSet, eps: float, timeout: float) -> dict[str, Any]:
    return {
        "format": 1,
        "certtrain": versions()["certtrain"],
        "dataset": images.name,
        "split": images.split,
        "input_shape": list(model.metadata.input_shape),
        "class_names": list(model.metadata.class_names),
        "eps": eps,
        "clip": [0.0, 1.0],
        "timeout": timeout,
    }


def _onnx(folder: Path, onnx: Path) -> dict[str, str]:
    """The network's file, as seen from the folder, and its hash."""
    return {"file": Path(os.path.relpath(onnx, folder)).as_posix(), "sha256": _sha256(onnx)}


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
