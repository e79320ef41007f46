"""A user's own pictures, as a network takes them: read, brought to its size and colours, and written."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from certtrain.data.counterexamples import WRITER, counterexample_file, is_counterexample, is_own
from certtrain.data.decode import decode_as_shown
from certtrain.data.listing import hidden
from certtrain.errors import DataError, StorageError

BRIGHT_ON_BLACK = ("digits", "mnist", "fashion-mnist")  # data sets of bright things on a black ground
MIDDLE_LEVEL = 127.5


def list_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files, and those in the folders, by name, without the counterexamples that certtrain wrote there.

    A counterexample that is named itself stays, unless its picture is named too, as by *.png. Raises DataError if a
    folder has no image.
    """
    files = [file for path in paths for file in (_inside(path) if path.is_dir() else [path])]
    own = {counterexample_file(file) for file in files}
    return [file for file in files if not (file in own and is_own(file))]


def _inside(folder: Path) -> list[Path]:
    formats = tuple(Image.registered_extensions())
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not hidden(path.name)]
    pictures = [path for path in files if path.suffix.lower() in formats]
    found = [path for path in pictures if not is_counterexample(path)]
    if not found:
        raise DataError(f"{folder} holds no images; --image takes image files, or a folder that has them inside")
    return found


class FittedPicture(NamedTuple):
    """A picture as a network takes it, uint8 (C, H, W), in words what was changed to make it so, and hints about it."""

    pixels: Tensor
    changes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def read_picture(path: Path, shape: tuple[int, int, int], *, invert: bool = False) -> FittedPicture:
    """The picture with pixels of this shape, (C, H, W), which are what a certificate is about.

    Transparent parts are on white, as programs show them. A network for grey images gets colours as grey levels, by the
    luma of ITU-R BT.601. Another size is brought to the network's by bilinear interpolation with antialiasing, the
    whole picture, so that other proportions are stretched. `invert` then turns each level v into 255 - v. What has the
    size and the colours already is taken as it is. Raises DataError.
    """
    if not path.is_file():
        raise DataError(f"there is no image file {path}")
    pixels, transparent = decode_as_shown(path)
    changes = ["transparent parts put on white"] * transparent
    if shape[0] == 1:
        coloured = not bool((pixels == pixels[:1]).all())
        pixels = _luma(pixels) if coloured else pixels[:1]
        changes += ["colours turned to grey (luma of ITU-R BT.601)"] * coloured
    if pixels.shape[1:] != shape[1:]:
        changes += _resizing((pixels.shape[1], pixels.shape[2]), shape[1:])
        pixels = _resized(pixels, shape[1:])
    if invert:
        pixels, changes = 255 - pixels, [*changes, "inverted"]
    return FittedPicture(pixels, tuple(changes))


def _luma(pixels: Tensor) -> Tensor:
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    grey: Tensor = pil_to_tensor(to_pil_image(pixels).convert("L"))
    return grey


def _resized(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    from torchvision.transforms.functional import InterpolationMode, resize

    resized: Tensor = resize(pixels, list(size), InterpolationMode.BILINEAR, antialias=True)
    return resized


def _resizing(old: tuple[int, int], new: tuple[int, int]) -> Iterator[str]:
    (height, width), (new_height, new_width) = old, new
    yield f"resized from {width}×{height} to {new_width}×{new_height} (bilinear, antialiased)"
    if height * new_width != width * new_height:
        yield "stretched, since its sides have other proportions"


def is_bright_where_data_are_dark(pixels: Tensor, dataset: str) -> bool:
    """Whether the border of uint8 pixels (C, H, W) is bright on the whole, and the images of the data set have black
    borders, so that the picture is probably dark on bright in place of bright on dark."""
    border = torch.ones(pixels.shape[1:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    return dataset in BRIGHT_ON_BLACK and float(pixels[:, border].float().mean()) > MIDDLE_LEVEL


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
