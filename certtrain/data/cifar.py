"""CIFAR-10, from torchvision's files or from an image folder."""

from pathlib import Path

import torch

from certtrain.data.cache import cache_folder
from certtrain.data.download import download
from certtrain.data.folders import read_listing
from certtrain.data.images import ImageSet
from certtrain.data.listing import check_same_classes, list_folder
from certtrain.data.request import Request
from certtrain.errors import DataError

_BATCHES = "cifar-10-batches-py"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_cifar10(request: Request) -> ImageSet:
    """CIFAR-10: 50,000 and 10,000 colour images of 32x32 pixels.

    `data_dir`, or its subfolder `cifar10`, contains torchvision's cifar-10-batches-py or is an
    image folder. Without it the data set is downloaded into the cache.

    Raises:
        DataError: the data are missing or damaged.
    """
    if request.data_dir is None:
        return _downloaded(request)
    candidates = [request.data_dir, request.data_dir / "cifar10"]
    if request.data_dir.name == _BATCHES:
        candidates.append(request.data_dir.parent)
    for folder in candidates:
        if (folder / _BATCHES).is_dir():
            return _read_batches(folder, request)
        if (folder / request.split).is_dir():
            return _read_folder(folder / request.split, request)
    places = ", ".join(map(str, candidates))
    raise DataError(f"cifar10 not found: looked for {_BATCHES} or a folder {request.split} in {places}.")


def _downloaded(request: Request) -> ImageSet:
    from torchvision.datasets import CIFAR10

    folder = cache_folder()
    if not (folder / _BATCHES).is_dir():
        download("cifar10", folder, lambda: CIFAR10(str(folder), download=True), request)
    return _read_batches(folder, request)


def _read_batches(folder: Path, request: Request) -> ImageSet:
    from torchvision.datasets import CIFAR10

    try:
        # torchvision checks the MD5 sums of these files before it unpickles them.
        found = CIFAR10(str(folder), train=request.split == "train")
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder / _BATCHES} is damaged or incomplete: {error}") from error
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet("cifar10", request.split, images, torch.tensor(found.targets), tuple(found.classes))


def _read_folder(folder: Path, request: Request) -> ImageSet:
    # The classes are in alphabetical order, as torchvision's are.
    check_same_classes(CIFAR10_CLASSES, folder)
    return read_listing("cifar10", list_folder(folder), 3, request)
