"""Files that are either whole or not there."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from certtrain.errors import StorageError


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
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
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
