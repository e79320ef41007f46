"""The receptive field of a window of some layer's result.

A value after a few convolutions depends on a small part of the image. Linear
bounds of such values need Λ on this part only; elsewhere it is zero.
"""

from collections.abc import Callable, Iterator
from math import ceil, isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.box import Box
from certtrain.bounds.graph import Add, Normalize
from certtrain.bounds.interval import LayerRecord, Place
from certtrain.bounds.linear import Prefix, padding

View = Callable[[Tensor], Tensor]

# At most so many windows along each side of a layer, and at least about so many values to bound in each.
MOST_WINDOWS, VALUES_PER_WINDOW = 8, 32
POINTWISE = (nn.BatchNorm2d, Normalize, nn.Identity, nn.Dropout, Add, *ACTIVATIONS)


class Window(NamedTuple):
    """Rows top … bottom − 1 and columns left … right − 1 of images."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, images: Tensor) -> Tensor:
        """This part of images (…, H, W); a dimension of size 1, which is broadcast, stays as it is."""
        rows = slice(self.top, self.bottom) if images.shape[-2] > 1 else slice(None)
        return images[..., rows, slice(self.left, self.right) if images.shape[-1] > 1 else slice(None)]

    def of_box(self, box: Box) -> Box:
        """This part of the images of a box."""
        return Box(self.of(box.centre), self.of(box.radius))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    def union(self, other: "Window") -> "Window":
        """The smallest window that contains both."""
        top, left = min(self.top, other.top), min(self.left, other.left)
        return Window(top, max(self.bottom, other.bottom), left, max(self.right, other.right))


def prefixes_by_window(prefix: Prefix, chosen: Tensor) -> Iterator[tuple[View, Prefix]]:
    """Windows of the prefix's result that contain all `chosen` (B, …) values, each with its receptive field."""
    if chosen.dim() != 4 or not all(_is_local(record) for record in prefix.records):
        yield _all, prefix
        return
    side = min(MOST_WINDOWS, isqrt(int(chosen.flatten(1).sum(1).max()) // VALUES_PER_WINDOW))
    for window in _windows(chosen.shape[2], chosen.shape[3], max(side, 1)):
        if bool(window.of(chosen).any()):
            yield window.of, receptive_field(window, prefix)


def _is_local(record: LayerRecord) -> bool:
    """Whether a window of the result depends on one window of each input; inputs have equal shapes."""
    return isinstance(record.call.layer, (nn.Conv2d, *POINTWISE)) and len(set(record.shapes)) == 1


def _all(images: Tensor) -> Tensor:
    return images


def _windows(height: int, width: int, side: int) -> Iterator[Window]:
    rows, columns = ceil(height / side), ceil(width / side)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield Window(top, min(top + rows, height), left, min(left + columns, width))


def receptive_field(window: Window, prefix: Prefix) -> Prefix:
    """The part of `prefix` that `window` of its result depends on."""
    needed = {len(prefix.records): window}
    for number in reversed(range(len(prefix.records))):
        record = prefix.records[number]
        if (after := needed.get(number + 1)) is not None:
            before = _receptive_window(record, after)
            for value in record.call.inputs:
                needed[value] = needed[value].union(before) if value in needed else before
    records = [_cut(record, needed, number) for number, record in enumerate(prefix.records)]
    return Prefix(records, needed[0].of_box(prefix.start))


def _receptive_window(record: LayerRecord, after: Window) -> Window:
    """The window of a layer's input that the window `after` of its result depends on."""
    layer = record.call.layer
    if not isinstance(layer, nn.Conv2d):
        return after
    ends = []
    for axis, (low, high) in enumerate(((after.top, after.bottom), (after.left, after.right))):
        step, reach = layer.stride[axis], layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        size = record.shape[2 + axis]
        first = min(max(low * step - padding(layer)[axis], 0), size - 1)
        last = min(max((high - 1) * step - padding(layer)[axis] + reach, first), size - 1)
        ends += [first, last + 1]
    return Window(*ends)


def _cut(record: LayerRecord, needed: dict[int, Window], number: int) -> LayerRecord:
    """The record for the needed windows of a layer's inputs and result; unchanged where the result is not needed."""
    after = needed.get(number + 1)
    if after is None:
        return record
    before, layer = [needed[value] for value in record.call.inputs], record.call.layer
    convolves = isinstance(layer, nn.Conv2d)
    step, pad = (layer.stride, padding(layer)) if isinstance(layer, nn.Conv2d) else ((1, 1), (0, 0))
    starts = [(part.top - after.top * step[0] + pad[0], part.left - after.left * step[1] + pad[1]) for part in before]
    return record._replace(
        shapes=tuple(torch.Size((*record.shape[:2], *(part if convolves else after).size)) for part in before),
        result=torch.Size((*record.result[:2], *after.size)),
        box=None if record.box is None else after.of_box(record.box),
        rounding_error=None if record.rounding_error is None else after.of(record.rounding_error),
        places=tuple(Place(part.size, start) for part, start in zip(before, starts, strict=True)),
    )
