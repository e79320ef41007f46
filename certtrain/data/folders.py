"""Image folders: train/<class>/* and test/<class>/*, decoded once and then cached."""

from dataclasses import dataclass
from pathlib import Path

import torch

from certtrain.data.cache import cache_path, read_cached, write_cached
from certtrain.data.decode import decode_files
from certtrain.data.images import ImageSet
from certtrain.data.request import Request, first_folder
from certtrain.data.seeds import derive_seed
from certtrain.errors import DataError


@dataclass(frozen=True)
class Listing:
    """The files of one split, relative to `root`, with a label each."""

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]


def load_folder(request: Request) -> ImageSet:
    """Any image folder. All images of a split have one size; both splits have the same classes.

    Raises:
        DataError: it is not so, or a file is unreadable.
    """
    if request.data_dir is None:
        raise DataError("an image folder has no usual place; name it with --data-dir.")
    root = first_folder([request.data_dir], "image folder", "train", request.split)
    if (root / "test").is_dir():
        check_same_classes(class_names(root / "train"), root / "test")
    return read_listing("folder", list_folder(root / request.split), request.channels, request)


def class_names(folder: Path) -> tuple[str, ...]:
    """The names of the folders in `folder`, sorted."""
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))


def check_same_classes(expected: tuple[str, ...], folder: Path) -> None:
    """Raise DataError, naming the difference, unless `folder` holds exactly the expected classes."""
    found = set(class_names(folder))
    missing, extra = sorted(set(expected) - found), sorted(found - set(expected))
    if missing or extra:
        raise DataError(
            f"{folder} has other classes than expected: missing {', '.join(missing) or 'none'}; "
            f"not expected {', '.join(extra) or 'none'}."
        )


def list_folder(folder: Path) -> Listing:
    """The images under <class>/ in `folder`, classes sorted by name.

    The files come in a fixed shuffled order, so that the first few hold every class, and not
    the first class alone.

    Raises:
        DataError: there are no class folders, or one holds no image.
    """
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except OSError as error:
        raise DataError(f"{folder} is not an image folder (<class>/<image>): {error}") from error
    samples = [(Path(file).relative_to(folder).as_posix(), label) for file, label in found.samples]
    samples.sort(key=lambda sample: (derive_seed(sample[0]), sample[0]))
    files, labels = zip(*samples, strict=True)
    return Listing(folder, files, labels, tuple(found.classes))


def read_listing(name: str, listing: Listing, channels: int | None, request: Request) -> ImageSet:
    """The listed images, from the cache if they are there, else decoded and put there.

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
