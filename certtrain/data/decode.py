"""Image files decoded to one uint8 tensor, by several threads: Pillow releases Python's lock while it decodes."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from torch import Tensor

from certtrain.data.request import Progress
from certtrain.errors import DataError

_GREY_MODES = frozenset({"1", "L", "LA"})
_CHUNK = 256
_OPAQUE = 255


def decode_files(paths: Sequence[Path], channels: int | None, report: Progress) -> Tensor:
    """Decode at least one file into uint8 (N,C,H,W), in the order given.

    C is `channels` (1 or 3); for None it is 1 if every image is greyscale, else 3. Transparency
    is dropped. `report` is called after every few hundred images.

    Raises:
        DataError: a file is unreadable, has more than 8 bits per channel, or has another size.
    """
    first, _ = decode_file(paths[0], "RGB")
    images = torch.empty(len(paths), 1 if channels == 1 else 3, *first.shape[1:], dtype=torch.uint8)
    all_grey = _decode_all(paths, images, report)
    return images[:, :1].contiguous() if channels is None and all_grey else images


def decode_file(path: Path, mode: str) -> tuple[Tensor, bool]:
    """One image as uint8 (C,H,W), in Pillow's mode L (C=1) or RGB (C=3), and whether it was greyscale.

    Raises:
        DataError: the file is unreadable or has more than 8 bits per channel.
    """
    from torchvision.transforms.functional import pil_to_tensor

    with _opened(path) as image:
        return pil_to_tensor(image.convert(mode)), image.mode in _GREY_MODES


def decode_as_shown(path: Path) -> tuple[Tensor, bool]:
    """One image as programs show it, uint8 (3,H,W), and whether parts of it are transparent, which are on white.

    It is turned as its EXIF data say. Raises DataError as `decode_file`.
    """
    from torchvision.transforms.functional import pil_to_tensor

    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        whole = upright.convert("RGBA")
        transparent = whole.getchannel("A").getextrema()[0] != _OPAQUE
        if transparent:
            whole = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
        return pil_to_tensor(whole.convert("RGB")), transparent


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    try:
        with Image.open(path) as image:
            _refuse_deep(path, image)
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _refuse_deep(path: Path, image: ImageFile) -> None:
    # Pillow would clip such grey levels at 255, and reduce such colours to 8 bits, without a warning.
    if image.mode.startswith(("I", "F")) or any(map(_is_deep, image.tile)):
        raise DataError(f"{path} has more than 8 bits per channel; convert it to 8.")


def _is_deep(tile: Any) -> bool:
    """Whether a part of a file has more than 8 bits per channel, by the arguments of Pillow's decoder for it.

    These are a raw mode like RGB;16B or, for the PPM formats, the largest level.
    """
    arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    deep = any(isinstance(word, str) and re.search(r";16[BLN]", word) for word in arguments)
    return deep or (tile[0].startswith("ppm") and any(isinstance(word, int) and word > 255 for word in arguments))


def _decode_all(paths: Sequence[Path], images: Tensor, report: Progress) -> bool:
    mode = "L" if images.shape[1] == 1 else "RGB"

    def decode_chunk(start: int) -> bool:
        stop = min(start + _CHUNK, len(paths))
        greys = [_decode_into(images[i], paths[i], mode, paths[0]) for i in range(start, stop)]
        return all(greys)

    pool = ThreadPoolExecutor()
    try:
        all_grey = True
        for number, grey in enumerate(pool.map(decode_chunk, range(0, len(paths), _CHUNK)), start=1):
            all_grey = all_grey and grey
            report("decoding images", min(number * _CHUNK, len(paths)), len(paths))
        return all_grey
    finally:
        # After an error, or Ctrl-C, do not decode the remaining files.
        pool.shutdown(cancel_futures=True)


def _decode_into(target: Tensor, path: Path, mode: str, first: Path) -> bool:
    pixels, grey = decode_file(path, mode)
    if pixels.shape != target.shape:
        raise DataError(
            f"{path} is {_size(pixels)} pixels, but {_size(target)} is expected, the size of {first}; "
            f"all images of a split must have the same size, so resize them first."
        )
    target.copy_(pixels)
    return grey


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
