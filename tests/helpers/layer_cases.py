"""Layers of every kind that has a bound rule, with the shape of one input."""

import torch
from torch import Generator, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.graph import Add, Normalize
from certtrain.bounds.shape_layers import Concat, Pad, Permute, Reshape, Slice
from helpers.activation_cases import CASES

# Layer and the shape of one input. Affine layers attain their bounds at a corner, the others at the two ends.
AFFINE = {
    "linear": (nn.Linear(5, 4), (5,)),
    "linear without bias": (nn.Linear(5, 4, bias=False), (5,)),
    "convolution": (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 5)),
    "grouped, dilated": (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, bias=False), (4, 4, 4)),
    "padded by name": (nn.Conv2d(1, 2, (1, 3), padding="same"), (1, 4, 3)),
    "batch norm": (nn.BatchNorm1d(4), (4,)),
    "batch norm of sequences": (nn.BatchNorm1d(4), (4, 3)),
    "batch norm without weights": (nn.BatchNorm1d(4, affine=False), (4,)),
    "batch norm of images": (nn.BatchNorm2d(2), (2, 3, 3)),
    "normalise": (Normalize((0.4, 0.6), (0.2, 3.0)), (2, 3, 3)),
    "normalise and mirror": (Normalize((0.4, 0.6), (-0.2, 3.0)), (2, 3, 3)),
    "average": (nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False), (2, 3, 3)),
    "adaptive average": (nn.AdaptiveAvgPool2d((2, 1)), (2, 3, 3)),
    "flatten": (nn.Flatten(), (2, 2, 2)),
    "flatten some": (nn.Flatten(2), (2, 2, 2)),
    "identity": (nn.Identity(), (5,)),
    "dropout": (nn.Dropout(0.5), (5,)),
    "sum": (Add(), (5,)),
    "side by side": (Concat(1), (5,)),
    "side by side in columns": (Concat(3), (2, 2, 3)),
    "reshaping": (Reshape((3, 4)), (2, 3, 2)),
    "other order": (Permute((3, 1, 2)), (2, 3, 4)),
    "padding of rows": (Pad(2, 1, 2), (2, 2, 3)),
    "padding of a vector": (Pad(1, 0, 2), (3,)),
    "padding by a number": (Pad(2, 1, 2, -0.7), (2, 2, 3)),
    "slice": (Slice(2, 1, 3), (2, 4, 2)),
    "slice with steps": (Slice(1, 0, 5, 2), (5,)),
}

MONOTONE = {name: (case.layer, (5,)) for name, case in CASES.items() if ACTIVATIONS[type(case.layer)].monotone} | {
    "maximum": (nn.MaxPool2d(2, stride=1, padding=1), (2, 3, 3)),
    "maximum, ceil": (nn.MaxPool2d(2, ceil_mode=True), (2, 3, 3)),
}

OTHERS = {name: (case.layer, (5,)) for name, case in CASES.items() if name not in MONOTONE}

ALL = AFFINE | MONOTONE | OTHERS


def ready(layer: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with weights and statistics that are neither zero nor one."""
    layer, generator = layer.double().eval(), Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.normal_(generator=generator)
        for name, tensor in layer.named_buffers():
            if name.startswith("running"):
                tensor.uniform_(0.5, 2.0, generator=generator)
    return layer
