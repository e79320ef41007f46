"""Data sets by name."""

from collections.abc import Callable
from pathlib import Path

from certtrain.data.cifar import CIFAR10_CLASSES, load_cifar10
from certtrain.data.digits import load_digits
from certtrain.data.folders import load_folder
from certtrain.data.idx import CLOTHES, DIGITS, load_fashion_mnist, load_mnist
from certtrain.data.images import ImageSet
from certtrain.data.request import Progress, Request
from certtrain.data.tinyimagenet import load_tinyimagenet
from certtrain.errors import DataError
from certtrain.storage import check_data_folder

_LOADERS: dict[str, Callable[[Request], ImageSet]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "tinyimagenet": load_tinyimagenet,
    "folder": load_folder,
}

FIXED_IMAGES: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "mnist": ((1, 28, 28), DIGITS),
    "fashion-mnist": ((1, 28, 28), CLOTHES),
    "cifar10": ((3, 32, 32), CIFAR10_CLASSES),
}
"""Shape (C, H, W) and classes of the data sets that are the same wherever they are downloaded from."""

NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.0,), (1.0,)),
    "mnist": ((0.0,), (1.0,)),
    "fashion-mnist": ((0.0,), (1.0,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
"""Mean and standard deviation of each channel, as in published work on certified training.

Pixels are in [0, 1]. For an image folder, use `pixel_statistics`.
"""


def load_images(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    channels: int | None = None,
    on_progress: Progress | None = None,
) -> ImageSet:
    """Load one split, "train" or "test", of a data set.

    Args:
        name: digits, mnist, fashion-mnist, cifar10, tinyimagenet or folder.
        split: "train" or "test".
        data_dir: folder with the data, which is only read; ignored for digits, which come with certtrain.
            None: download into the cache folder (mnist, fashion-mnist, cifar10).
        channels: 1 or 3; images of a "folder" are converted, any other set must have that many.
            None: as in the images.
        on_progress: called with what is being done, how much is done and how much there is.

    Raises:
        DataError: the data set is unknown, missing or damaged, or does not fit the arguments.
    """
    request = _checked(name, split, data_dir, channels, on_progress or _ignore)
    loaded = _LOADERS[name](request)
    if channels not in (None, loaded.input_shape[0]):
        shape = "x".join(map(str, loaded.input_shape))
        raise DataError(f"channels={channels} does not fit {name}, whose images are {shape}.")
    return loaded


def _checked(name: str, split: str, data_dir: str | Path | None, channels: int | None, report: Progress) -> Request:
    if name not in _LOADERS:
        raise DataError(f"there is no data set {name!r}; known are {', '.join(_LOADERS)}.")
    if split not in ("train", "test"):
        raise DataError(f"there is no split {split!r}; choose train or test.")
    if channels not in (None, 1, 3):
        raise DataError(f"images have 1 channel or 3, not {channels}.")
    folder = None if data_dir is None else Path(data_dir).expanduser()
    check_data_folder(name, folder)
    return Request(split, folder, channels, report)


def _ignore(what: str, done: int, total: int) -> None:
    """Do nothing; for calls without `on_progress`."""
