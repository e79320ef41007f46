"""The arguments of a loader, and the search for its folder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from certtrain.errors import DataError

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much is done, how much there is)."""


@dataclass(frozen=True)
class Request:
    """The checked arguments of one call of `load_images`; `report` is its callback, or a function that does nothing."""

    split: str
    data_dir: Path | None
    channels: int | None
    report: Progress


def first_folder(candidates: Iterable[Path], holds: str, *names: str) -> Path:
    """The first candidate in which every name exists.

    Raises:
        DataError: there is none; the message names what is missing (`holds`) and the candidates.
    """
    tried = list(candidates)
    for folder in tried:
        if all((folder / name).exists() for name in names):
            return folder
    places = ", ".join(str(folder) for folder in tried)
    raise DataError(f"{holds} not found: looked for {' and '.join(dict.fromkeys(names))} in {places}.")
