"""Files that are either whole or not there, and whether a path can be what it is named for.

Nothing here loads torch, so that a wrong path is answered at once.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from certtrain.errors import (
    CertificateError,
    DataError,
    ModelFileError,
    NetworkError,
    PropertyError,
    RunError,
    StorageError,
)


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path`, replacing what was there in one step; the folder is made if need be.

    Raises StorageError, leaving the earlier file as it was, if the disk is
    full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}. Nothing there was changed.") from error


def make_folder(path: Path) -> None:
    """Make a folder, if it is not there. Raises StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {error.strerror or error}") from error


def check_writable(path: Path) -> None:
    """Raise StorageError unless a file can be made where `path` would be; nothing is left behind."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Any) -> None:
    """Put `value` at `path` as indented JSON; NaN and infinity are refused with ValueError."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def append_line(path: Path, line: str) -> None:
    """Add one line to a log. Raises StorageError."""
    append(path, f"{line}\n".encode())


def append(path: Path, lines: bytes) -> None:
    """Add whole lines to a file, in one go. Raises StorageError."""
    try:
        with path.open("ab") as file:
            file.write(lines)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def truncate(path: Path, size: int) -> None:
    """Cut a log back to its first `size` bytes; a log that is not there stays away. Raises StorageError."""
    try:
        if path.exists():
            os.truncate(path, size)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _write_beside(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_model_file(path: Path) -> None:
    """Raise ModelFileError unless there is a file at `path`."""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # as where a name is too long
        raise ModelFileError(f"there can be no model file {path}: {error.strerror or error}") from error
    if is_folder:
        raise ModelFileError(f"{path} is a folder; a run's model is {path / 'model.safetensors'}")
    if not is_file:
        raise ModelFileError(f"there is no model file {path}; `certtrain train` and `certtrain init` write one")


def check_certificate_file(path: Path) -> None:
    """Raise CertificateError unless there is a file at `path`."""
    if not path.is_file():
        what = "is no file" if path.exists() else "is not there"
        raise CertificateError(f"the certificate file {path} {what}; `certtrain verify MODEL --out FILE` writes one")


def check_property_file(path: Path) -> None:
    """Raise PropertyError unless there is a file at `path`."""
    if not path.is_file():
        what = "a folder; name one of its .vnnlib files" if path.is_dir() else "not there"
        raise PropertyError(f"the property {path} is {what}")


def check_data_folder(dataset: str, folder: Path | None) -> None:
    """Raise DataError if `dataset` is to be read from a folder that is not there."""
    if folder is not None and dataset != "digits" and not folder.expanduser().is_dir():
        raise DataError(f"{dataset} not found: the data folder {folder} is not there, or is no folder.")


def check_source(path: Path) -> None:
    """Raise NetworkError unless there is a Python file at `path` that can be read."""
    try:
        path.read_bytes()
    except OSError as error:
        where = "" if path.is_absolute() else f" in the current folder, {Path.cwd()},"
        raise NetworkError(f"the source file {path}{where} cannot be read: {error.strerror or error}") from error


def check_new_run(path: Path) -> None:
    """Raise RunError if `path` holds something already."""
    if path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir())):
        more = f", or go on with that run by --resume {path}" if (path / "preset.json").is_file() else ""
        raise RunError(f"{path} is there already and not an empty folder; choose another --out{more}")


def check_new_folder(path: Path, force: bool) -> None:
    """Raise StorageError if files cannot be written into `path`, or it holds something and `force` is not set."""
    if path.exists() and not path.is_dir():
        raise StorageError(f"{path} is a file; name a folder")
    if path.is_dir() and any(path.iterdir()) and not force:
        raise StorageError(f"{path} is there already and not empty; give another name, or --force to write into it")
    check_writable(path / "file")


def check_unfinished_run(path: Path) -> None:
    """Raise RunError unless `path` holds a run that has not come to its end."""
    if not (path / "preset.json").is_file():
        raise RunError(f"{path} holds no run to resume; --resume takes the folder that a training wrote")
    if (path / "report.json").is_file():
        raise RunError(f"the run in {path} is finished; its model is {path / 'model.safetensors'}")
