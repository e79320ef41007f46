"""Layers, networks and boxes in exact rational arithmetic; roots and exponentials to sixty digits."""

import copy
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.graph import Add, LayerGraph, Normalize
from certtrain.bounds.shape_layers import REARRANGING, Concat, Pad, Permute, Reshape, Slice
from helpers.activation_cases import ACTIVATED
from helpers.exact_functions import root

Exact = Any  # an array of Fractions, in the shape of one example's values
LINEAR = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
SAME = (nn.Flatten, nn.Identity, nn.Dropout)


def exact(values: Tensor) -> Exact:
    """The floating-point `values`, each as the fraction that it is."""
    found = np.empty(values.numel(), dtype=object)
    found[:] = [Fraction(value) for value in values.detach().double().flatten().tolist()]
    return found.reshape(tuple(values.shape))


def is_affine(layer: nn.Module) -> bool:
    return isinstance(layer, (*LINEAR, nn.BatchNorm1d, nn.BatchNorm2d, Normalize))


@cache
def affine(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Exact, Exact, tuple[int, ...]]:
    """The matrix (out, in) and the constant (out,) of an affine layer for inputs of `shape`; the result's shape.

    Computed once for a layer, which must not change after that.
    """
    if not isinstance(layer, LINEAR):
        scale, shift = _by_channel(layer, shape)
        matrix = np.full((scale.size, scale.size), Fraction(0), dtype=object)
        np.fill_diagonal(matrix, scale)
        return matrix, shift, shape
    plain, size = copy.deepcopy(layer).double(), int(np.prod(shape))
    constant = torch.zeros(1, dtype=torch.float64)
    if isinstance(plain, (nn.Linear, nn.Conv2d)) and plain.bias is not None:
        constant, plain.bias = plain.bias.detach(), None
    columns = plain(torch.eye(size, dtype=torch.float64).view(size, *shape)).detach()
    matrix = exact(columns.flatten(1).T)
    if isinstance(layer, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):  # its weights are 1/n, which float64 has rounded
        matrix = np.vectorize(lambda w: Fraction(1, round(1 / w)) if w else Fraction(0), otypes=[object])(matrix)
    out = tuple(columns.shape[1:])
    constant = constant.view(-1, *[1] * (len(out) - 1)) if isinstance(layer, nn.Conv2d) else constant
    return matrix, exact(constant.expand(out)).flatten(), out


def _by_channel(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Exact, Exact]:
    if isinstance(layer, Normalize):
        mean, std = exact(layer.mean.flatten()), exact(layer.std.flatten())
        scale, shift = 1 / std, -mean / std
    else:
        assert isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))
        scale = np.array([1 / root(v + Fraction(layer.eps)) for v in exact(layer.running_var)], dtype=object)
        scale = scale * exact(layer.weight) if layer.affine else scale
        shift = -exact(layer.running_mean) * scale + (exact(layer.bias) if layer.affine else 0)
    each = int(np.prod(shape[1:]))
    return scale.repeat(each), shift.repeat(each)


def activated(layer: nn.Module, x: Exact) -> Exact:
    """An activation's result."""
    return np.vectorize(lambda v: ACTIVATED[type(layer)].exactly(layer, v), otypes=[object])(x)


def _max_pool(layer: nn.MaxPool2d, x: Exact) -> Exact:
    channels, height, width = x.shape
    places = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
    windows = F.unfold(places, layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0].long().T.tolist()
    rows = [[max(image[n - 1] for n in window if n) for window in windows] for image in x.reshape(channels, -1)]
    shape = layer(torch.zeros(x.shape)).shape
    return np.array(rows, dtype=object).reshape(tuple(shape))


def moved(layer: nn.Module, x: Exact, *others: Exact) -> Exact:
    """The result of a layer that moves values, as numpy moves them."""
    if isinstance(layer, Concat):
        return np.concatenate([x, *others], layer.dim - 1)
    if isinstance(layer, Permute):
        return x.transpose([dim - 1 for dim in layer.dims])
    if isinstance(layer, Reshape):
        return x.reshape(layer.shape)
    if isinstance(layer, Slice):
        return x.take(range(layer.start, layer.stop, layer.step), layer.dim - 1)
    assert isinstance(layer, Pad)
    counts = [(layer.before, layer.after) if dim == layer.dim else (0, 0) for dim in range(1, x.ndim + 1)]
    return np.pad(x, counts, constant_values=Fraction(layer.value))


def result(layer: nn.Module, *inputs: Exact) -> Exact:
    """One example's result of `layer`, exactly."""
    x = inputs[0]
    if isinstance(layer, Add):
        return x + inputs[1]
    if isinstance(layer, REARRANGING):
        return moved(layer, *inputs)
    if isinstance(layer, SAME):
        return x.reshape(tuple(layer(torch.zeros(1, *x.shape)).shape[1:]))
    if is_affine(layer):
        matrix, constant, shape = affine(layer, x.shape)
        return (matrix.dot(x.flatten()) + constant).reshape(shape)
    return _max_pool(layer, x) if isinstance(layer, nn.MaxPool2d) else activated(layer, x)


def network(graph: LayerGraph, x: Exact) -> Exact:
    """The network's logits for one example."""
    values = [x]
    for call in graph.calls:
        values.append(result(call.layer, *(values[i] for i in call.inputs)))
    return values[-1]


def boxes(graph: LayerGraph, lower: Exact, upper: Exact) -> list[tuple[Exact, Exact]]:
    """Interval bounds of the input and of each call's result."""
    values = [(lower, upper)]
    for call in graph.calls:
        ends = [values[i] for i in call.inputs]
        if not is_affine(call.layer):
            values.append(tuple(result(call.layer, *end) for end in zip(*ends, strict=True)))
            continue
        (low, high), (matrix, constant, shape) = ends[0], affine(call.layer, ends[0][0].shape)
        centre = matrix.dot((low + high).flatten()) / 2 + constant
        radius = abs(matrix).dot((high - low).flatten()) / 2
        values.append(((centre - radius).reshape(shape), (centre + radius).reshape(shape)))
    return values
