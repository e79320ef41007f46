"""Files that may be gzipped, read whole and never beyond a limit."""

import gzip
import zlib
from pathlib import Path


def read_whole(path: Path, most: int) -> bytes:
    """The bytes of a file, unpacked if its name ends in .gz.

    Raises OSError if it cannot be read, or if it is damaged, and ValueError if
    there are more than `most`; no more than that is ever unpacked.
    """
    try:
        with gzip.open(path) if is_packed(path) else path.open("rb") as file:
            data: bytes = file.read(most + 1)
    except (EOFError, zlib.error) as error:
        raise OSError(f"it is no whole gzip file: {error}") from error
    if len(data) > most:
        packed = " once it is unpacked" if is_packed(path) else ""
        raise ValueError(f"it is larger than {most >> 20:,} MiB{packed}, which is the most that is read")
    return data


def is_packed(path: Path) -> bool:
    """Whether the name ends in .gz, in whatever case."""
    return path.suffix.lower() == ".gz"


def ending(path: Path) -> str:
    """How the name ends, in small letters, without .gz: ".onnx" of Net.ONNX and of net.onnx.gz."""
    return (path.with_suffix("") if is_packed(path) else path).suffix.lower()
