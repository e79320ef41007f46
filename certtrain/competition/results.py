"""The results of a run over lists of instances, as the competition writes them: a CSV file without a header.

    category,onnx,vnnlib,prepare time,result,run time

The paths are those of the list, the times are seconds. certtrain prepares nothing, so
that time is 0. The result is sat, unsat, unknown, timeout or error. A line is written
at once when its instance is done. A second file, with the ending .jsonl, has the
options of the run in its first line, and then for each instance what decided it, or
what went wrong.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from certtrain.competition.instances import Key
from certtrain.errors import BenchmarkError, reason
from certtrain.locking import locked
from certtrain.storage import append, append_line, check_writable, make_folder, truncate

WORDS = ("sat", "unsat", "unknown", "timeout", "error")


class InstanceResult(NamedTuple):
    """The result of an instance: a word, and the seconds that its process took."""

    word: str
    seconds: float


class ResultsFile:
    """The file of a run, which goes on where it stopped.

    results: by instance, those that are written.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        """Raises BenchmarkError if the file is of a run with other options, or was not written by a run."""
        self.path, self.details = path, details_of(path)
        if not path.exists():
            self.details.unlink(missing_ok=True)
            append_line(self.details, json.dumps({"options": dict(options)}))
            append(path, b"")
        _check_options(path, _complete(self.details), options)
        self.results = _results(path, _complete(path))
        for file in (path, self.details):  # the last line may have been cut off
            truncate(file, len("".join(f"{line}\n" for line in _complete(file)).encode()))

    def add(self, key: Key, result: InstanceResult, details: Mapping[str, Any]) -> None:
        """Write the result of an instance. Raises StorageError."""
        append_line(self.details, json.dumps({**key._asdict(), "result": result.word, **details}))
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([*key, "0", result.word, f"{result.seconds:.3f}"])
        append(self.path, line.getvalue().encode())
        self.results[key] = result


@contextmanager
def results_file(path: Path, options: Mapping[str, Any], *, force: bool = False) -> Iterator[ResultsFile]:
    """The file of a run with these options, new or continued, while no other process writes it.

    With `force`, an existing file is replaced. Raises BenchmarkError and StorageError.
    """
    if path.is_dir():
        raise BenchmarkError(f"{path} is a folder; give the name of a file")
    make_folder(path.parent)
    check_writable(path)
    taken = BenchmarkError(f"another process writes {path}")
    with locked(path.parent / f".{path.name}.lock", taken):
        if force:
            path.unlink(missing_ok=True)
        yield ResultsFile(path, options)


def details_of(path: Path) -> Path:
    """The file beside the results with the options and the details."""
    return path.with_name(f"{path.name}.jsonl")


def _results(path: Path, lines: list[str]) -> dict[Key, InstanceResult]:
    """The results in the lines of a file."""
    found: dict[Key, InstanceResult] = {}
    for row in csv.reader(lines):
        try:
            category, network, about, _, word, seconds = row
            found[Key(category, network, about)] = InstanceResult(word, float(seconds))
        except ValueError as error:
            raise BenchmarkError(f"{path} has a line that certtrain bench does not write: {','.join(row)}") from error
        if word not in WORDS:
            raise BenchmarkError(f"{path} has the result {word!r}, which certtrain bench does not write")
    return found


def _complete(path: Path) -> list[str]:
    """The complete lines of a file, without their ends; none if there is no file."""
    try:
        data = path.read_bytes() if path.exists() else b""
        return data[: data.rfind(b"\n") + 1].decode().split("\n")[:-1]
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path} cannot be read: {reason(error)}") from error


def _check_options(path: Path, written: list[str], options: Mapping[str, Any]) -> None:
    try:
        before = json.loads(written[0])["options"]
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{path} exists, but {details_of(path).name} beside it does not say with which options it was written; "
            "give another --out, or --force to replace it"
        ) from error
    names = dict.fromkeys([*options, *before])
    if other := [
        f"{name} was {before.get(name)}, now {options.get(name)}"
        for name in names
        if before.get(name) != options.get(name)
    ]:
        raise BenchmarkError(
            f"{path} was written with other options: {'; '.join(other)}; give another --out, or --force to replace it"
        )
