"""Searches in inference mode: they need gradients, which inference mode and the tensors made in it do not have."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leave inference mode, if it is on, for one without gradients in which a search may switch them on."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def plain_tensor(x: Tensor) -> Tensor:
    """`x`, or a copy of it that gradients may pass through if it was made in inference mode."""
    return x.clone() if x.is_inference() else x


def plain_model(model: Module) -> Module:
    """`model`, or a copy of it if any of its tensors was made in inference mode."""
    made = any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers()))
    return copy.deepcopy(model) if made else model
