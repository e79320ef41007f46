"""The images of an image folder and their classes, with a warning about files that are left out."""

import mimetypes
import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from certtrain.data.counterexamples import ENDING, is_counterexample
from certtrain.data.seeds import derive_seed
from certtrain.errors import DataError

# Files and folders that operating systems add, besides those whose names begin with a dot.
_SYSTEM_FILES = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"})


class LeftOutWarning(UserWarning):
    """A class folder contains files that are not images; they are left out."""


@dataclass(frozen=True)
class Listing:
    """The files of one split, relative to `root`, each with a label."""

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]


def hidden(name: str) -> bool:
    """Whether a file or folder of that name is not part of the data: hidden, or added by the operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def class_names(folder: Path) -> tuple[str, ...]:
    """The names of the folders in `folder` that are not hidden, sorted."""
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not hidden(path.name)))


def check_same_classes(expected: tuple[str, ...], folder: Path) -> None:
    """Raise DataError, which names the difference, unless `folder` has exactly the expected classes."""
    found = set(class_names(folder))
    missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
    lists = (("missing", missing), ("not expected", extra))
    if texts := [f"{what} {', '.join(names)}" for what, names in lists if names]:
        raise DataError(f"{folder} has other classes than expected: {'; '.join(texts)}.")


def list_folder(folder: Path, *, beside: Collection[str] = ()) -> Listing:
    """The images under <class>/ in `folder`, with the classes sorted by name.

    The files are in a fixed shuffled order, so that the first ones are of several classes. Hidden
    files, and counterexamples that certtrain wrote, are not part of the data. A LeftOutWarning
    counts other files that are not images, apart from those whose names end with one of `beside`,
    which are expected.

    Raises:
        DataError: there are fewer than two class folders, one of them has no image, or an image
            would be left out: it is in no class folder, or its format is not supported.
    """
    try:
        names, files = class_names(folder), _visible_files(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error}") from error
    _check_classes(folder, names)
    images = [file for file in files if _is_read(file)]
    _check_places(folder, [file for file in files if "/" not in file and _is_image(file)])
    _check_left_out(folder, [file for file in files if not _is_read(file) and not file.endswith(tuple(beside))])
    images.sort(key=lambda file: (derive_seed(file), file))
    numbers = {name: number for number, name in enumerate(names)}
    labels = [numbers[file.partition("/")[0]] for file in images]
    if empty := sorted(numbers.keys() - {names[label] for label in labels}):
        raise DataError(f"{folder} is not an image folder (<class>/<image>): no image in {', '.join(empty)}.")
    return Listing(folder, tuple(images), tuple(labels), names)


def _visible_files(folder: Path) -> list[str]:
    """All files under `folder` that are not hidden, nor in a hidden folder, nor certtrain's own, relative to it."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = [name for name in folders if not hidden(name)]
        inside = Path(place).relative_to(folder)
        found += [(inside / name).as_posix() for name in files if not hidden(name)]
    # Of a large folder only the few files with such names become paths.
    return sorted(file for file in found if ENDING not in file or not is_counterexample(folder / file))


def _check_classes(folder: Path, names: Sequence[str]) -> None:
    if not names:
        raise DataError(f"{folder} is not an image folder (<class>/<image>): it holds no folders.")
    if len(names) == 1:
        raise DataError(
            f"{folder} holds one class, {names[0]!r}, but a classifier needs at least two; "
            "put the images of each class into a folder of its own."
        )


def _check_places(folder: Path, outside: Sequence[str]) -> None:
    if outside:
        raise DataError(
            f"{folder} holds images that are in no class folder, {_some(outside)}; "
            "move each into the folder of its class, or remove it."
        )


def _check_left_out(folder: Path, others: Sequence[str]) -> None:
    """Raise DataError if images would be left out; warn about other files that are."""
    images = [file for file in others if _is_image(file)]
    if images:
        raise DataError(
            f"{folder} holds images in formats that are not supported, {_some(images)}; "
            f"convert or remove them. Supported formats: {', '.join(_formats())}."
        )
    if others:
        warnings.warn(
            f"{folder} holds files that are not images and are left out, {_some(others)}", LeftOutWarning, stacklevel=3
        )


@cache
def _formats() -> tuple[str, ...]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return tuple(IMG_EXTENSIONS)


def _is_read(file: str) -> bool:
    return "/" in file and file.lower().endswith(_formats())


def _is_image(file: str) -> bool:
    """Whether the name is that of an image in any format, supported or not."""
    suffix = Path(file).suffix.lower()
    return suffix in Image.registered_extensions() or (mimetypes.guess_type(f"x{suffix}")[0] or "").startswith("image/")


def _some(files: Sequence[str]) -> str:
    """Like "12 of them, the first cat/3.gif"."""
    return f"{len(files)} of them, the first {files[0]}" if len(files) > 1 else files[0]
