"""Gradients for callers in inference mode, where PyTorch records none."""

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
    """Leave inference mode, if it is on, for `no_grad`, in which gradients can be enabled again."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def plain_tensor(x: Tensor) -> Tensor:
    """`x`; if it was made in inference mode, a copy that gradients can pass through."""
    return x.clone() if x.is_inference() else x


def plain_model(model: Module) -> Module:
    """`model`; if any of its tensors was made in inference mode, a copy."""
    made = any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers()))
    return copy.deepcopy(model) if made else model
