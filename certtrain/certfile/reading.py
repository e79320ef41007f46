"""Reading of certificate files: the result is valid certificates or one clear error, whatever the file contains."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError

from certtrain.certfile.lines import Header, Line, Record, Seal, continues, decode
from certtrain.errors import CertificateError
from certtrain.formats import count_of
from certtrain.spec.messages import problem_text
from certtrain.storage import check_certificate_file
from certtrain.verdicts import VERDICTS
from certtrain.verification.results import ExampleResult

MOST_LINE_BYTES = 1 << 22  # of one line, without its counterexample; trees take most of them
L = TypeVar("L", bound=Line)


@dataclass(frozen=True)
class Contents:
    """The contents of a file: its header, and the last record of each example.

    length, digest: of header and records, in bytes, and their SHA-256 so far.
    """

    header: Header
    records: Mapping[int, Record]
    sealed: bool
    length: int
    digest: "hashlib._Hash"

    def results(self, shape: tuple[int, ...]) -> list[ExampleResult]:
        """The results in the records, with counterexamples of that shape (C, H, W)."""
        return [result_of(record, shape) for record in self.records.values()]


def result_of(record: Record, shape: tuple[int, ...]) -> ExampleResult:
    """The result in a record, with a counterexample of that shape (C, H, W)."""
    pixels = None if record.counterexample is None else decode(record.counterexample, shape)
    about = (record.index, record.label, record.verdict, record.margin, record.method, dict(record.tried))
    return ExampleResult(*about, pixels, dict(record.trees), record.cut)


def read_certificates(path: Path, shape: tuple[int, ...]) -> Contents:
    """The contents of the file `path`, for images of that shape (C, H, W).

    Raises CertificateError, naming the line, for a file that `Writer` cannot have
    written: a field is missing, unknown or of the wrong type, a number is NaN or
    infinite, a line is too long, or the seal does not match the lines before it.
    A last line without a line end is ignored, since writing was interrupted there.
    """
    check_certificate_file(path)
    longest = MOST_LINE_BYTES + 6 * torch.Size(shape).numel()
    with path.open("rb") as file:
        return _Reader(path, shape).read(iter(lambda: file.readline(longest + 1), b""), longest)


def read_header(path: Path) -> Header:
    """The task of the file `path`, from its first line. Raises CertificateError as `read_certificates`."""
    check_certificate_file(path)
    with path.open("rb") as file:
        first = file.readline(MOST_LINE_BYTES + 1)
    found = _Reader(path, ()).read(iter([first]), MOST_LINE_BYTES)
    return found.header


class _Reader:
    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape, self.number = path, shape, 0
        self.digest, self.length = hashlib.sha256(), 0
        self.header: Header | None = None
        self.records: dict[int, Record] = {}
        self.seal: Seal | None = None

    def read(self, lines: Iterator[bytes], longest: int) -> Contents:
        for self.number, line in enumerate(lines, start=1):
            if len(line) > longest:
                raise self._error(f"is longer than {longest:,} bytes, the limit for a line of a certificate file")
            if line.endswith(b"\n"):  # else writing was interrupted, and this is the last line
                self._take(line)
        if self.header is None:
            raise CertificateError(f"{self.path} holds no certificates: it has no header")
        return Contents(self.header, self.records, self.seal is not None, self.length, self.digest)

    def _take(self, line: bytes) -> None:
        if self.seal is not None:
            raise self._error("comes after the seal")
        if self.header is None:
            self.header = self._valid(Header, line)
        elif line.startswith(b'{"kind":"seal"'):
            self._check_seal(self._valid(Seal, line))
            return
        else:
            self._keep(self._valid(Record, line))
        self.digest.update(line)
        self.length += len(line)

    def _keep(self, record: Record) -> None:
        assert self.header is not None
        if record.index >= self.header.data.examples:
            raise self._error(f"is about example {record.index}, but there are {self.header.data.examples}")
        earlier = self.records.get(record.index)
        if earlier is not None and not continues(earlier, record):
            raise self._error(f"is about example {record.index} again, but does not continue its earlier line")
        if record.counterexample is not None:
            self._check_pixels(record.counterexample)
        self.records[record.index] = record

    def _check_pixels(self, text: str) -> None:
        try:
            finite = bool(decode(text, self.shape).isfinite().all())
        except ValueError as error:
            raise self._error(f"has a counterexample that cannot be read: {error}") from error
        if not finite:
            raise self._error("has a counterexample with NaN or infinity")

    def _check_seal(self, seal: Seal) -> None:
        assert self.header is not None
        if missing := self.header.data.examples - len(self.records):
            first = next(index for index in count() if index not in self.records)
            without = f"{count_of(missing, 'example')}, such as example {first}"
            raise self._error(f"is the seal, but the file has no record of {without}")
        if seal.sha256 != self.digest.hexdigest():
            raise self._error("is the seal, but does not match the lines before it: one of them was changed")
        verdicts = [record.verdict for record in self.records.values()]
        if dict(seal.counts) != {verdict: verdicts.count(verdict) for verdict in VERDICTS}:
            raise self._error("is the seal, but its counts are not those of the records")
        self.seal = seal

    def _valid(self, kind: type[L], line: bytes) -> L:
        try:
            return kind.model_validate_json(line)
        except ValidationError as error:
            raise self._error(f"is not a {kind.__name__.lower()} of a certificate file: {_first(error)}") from error

    def _error(self, what: str) -> CertificateError:
        return CertificateError(f"line {self.number} of {self.path} {what}")


def _first(error: ValidationError) -> str:
    """The first error and its place, with the value shortened, since it may be of any length."""
    problem = error.errors(include_url=False)[0]
    text = problem_text(problem)[:300]
    if problem["type"] == "json_invalid":
        return f"the line {text}"
    where = ".".join(map(str, problem["loc"]))[:100]
    return (f"{where}: " if where else "") + text
