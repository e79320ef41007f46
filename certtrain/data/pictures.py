"""A user's own pictures, as a network takes them: read, never resized or recoloured, and written."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from certtrain.data.decode import decode_file
from certtrain.data.listing import hidden
from certtrain.errors import DataError, StorageError

COUNTEREXAMPLE = "-counterexample"  # the end of the name of a picture that certtrain wrote
WRITER = ("Software", "certtrain")  # PNG's own key for the program that wrote a file


def list_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files, and those in the folders, by name, without the counterexamples that certtrain wrote there.

    A counterexample that is named itself stays, unless its picture is named too, as by *.png. Raises DataError if a
    folder has no image.
    """
    files = [file for path in paths for file in (_inside(path) if path.is_dir() else [path])]
    own = {counterexample_file(file) for file in files}
    return [file for file in files if not (file in own and is_own(file))]


def is_own(path: Path) -> bool:
    """Whether the file is a picture that certtrain wrote."""
    key, program = WRITER
    try:
        with Image.open(path) as image:
            return image.info.get(key) == program
    except OSError:  # no image, or no file
        return False


def _inside(folder: Path) -> list[Path]:
    formats = tuple(Image.registered_extensions())
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not hidden(path.name)]
    found = [path for path in files if path.suffix.lower() in formats and not path.stem.endswith(COUNTEREXAMPLE)]
    if not found:
        raise DataError(f"{folder} holds no images; --image takes image files, or a folder that has them inside")
    return found


def counterexample_file(picture: Path) -> Path:
    """Where the counterexample to a picture is written: beside it."""
    return picture.with_name(f"{picture.stem}{COUNTEREXAMPLE}.png")


def read_picture(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The picture as uint8 (C, H, W) of this shape.

    It must have the network's size: a certificate is about the pixels that the network sees, so nothing is resized. A
    grey picture may be stored in colour, and is taken as it is by a network for colours. Raises DataError.
    """
    channels, height, width = shape
    if not path.is_file():
        raise DataError(f"there is no image file {path}")
    pixels, _ = decode_file(path, "RGB")
    if pixels.shape[1:] != (height, width):
        raise DataError(
            f"{path} has {pixels.shape[2]}×{pixels.shape[1]} pixels, but the model takes {width}×{height}; nothing is "
            "resized here, since a certificate is about the very pixels of an image. Resize it first, for example with "
            f"ImageMagick: magick {path} -resize {width}x{height}! small.png"
        )
    if channels == 1 and not bool((pixels == pixels[:1]).all()):
        raise DataError(
            f"{path} is in colour, but the model takes greyscale images; convert it first, for example with "
            f"ImageMagick: magick {path} -colorspace Gray grey.png"
        )
    return pixels[:1] if channels == 1 else pixels


def write_picture(path: Path, pixels: Tensor) -> None:
    """Write uint8 pixels (C, H, W), with one channel or three, as a PNG file of certtrain's. Raises StorageError."""
    about = PngInfo()
    about.add_text(*WRITER)
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    try:
        Image.fromarray(array[:, :, 0] if len(pixels) == 1 else array).save(path, pnginfo=about)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def to_levels(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as uint8, each the nearest of 256 levels."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)
