"""Writing files, completely or not at all, and checks of paths.

Nothing here loads torch, so that a wrong path gives an error at once.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from certtrain.errors import (
    CertificateError,
    CerttrainError,
    DataError,
    ModelFileError,
    PropertyError,
    RunError,
    StorageError,
)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing an existing file in one step; the folder is made if it does not exist.

    Raises StorageError if the disk is full or the folder cannot be written; an
    existing file then stays as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}. Nothing was changed.") from error


def make_folder(path: Path) -> None:
    """Make a folder if it does not exist. Raises StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {error.strerror or error}") from error


def check_writable(path: Path) -> None:
    """Raise StorageError unless a file can be written in the folder of `path`; no file is left there."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON. Raises ValueError for NaN and infinity."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def append_line(path: Path, line: str) -> None:
    """Add one line to a log. Raises StorageError."""
    append(path, f"{line}\n".encode())


def append(path: Path, lines: bytes) -> None:
    """Add complete lines to a file, in one write. Raises StorageError."""
    try:
        with path.open("ab") as file:
            file.write(lines)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def truncate(path: Path, size: int) -> None:
    """Shorten a log to its first `size` bytes, if it exists. Raises StorageError."""
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


def is_folder(path: Path) -> bool:
    """Whether there is a folder at `path`; no path that the system refuses, such as one that is too long, is one."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def check_model_file(path: Path) -> None:
    """Raise ModelFileError unless `path` is a file."""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # for example, if a name is too long
        raise ModelFileError(f"there can be no model file {path}: {error.strerror or error}") from error
    if is_folder:
        raise ModelFileError(f"{path} is a folder; the model of a run is {path / 'model.safetensors'}")
    if not is_file:
        own = path.suffix in ("", ".safetensors")  # else a file of another program
        who = "; `certtrain train` and `certtrain init` write one" if own else ""
        raise ModelFileError(f"there is no model file {path}{who}")


def check_certificate_file(path: Path) -> None:
    """Raise CertificateError unless `path` is a file."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise CertificateError(f"the certificate file {path} {what}; `certtrain verify MODEL --out FILE` writes one")


def check_property_file(path: Path) -> None:
    """Raise PropertyError unless `path` is a file."""
    if not path.is_file():
        what = "is a folder; give one of its .vnnlib files" if path.is_dir() else "does not exist"
        raise PropertyError(f"the property {path} {what}")


def check_data_folder(dataset: str, folder: Path | None) -> None:
    """Raise DataError if `dataset` is to be read from a folder that does not exist."""
    if folder is not None and dataset != "digits" and not folder.expanduser().is_dir():
        raise DataError(f"{dataset} not found: the data folder {folder} does not exist, or is not a folder.")


def check_source(path: Path, error: type[CerttrainError]) -> None:
    """Raise `error` unless `path` is a file that can be read."""
    try:
        path.read_bytes()
    except OSError as raised:
        where = "" if path.is_absolute() else f" in the current folder, {Path.cwd()},"
        raise error(f"the source file {path}{where} cannot be read: {raised.strerror or raised}") from raised


def check_new_run(path: Path) -> None:
    """Raise RunError if `path` exists and is not an empty folder."""
    if path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir())):
        resumable = (path / "preset.json").is_file() and not (path / "report.json").is_file()
        more = f", or resume that run with --resume {path}" if resumable else ""
        what = (
            "holds a finished run" if (path / "report.json").is_file() else "exists already and is not an empty folder"
        )
        raise RunError(f"{path} {what}; choose another folder (--out){more}")


def check_new_folder(path: Path, force: bool) -> None:
    """Raise StorageError if files cannot be written into `path`, or it is not empty and `force` is not set."""
    if path.exists() and not path.is_dir():
        raise StorageError(f"{path} is a file; give a folder")
    if path.is_dir() and any(path.iterdir()) and not force:
        raise StorageError(f"{path} exists already and is not empty; give another name, or --force to write into it")
    check_writable(path / "file")


def check_unfinished_run(path: Path) -> None:
    """Raise RunError unless `path` is the folder of an unfinished run."""
    if not (path / "preset.json").is_file():
        raise RunError(f"{path} holds no run to resume; --resume takes the folder that `certtrain train` wrote")
    if (path / "report.json").is_file():
        raise RunError(
            f"the run in {path} is finished; its model is {path / 'model.safetensors'}. For more epochs: "
            f"certtrain train --resume {path} --set train.epochs=N"
        )
