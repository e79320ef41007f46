"""Decoded image folders, saved in the cache folder so that they are decoded only once."""

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from certtrain.errors import StorageError
from certtrain.storage import write_atomic

_FORMAT = 2  # format 1 had images with 16 bits per channel reduced to 8


class CacheWarning(UserWarning):
    """Decoded images could not be saved; the next run decodes them again."""


def cache_folder() -> Path:
    """$CERTTRAIN_CACHE, else $XDG_CACHE_HOME/certtrain, else ~/.cache/certtrain."""
    if own := os.environ.get("CERTTRAIN_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "certtrain"
    return Path.home() / ".cache" / "certtrain"


def cache_path(root: Path, files: Sequence[str], channels: int | None) -> Path:
    """The cache file for the decoded `files` (relative to `root`, in this order).

    Its name is a hash of the folder's path, of every file's name, size and time of change, and of
    the number of channels: if any of them changes, there is no such cache file.

    Raises:
        OSError: one of the files is missing.
    """
    digest = hashlib.sha256(json.dumps([_FORMAT, str(root.resolve()), channels]).encode())
    for line in _descriptions(root, files):
        digest.update(line.encode())
    return cache_folder() / "images" / f"{digest.hexdigest()}.safetensors"


def read_cached(path: Path, count: int) -> Tensor | None:
    """The `count` images in the cache file `path`; None if it is missing or damaged."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    if tensors.keys() != {"images", "checksum"}:
        return None
    images = tensors["images"]
    # safetensors detects a truncated file, but not a flipped bit.
    whole = len(images) == count and torch.equal(tensors["checksum"], _checksum(images))
    return images if whole else None


def write_cached(path: Path, images: Tensor) -> None:
    """Save decoded images. If that fails, there is a CacheWarning and no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save({"images": images, "checksum": _checksum(images)}))
    except (OSError, StorageError) as error:
        warnings.warn(
            f"decoded images cannot be saved for the next run: {error} "
            f"Set CERTTRAIN_CACHE to a folder that can be written.",
            CacheWarning,
            stacklevel=2,
        )


def _descriptions(root: Path, files: Sequence[str]) -> Iterable[str]:
    for file in files:
        status = (root / file).stat()
        # A copy may keep the time of the original's last change (rsync -t), but not that of its own.
        yield json.dumps([file, status.st_size, status.st_mtime_ns, status.st_ctime_ns])


def _checksum(images: Tensor) -> Tensor:
    return torch.tensor([zlib.crc32(images.numpy().data)])
