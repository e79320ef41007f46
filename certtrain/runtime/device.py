"""The device on which to compute."""

from itertools import chain

import torch
from torch import nn

from certtrain.errors import DeviceError


def choose_device(name: str) -> str:
    """ "cpu" or "cuda", for "auto", "cpu" or "cuda"; "auto" takes a GPU if there is one.

    Raises DeviceError for "cuda" if there is no GPU.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device, or this torch cannot use it; try --device cpu")
    return name


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters, or else of its buffers; the CPU for a model without either."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
