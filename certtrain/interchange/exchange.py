"""A folder of properties for other verifiers: one VNN-LIB file for each example, the competition's list, and an index.

The network is the one that is exported to ONNX, and the boxes are those that
certtrain bounds. Examples come in the order of the data set, misclassified ones
included, so that counts agree with `verify --limit`. The index says which are
misclassified; the property of such an example is violated by the image itself.
"""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from certtrain.data import ImageSet, to_unit
from certtrain.errors import DataError, StorageError
from certtrain.formats import count_of
from certtrain.interchange.vnnlib import robustness_text
from certtrain.network.modelfile import Classifier, versions
from certtrain.runtime.device import device_of
from certtrain.spec.epsilon import format_eps
from certtrain.storage import write_atomic
from certtrain.verdicts import correct_examples
from certtrain.verification.verify import check_fit

INSTANCES, INDEX = "instances.csv", "index.json"
EXPORT_BATCH = 200
DEFAULT_COUNT = 100  # examples


@dataclass(frozen=True)
class ExportedProperties:
    """What was written to a folder of properties.

    misclassified: how many of the examples.
    """

    folder: Path
    examples: int
    misclassified: int
    eps: float

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        counts = {"examples": self.examples, "misclassified": self.misclassified}
        return {"folder": str(self.folder), **counts, "eps": self.eps}

    def sentence(self) -> str:
        """What was written, as a sentence."""
        wrong = f", {self.misclassified} of them misclassified" if self.misclassified else ""
        wrote = f"wrote {count_of(self.examples, 'property')} for ε = {format_eps(self.eps)}"
        return f"{wrote}{wrong}: {self.folder / INSTANCES}"


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
) -> ExportedProperties:
    """Write the properties of `count` examples from number `first` on, for the network in the file `onnx`.

    Without a `count`: of 100, or as many as there are.

    `instances.csv` has a line "network,property,seconds" for each, with paths
    relative to the folder. `index.json` has examples, labels, ε and the SHA-256 of
    every file. Both are written last, and those of an earlier export are removed
    first, so a folder that has them is complete. Raises DataError if the images do
    not fit or there are too few examples, and StorageError.
    """
    check_fit(model, images)
    if not 0 < timeout < math.inf:
        raise DataError(f"the time limit must be above 0 seconds, not {timeout:g}")
    check_examples(images, first, count)
    numbers = range(first, min(first + (DEFAULT_COUNT if count is None else count), len(images)))
    entries = []
    with ExitStack() as undo:
        _clear(folder)
        for entry, text in _entries(model, images, numbers, eps):
            path = folder / entry["file"]
            undo.callback(path.unlink, missing_ok=True)
            write_atomic(path, text.encode())
            entries.append(entry | {"sha256": _sha256(path)})
        about = _about(model, images, eps, timeout) | {"onnx": _onnx(folder, onnx), "properties": entries}
        network = about["onnx"]["file"]
        write_atomic(folder / INDEX, (json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
        undo.callback((folder / INDEX).unlink, missing_ok=True)
        write_atomic(folder / INSTANCES, _table([network, entry["file"], f"{timeout:g}"] for entry in entries))
        undo.pop_all()  # all files are written, so none is removed
    return ExportedProperties(folder, len(entries), sum(not entry["correct"] for entry in entries), eps)


def check_examples(images: ImageSet, first: int, count: int | None) -> None:
    """Raise DataError unless there are `count` examples from that number on, counted from 0; without it, one."""
    if first >= len(images):
        raise DataError(
            f"{images.name} ({images.split}) has {count_of(len(images), 'example')}; there is none with number {first}"
        )
    left = len(images) - first
    if count is not None and count > left:
        raise DataError(
            f"{images.name} ({images.split}) has {count_of(left, 'example')} from number {first} on, not {count}"
        )


def _clear(folder: Path) -> None:
    """Remove the files of an earlier export, the lists first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / INSTANCES, folder / INDEX, *folder.glob("point_*.vnnlib")):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror or error}") from error


@torch.no_grad()
def _entries(model: Classifier, images: ImageSet, numbers: range, eps: float) -> Iterator[tuple[dict[str, Any], str]]:
    """The index entry and the property of each example."""
    device = device_of(model)
    classes = len(model.metadata.class_names)
    for begin in range(numbers.start, numbers.stop, EXPORT_BATCH):
        part = slice(begin, min(begin + EXPORT_BATCH, numbers.stop))
        x = to_unit(images.images[part].to(device))
        labels, logits = images.labels[part].to(device), model(x)
        right = correct_examples(logits, labels).tolist()
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
    """The network's file, relative to the folder, and its hash."""
    return {"file": Path(os.path.relpath(onnx, folder)).as_posix(), "sha256": _sha256(onnx)}


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
