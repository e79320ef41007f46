"""What a loader is asked for, and the words for a folder that is not there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from certtrain.errors import DataError

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much is done, how much there is)."""


@dataclass(frozen=True)
class Request:
    """One call of `load_images`: its arguments, checked, with a `report` that may always be called."""

    split: str
    data_dir: Path | None
    channels: int | None
    report: Progress


def first_folder(candidates: Iterable[Path], holds: str, *names: str) -> Path:
    """The first candidate in which every name exists.

    Raises:
        DataError: there is none; the message says what (`holds`) was looked for and where.
    """
    looked = list(candidates)
    for folder in looked:
        if all((folder / name).exists() for name in names):
            return folder
    places = ", ".join(str(folder) for folder in looked)
    raise DataError(f"{holds} not found: looked for {' and '.join(names)} in {places}.")
