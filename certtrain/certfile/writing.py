"""Writing of certificate files: the header first, then each batch of results, then the seal."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from certtrain.bounds.box import PIXEL_RANGE
from certtrain.bounds.settings import VERDICT_SETTINGS, Settings
from certtrain.certfile.lines import (
    BoundSettings,
    Data,
    EpsRecord,
    Header,
    Line,
    ModelHashes,
    Record,
    Seal,
    differences,
    encode,
)
from certtrain.certfile.reading import Contents, read_certificates
from certtrain.data import ImageSet
from certtrain.errors import CertificateError
from certtrain.locking import locked
from certtrain.network.modelfile import Classifier, versions
from certtrain.network.reading import FileReading, ForeignMetadata
from certtrain.spec.choices import NetworkName
from certtrain.spec.epsilon import exact_eps
from certtrain.storage import append, make_folder, truncate, write_atomic
from certtrain.verification.methods import assumptions_of
from certtrain.verification.results import ExampleResult, count
from certtrain.verification.verify import network_of


def describe_task(
    path: Path,
    model: Classifier,
    images: ImageSet,
    *,
    eps: float,
    method: str,
    network: NetworkName,
    arithmetic: str,
    attack: Mapping[str, Any],
    batch_size: int,
    bounds: Settings = VERDICT_SETTINGS,
) -> Header:
    """The header for the certificates of the saved `model` in the file `path` on `images`."""
    return Header(
        model=hash_model(path, model),
        network=network,
        data=Data.model_validate(data_of(images)),
        eps=EpsRecord(text=exact_eps(eps), value=eps),
        inputs=PIXEL_RANGE,
        method=method,
        bounds=BoundSettings(**bounds.decisive_fields()),
        arithmetic=arithmetic,
        assumptions=assumptions_of(network_of(model, network), method, arithmetic),
        attack=dict(attack),
        batch_size=batch_size,
        versions=versions(),
        reading=reading_of(model),
    )


def reading_of(model: Classifier) -> FileReading | None:
    """How the file of a network that certtrain did not train was read; None for certtrain's own."""
    return model.metadata.reading if isinstance(model.metadata, ForeignMetadata) else None


def data_of(images: ImageSet) -> dict[str, Any]:
    """The fields of `Data`."""
    return {
        "name": images.name,
        "split": images.split,
        "examples": len(images),
        "sha256": images.fingerprint(),
    }


def hash_model(path: Path, model: Classifier) -> ModelHashes:
    """The hashes of a model and of the file that it comes from."""
    with path.open("rb") as file:
        of_file = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensors.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        tensors.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    said = model.metadata.model_dump(mode="json", include={"architecture", "input_shape", "class_names"})
    architecture = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return ModelHashes(file=of_file, tensors=tensors.hexdigest(), architecture=architecture)


LEFT_OUT_IF_EMPTY = ("cut", "reading")  # fields that came later, so that other lines are as in earlier versions


@contextmanager
def locked_certificates(path: Path) -> Iterator[None]:
    """Keep other processes from writing the certificate file `path`; makes its folder if necessary.

    Raises CertificateError if another process is writing it, and StorageError.
    """
    make_folder(path.absolute().parent)
    taken = CertificateError(
        f"another process is writing {path}; wait until it ends, or stop it, and run the command again; "
        "or write to another file"
    )
    with locked(path.parent / f".{path.name}.lock", taken):
        yield


def check_same_task(path: Path, recorded: Header, wanted: Header) -> None:
    """Raise CertificateError if the header of the file `path` differs from the one that is wanted."""
    if other := differences(recorded, wanted):
        raise CertificateError(
            f"{path} was written for another task: {'; '.join(other)}. To continue it, give the options that it "
            "was written with; otherwise give another name, or --force to replace it"
        )


class Writer:
    """Writes a certificate file, batch by batch. `results` are those in the file, by number."""

    def __init__(self, path: Path, header: Header, images: ImageSet) -> None:
        """Start a new file, which replaces an existing one. Raises StorageError."""
        line = _line(header)
        write_atomic(path, line)
        self.path, self.images, self.digest = path, images, hashlib.sha256(line)
        self.results: dict[int, ExampleResult] = {}

    @classmethod
    def resume(cls, path: Path, header: Header, images: ImageSet) -> Self:
        """Continue a file, after removing its seal and an incomplete last line.

        Its results are taken as they stand; `check` computes them again. Raises CertificateError if the file is
        damaged, has another header or is about other examples, and StorageError.
        """
        contents = read_certificates(path, images.input_shape)
        check_same_task(path, contents.header, header)
        self = cls.__new__(cls)
        self.path, self.images, self.digest = path, images, contents.digest.copy()
        self.results = {result.index: result for result in contents.results(images.input_shape)}
        self._check_examples(contents)
        truncate(path, contents.length)
        return self

    def add(self, results: Sequence[ExampleResult]) -> None:
        """Write a record for each. Raises StorageError."""
        lines = b"".join(_line(record_of(result, self.images)) for result in results)
        append(self.path, lines)
        self.digest.update(lines)
        self.results |= {result.index: result for result in results}

    def seal(self) -> None:
        """Write the last line, once every example has a record. Raises StorageError."""
        append(self.path, _line(Seal(counts=count(self.results.values()), sha256=self.digest.hexdigest())))

    def _check_examples(self, contents: Contents) -> None:
        for record in contents.records.values():
            if record.label != int(self.images.labels[record.index]):
                raise CertificateError(f"{self.path} has another label for example {record.index} than the data")
            if record.sha256 != self.images.example_fingerprint(record.index):
                raise CertificateError(f"{self.path} has another image for example {record.index} than the data")


def _line(value: Line) -> bytes:
    empty = {name for name in LEFT_OUT_IF_EMPTY if not getattr(value, name, True)}
    return (value.model_dump_json(exclude=empty) + "\n").encode()


def record_of(result: ExampleResult, images: ImageSet) -> Record:
    """The record of a result for one of the `images`."""
    return Record(
        index=result.index,
        label=result.label,
        verdict=result.verdict,
        margin=result.margin,
        method=result.method,
        tried=dict(result.tried),
        sha256=images.example_fingerprint(result.index),
        counterexample=None if result.counterexample is None else encode(result.counterexample),
        trees=dict(result.trees),
        cut=result.cut,
    )
