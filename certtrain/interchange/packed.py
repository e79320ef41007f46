"""Reading of files that may be gzipped, up to a limit."""

import gzip
import zlib
from pathlib import Path


def read_whole(path: Path, most: int) -> bytes:
    """The bytes of a file, unpacked if its name ends in .gz.

    Raises OSError if the file cannot be read or is damaged, and ValueError if there
    are more than `most` bytes; no more than that is ever unpacked.
    """
    try:
        with gzip.open(path) if is_packed(path) else path.open("rb") as file:
            data: bytes = file.read(most + 1)
    except (EOFError, zlib.error) as error:
        raise OSError(f"it is not a complete gzip file: {error}") from error
    if len(data) > most:
        packed = " once it is unpacked" if is_packed(path) else ""
        raise ValueError(f"it is larger than {most >> 20:,} MiB{packed}, the limit")
    return data


def present(path: Path) -> Path | None:
    """That file, or else its gzipped variant with .gz after its name; None if both are absent."""
    packed = path.with_name(f"{path.name}.gz")
    return next((found for found in (path, packed) if found.is_file()), None)


def is_packed(path: Path) -> bool:
    """Whether the name ends in .gz, in whatever case."""
    return path.suffix.lower() == ".gz"


def ending(path: Path) -> str:
    """The suffix of the name in lower case, without .gz: ".onnx" for Net.ONNX and for net.onnx.gz."""
    return (path.with_suffix("") if is_packed(path) else path).suffix.lower()
