"""The shape of each layer's result for one image, computed from the layer's fields alone; without torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

from certtrain.errors import NetworkError
from certtrain.spec import layers
from certtrain.spec.activations import ACTIVATION_SECTIONS
from certtrain.spec.layer_section import LayerSection, by_type, pair
from certtrain.spec.layers import NETWORK_INPUT, Graph, SharedSection

Shape = tuple[int, ...]
ImageShape = tuple[int, int, int]  # channels, height, width

MOST_VALUES = 2**28  # in the result of a layer for one image, 1 GiB in float32; a hostile file may have more


def graph_shapes(graph: Graph, image: Shape) -> dict[str, Shape]:
    """The shape of each layer's result for images of shape (C, H, W), without the batch dimension.

    Raises NetworkError, which names the first layer that does not fit its inputs.
    """
    shapes: dict[str, Shape] = {NETWORK_INPUT: image}
    sections = {section.name: section for section in graph.layers}
    for section in graph.layers:
        rule_of = sections[section.layer] if isinstance(section, SharedSection) else section
        given = [shapes[name] for name in section.inputs]
        try:
            shapes[section.name] = SHAPE_RULES[type(rule_of)](rule_of, *given)
        except ValueError as error:
            what = " and ".join(map(str, given))
            raise NetworkError(f"layer {section.name!r} does not fit its input of shape {what}: {error}") from error
        if (size := prod(shapes[section.name])) > MOST_VALUES:
            raise NetworkError(
                f"layer {section.name!r} has {size:,} values for one image; at most {MOST_VALUES:,} are allowed"
            )
    return shapes


def _same(layer: LayerSection, given: Shape) -> Shape:
    return given


def _linear(layer: layers.LinearSection, given: Shape) -> Shape:
    _check(given[-1:] == (layer.in_features,), f"it takes {layer.in_features} features")
    return (*given[:-1], layer.out_features)


def _conv2d(layer: layers.Conv2dSection, given: Shape) -> Shape:
    _check_channels(given, layer.in_channels, 3)
    if layer.padding == "same":
        return (layer.out_channels, *given[1:])
    named: Any = layer.padding  # in torch's own layers it may be "valid" too
    padding = (0, 0) if named == "valid" else named
    sides = _sides(given[1:], layer.kernel_size, layer.stride, padding, layer.dilation)
    return (layer.out_channels, *(_windows(*side) for side in sides))


def _batch_norm1d(layer: layers.BatchNorm1dSection, given: Shape) -> Shape:
    _check_channels(given, layer.num_features, 1, 2)
    return given


def _batch_norm2d(layer: layers.BatchNorm2dSection, given: Shape) -> Shape:
    _check_channels(given, layer.num_features, 3)
    return given


def _normalize(layer: layers.NormalizeSection, given: Shape) -> Shape:
    _check(len(layer.mean) == len(layer.std), f"it has {len(layer.mean)} means and {len(layer.std)} deviations")
    _check_channels(given, len(layer.mean), 3)
    return given


def _max_pool(layer: layers.MaxPool2dSection, given: Shape) -> Shape:
    return _pool(layer, pair(layer.dilation), given)


def _avg_pool(layer: layers.AvgPool2dSection, given: Shape) -> Shape:
    return _pool(layer, (1, 1), given)


def _pool(layer: layers.MaxPool2dSection | layers.AvgPool2dSection, dilation: Shape, given: Shape) -> Shape:
    _check(len(given) == 3, "it takes images")
    kernel, padding = pair(layer.kernel_size), pair(layer.padding)
    stride = pair(layer.stride or layer.kernel_size)
    halves = _sides(padding, kernel)  # with dilation, torch allows more on some devices
    _check(all(2 * zeros <= size for zeros, size in halves), "its padding is more than half of its window")
    sides = _sides(given[1:], kernel, stride, padding, dilation)
    return (given[0], *(_windows(*side, ceil=layer.ceil_mode) for side in sides))


def _adaptive_avg_pool(layer: layers.AdaptiveAvgPool2dSection, given: Shape) -> Shape:
    _check(len(given) == 3, "it takes images")
    return (given[0], *(size or side for size, side in _sides(pair(layer.output_size), given[1:])))


def _flatten(layer: layers.FlattenSection, given: Shape) -> Shape:
    end = layer.end_dim if layer.end_dim >= 0 else len(given) + 1 + layer.end_dim
    start = layer.start_dim
    _check(start <= end <= len(given), f"there is no dimension {layer.end_dim} from {start} on")
    return (*given[: start - 1], prod(given[start - 1 : end]), *given[end:])


def _add(layer: layers.AddSection, left: Shape, right: Shape) -> Shape:
    """The shape of a sum, in which torch broadcasts sides of 1."""
    _check(
        len(left) == len(right) and all(a == b or 1 in (a, b) for a, b in zip(left, right, strict=True)),
        "their sides differ",
    )
    return tuple(b if a == 1 else a for a, b in zip(left, right, strict=True))


def _concat(layer: layers.ConcatSection, left: Shape, right: Shape) -> Shape:
    place = _place(layer.dim, left)
    _check(_without(left, place) == _without(right, place), "they differ in another dimension")
    return (*left[:place], left[place] + right[place], *left[place + 1 :])


def _without(shape: Shape, place: int) -> Shape:
    return shape[:place] + shape[place + 1 :]


def _reshape(layer: layers.ReshapeSection, given: Shape) -> Shape:
    _check(prod(layer.shape) == prod(given), f"it takes {prod(layer.shape)} values")
    return tuple(layer.shape)


def _permute(layer: layers.PermuteSection, given: Shape) -> Shape:
    places = [dim - 1 for dim in layer.dims]
    _check(sorted(places) == list(range(len(given))), f"{tuple(layer.dims)} is not a permutation of its dimensions")
    return tuple(given[place] for place in places)


def _pad(layer: layers.PadSection, given: Shape) -> Shape:
    place = _place(layer.dim, given)
    _check(min(layer.before, layer.after) >= 0, "its padding is negative")
    return (*given[:place], layer.before + given[place] + layer.after, *given[place + 1 :])


def _slice(layer: layers.SliceSection, given: Shape) -> Shape:
    place = _place(layer.dim, given)
    takes = f"it takes places {layer.start} to {layer.stop - 1} in steps of {layer.step}"
    _check(0 <= layer.start < layer.stop <= given[place] and layer.step >= 1, takes)
    return (*given[:place], len(range(layer.start, layer.stop, layer.step)), *given[place + 1 :])


def _place(dim: int, given: Shape) -> int:
    _check(1 <= dim <= len(given), f"there is no dimension {dim} from 1 on")
    return dim - 1


def _sides(*parts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The numbers of height and width, from pairs of them."""
    _check(all(len(part) == 2 for part in parts), "its window, stride, padding or dilation is not two numbers")
    return zip(*parts, strict=True)


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool = False) -> int:
    """The number of windows along one side; with `ceil` the last may reach beyond the end, but not begin there."""
    _check(min(kernel, stride, dilation) >= 1, "its window, stride or dilation is not above zero")
    _check(padding >= 0, "its padding is negative")
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-reach // stride) if ceil else reach // stride) + 1
    if ceil and (count - 1) * stride >= size + padding:
        count -= 1
    _check(count >= 1, "its window is larger than that")
    return count


def _check_channels(given: Shape, channels: int, *dimensions: int) -> None:
    _check(
        len(given) in dimensions and given[0] == channels, f"it takes {channels} channels in {dimensions[0]} dimensions"
    )


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


SHAPE_RULES: Mapping[type[LayerSection], Callable[..., Any]] = MappingProxyType(
    {
        layers.LinearSection: _linear,
        layers.Conv2dSection: _conv2d,
        layers.BatchNorm1dSection: _batch_norm1d,
        layers.BatchNorm2dSection: _batch_norm2d,
        layers.NormalizeSection: _normalize,
        layers.AvgPool2dSection: _avg_pool,
        layers.AdaptiveAvgPool2dSection: _adaptive_avg_pool,
        layers.MaxPool2dSection: _max_pool,
        layers.FlattenSection: _flatten,
        layers.IdentitySection: _same,
        layers.DropoutSection: _same,
        **dict.fromkeys(ACTIVATION_SECTIONS, _same),
        layers.AddSection: _add,
        layers.ConcatSection: _concat,
        layers.ReshapeSection: _reshape,
        layers.PermuteSection: _permute,
        layers.PadSection: _pad,
        layers.SliceSection: _slice,
    }
)

# The same rules by the layer's name. They work for torch's own layers too, which have the fields of their sections.
SHAPE_OF: dict[str, Callable[..., Shape]] = {
    name: SHAPE_RULES[section] for name, section in by_type(SHAPE_RULES).items()
}
