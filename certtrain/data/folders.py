"""Image folders: train/<class>/* and test/<class>/*, decoded once and then cached."""

from collections.abc import Sequence
from pathlib import Path

import torch

from certtrain.data.cache import cache_path, read_cached, write_cached
from certtrain.data.decode import decode_files
from certtrain.data.images import ImageSet
from certtrain.data.listing import Listing, check_same_classes, class_names, hidden, list_folder
from certtrain.data.request import Request
from certtrain.errors import DataError
from certtrain.formats import count_of

SPLITS = ("train", "test")


def load_folder(request: Request) -> ImageSet:
    """Any image folder. All images of a split must have the same size, and both splits the same classes.

    Raises:
        DataError: they do not, or a file is unreadable.
    """
    if request.data_dir is None:
        raise DataError("an image folder has no default; give it with --data-dir.")
    root = request.data_dir
    if missing := [name for name in dict.fromkeys(("train", request.split)) if not (root / name).is_dir()]:
        raise DataError(_expected(root, missing))
    if (root / "test").is_dir():
        check_same_classes(class_names(root / "train"), root / "test")
    return read_listing("folder", list_folder(root / request.split), request.channels, request)


def _expected(root: Path, missing: Sequence[str]) -> str:
    """That folders are missing in `root`, what is there, and the layout that is expected, with such names."""
    here = [path for path in sorted(root.iterdir()) if not hidden(path.name)]
    folders = [path.name for path in here if path.is_dir() and path.name not in SPLITS]
    images = sum(path.is_file() for path in here)
    found = f"; it holds the {'folders' if len(folders) > 1 else 'folder'} {', '.join(folders[:5])}" if folders else ""
    found += f"; it holds {count_of(images, 'file')} beside them" if folders and images else ""
    found += f"; it holds {count_of(images, 'file')} in no class folder" if images and not folders else ""
    first, second = (*folders, "cat", "dog")[:2] if len(folders) != 1 else (folders[0], "another")
    lines = [f"\n  {root}/{split}/{name}/*.png" for split in SPLITS for name in (first, second)]
    names = " and ".join(missing)
    return f"{root} has no folder {names}{found}. Images are expected in a folder for each class:{''.join(lines)}"


def read_listing(name: str, listing: Listing, channels: int | None, request: Request) -> ImageSet:
    """The listed images, from the cache if it has them, else decoded and saved there.

    Raises:
        DataError: an image is missing or unreadable, or the sizes differ.
    """
    if not listing.files:
        raise DataError(f"{listing.root} holds no images.")
    try:
        cached = cache_path(listing.root, listing.files, channels)
    except OSError as error:
        raise DataError(f"an image of {listing.root} cannot be read: {error}") from error
    images = read_cached(cached, len(listing.files))
    if images is None:
        images = decode_files([listing.root / file for file in listing.files], channels, request.report)
        write_cached(cached, images)
    return ImageSet(name, request.split, images, torch.tensor(listing.labels), listing.class_names)
