"""MNIST and Fashion-MNIST from idx files, plain or gzipped.

The format is LeCun's: two zero bytes, 8 for uint8, the number of dimensions, each dimension as a
big-endian 32-bit number, then the values.
"""

import gzip
import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from certtrain.data.cache import cache_folder
from certtrain.data.download import download
from certtrain.data.folders import read_listing
from certtrain.data.images import ImageSet
from certtrain.data.listing import check_same_classes, list_folder
from certtrain.data.request import Request
from certtrain.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_STEMS = {"train": "train", "test": "t10k"}
DIGITS = tuple(str(digit) for digit in range(10))
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_mnist(request: Request) -> ImageSet:
    """MNIST: 60,000 and 10,000 digits of 28x28 pixels."""
    return _load("mnist", "MNIST", DIGITS, request)


def load_fashion_mnist(request: Request) -> ImageSet:
    """Fashion-MNIST: 60,000 and 10,000 pieces of clothing of 28x28 pixels."""
    return _load("fashion-mnist", "FashionMNIST", CLOTHES, request)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 tensor in an idx file, which must have this many `dimensions`.

    Raises:
        DataError: the file cannot be read, is not such an idx file, or is damaged.
    """
    content = _read(path)
    head = 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path} is not an idx file of uint8 values in {dimensions} dimensions.")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    expected = math.prod(shape)
    if len(content) - head != expected:
        raise DataError(
            f"{path} is damaged: its shape {shape} needs {expected} bytes of values, "
            f"but it holds {len(content) - head}."
        )
    if expected == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(content, dtype=torch.uint8, offset=head).view(shape)


def _read(path: Path) -> bytearray:
    try:
        content = path.read_bytes()
        # Decided by the content, not by the name: some archives contain plain files named .gz.
        return bytearray(gzip.decompress(content) if content.startswith(_GZIP_MAGIC) else content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _load(name: str, torchvision_name: str, class_names: tuple[str, ...], request: Request) -> ImageSet:
    stem = _STEMS[request.split]
    files = f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"
    if request.data_dir is not None and (request.data_dir / request.split).is_dir():
        return _read_folder(name, class_names, request.data_dir / request.split, request)
    folder = request.data_dir or _downloaded(name, torchvision_name, files, request)
    paths = _find(name, torchvision_name, files, folder)
    images, labels = read_idx(paths[0], 3).unsqueeze(1), read_idx(paths[1], 1).long()
    return ImageSet(name, request.split, images, labels, class_names)


def _read_folder(name: str, class_names: tuple[str, ...], folder: Path, request: Request) -> ImageSet:
    """The images in the folders 0 to 9, which are the classes by number."""
    check_same_classes(DIGITS, folder)
    return replace(read_listing(name, list_folder(folder), 1, request), class_names=class_names)


def _find(name: str, torchvision_name: str, files: tuple[str, ...], folder: Path) -> list[Path]:
    candidates = [folder, folder / "raw", folder / torchvision_name / "raw"]
    for candidate in candidates:
        found = [path for file in files for path in _variants(candidate / file) if path.is_file()]
        if {path.name.removesuffix(".gz") for path in found} == set(files):
            return [next(path for path in found if path.name.startswith(file)) for file in files]
    places = ", ".join(map(str, candidates))
    raise DataError(
        f"{name} not found: looked for {' and '.join(files)}, plain or .gz, in {places}, and for the image folders "
        "train/0 to train/9 and test/0 to test/9."
    )


def _variants(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(f"{path.name}.gz")


def _downloaded(name: str, torchvision_name: str, files: tuple[str, ...], request: Request) -> Path:
    folder = cache_folder()
    try:
        _find(name, torchvision_name, files, folder)
    except DataError:
        from torchvision import datasets

        makers = {"MNIST": datasets.MNIST, "FashionMNIST": datasets.FashionMNIST}
        download(name, folder, lambda: makers[torchvision_name](str(folder), download=True), request)
    return folder
