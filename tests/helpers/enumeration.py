"""The true minimum of a tiny ReLU network over a box, by going through all activation patterns.

In each pattern the network is affine on a polytope, and its least value is at a vertex: where as many of the units'
hyperplanes and the box's faces meet as there are inputs. All of them are tried. No solver takes part.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
NEAR = 1e-12  # what a vertex may be outside its polytope, by rounding


class Least(NamedTuple):
    """The least value, and the input where it is."""

    value: float
    point: Array


def least(layers: nn.Sequential, function: Array, lower: Array, upper: Array) -> Least:
    """The minimum of function · y + its last entry over the box, of linear layers with ReLUs between."""
    weights = [
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in layers
        if isinstance(layer, nn.Linear)
    ]
    found = [_in_pattern(weights, pattern, function, lower, upper) for pattern in _patterns(weights)]
    return min((one for one in found if one is not None), key=lambda one: one.value)


def _patterns(weights: list[tuple[Array, Array]]) -> Iterator[list[Array]]:
    sizes = [len(bias) for _, bias in weights[:-1]]
    for bits in product((0.0, 1.0), repeat=sum(sizes)):
        yield np.split(np.array(bits), np.cumsum(sizes)[:-1])


def _in_pattern(
    weights: list[tuple[Array, Array]], pattern: list[Array], function: Array, lower: Array, upper: Array
) -> Least | None:
    """Over the inputs that switch the units as `pattern` says; None if there are none."""
    count = len(lower)
    matrix, constant = np.eye(count), np.zeros(count)
    rows, ends = [np.eye(count), -np.eye(count)], [-lower, upper]
    for (weight, bias), active in zip(weights, [*pattern, None], strict=True):
        matrix, constant = weight @ matrix, weight @ constant + bias
        if active is not None:
            sign = 2 * active - 1
            rows.append(sign[:, None] * matrix)
            ends.append(sign * constant)
            matrix, constant = active[:, None] * matrix, active * constant
    inside, offset = np.concatenate(rows), np.concatenate(ends)  # the polytope is inside · x + offset ≥ 0
    chosen = np.array(list(combinations(range(len(inside)), count)))
    systems, sides = inside[chosen], -offset[chosen]
    regular = np.abs(np.linalg.det(systems)) > 1e-12
    vertices = np.linalg.solve(systems[regular], sides[regular][..., None])[..., 0]
    vertices = vertices[(vertices @ inside.T + offset >= -NEAR).all(1)]
    if not len(vertices):
        return None
    values = vertices @ (function[:-1] @ matrix) + function[:-1] @ constant + function[-1]
    return Least(float(values.min()), vertices[values.argmin()])


def random_network(generator: torch.Generator, inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLUs between, in float64, their weights and biases standard normal."""
    sizes, layers = (inputs, *hidden, outputs), list[nn.Module]()
    for fan_in, size in pairwise(sizes):
        layer = nn.Linear(fan_in, size).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()
