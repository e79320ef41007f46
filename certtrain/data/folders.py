"""Image folders: train/<class>/* and test/<class>/*, decoded once and then cached."""

import torch

from certtrain.data.cache import cache_path, read_cached, write_cached
from certtrain.data.decode import decode_files
from certtrain.data.images import ImageSet
from certtrain.data.listing import Listing, check_same_classes, class_names, list_folder
from certtrain.data.request import Request, first_folder
from certtrain.errors import DataError


def load_folder(request: Request) -> ImageSet:
    """Any image folder. All images of a split must have the same size, and both splits the same classes.

    Raises:
        DataError: they do not, or a file is unreadable.
    """
    if request.data_dir is None:
        raise DataError("an image folder has no default; give it with --data-dir.")
    root = first_folder([request.data_dir], "image folder", "train", request.split)
    if (root / "test").is_dir():
        check_same_classes(class_names(root / "train"), root / "test")
    return read_listing("folder", list_folder(root / request.split), request.channels, request)


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
