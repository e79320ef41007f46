"""Files of plain weights, read without running anything in them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from certtrain.errors import ModelFileError
from certtrain.interchange.packed import ending
from certtrain.network.modelfile import check_header
from certtrain.spec.messages import readable
from certtrain.storage import check_model_file

GROUPS = ("state_dict", "model_state_dict", "model")  # where training scripts keep the weights in a checkpoint
PARALLEL = "module."  # which torch's DataParallel puts before each name


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors file, or in one of `torch.save`, which may keep them in a group of a checkpoint.

    Raises ModelFileError if the file is missing or damaged, or holds something other than tensors and plain values,
    which is never unpickled.
    """
    check_model_file(path)
    if ending(path) == ".safetensors":
        return _safetensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's errors for damaged files have no other common base
        raise ModelFileError(
            f"{path} is damaged, or holds more than tensors, and nothing of it was run{_wanted(error)}. "
            "Save the weights alone: torch.save(network.state_dict(), file)"
        ) from error
    return _tensors(path, found)


def _wanted(error: Exception) -> str:
    """What the file would have run, if torch names it; the rest of torch's words is advice to run it."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"; it asks for {readable(found[1])!r}" if found else ""


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        check_header(path)
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a complete safetensors file: {error}") from error


def _tensors(path: Path, found: Any) -> dict[str, Tensor]:
    if isinstance(found, Mapping):
        found = next((found[group] for group in GROUPS if isinstance(found.get(group), Mapping)), found)
    if not isinstance(found, Mapping) or not found:
        raise ModelFileError(f"{path} holds no state dict; save the weights: torch.save(network.state_dict(), file)")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelFileError(f"{path} holds no state dict: {str(name)[:100]!r} is not a tensor")
    prefix = PARALLEL if all(name.startswith(PARALLEL) for name in found) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}
