"""How each layer is written in ONNX: by few, old and plain operators, which all tools read in the same way."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.forms import Operator
from certtrain.bounds.graph import Add, Normalize
from certtrain.bounds.shape_layers import Concat, Pad, Permute, Reshape, Slice
from certtrain.errors import UnsupportedLayer
from certtrain.spec.shapes import Shape


def operators_of(layer: nn.Module, given: Shape) -> list[Operator]:
    """The operators, one after the other, that compute the result of `layer` for an input of shape (B, *given).

    Raises UnsupportedLayer, without the layer's name, if there are none.
    """
    if type(layer) not in OPERATORS:
        known = ", ".join(sorted(layer.__name__ for layer in OPERATORS))
        raise UnsupportedLayer(f"it is a {type(layer).__name__}; only {known} can be exported")
    return OPERATORS[type(layer)](layer, given)


def _normalize(layer: Normalize, given: Shape) -> list[Operator]:
    """A difference and a 1×1 convolution.

    Some tools do not support Div, some support Sub only for equal shapes, and some no
    convolution with groups. So the mean is written for every pixel, and the
    convolution's matrix is full, with 1/std on its diagonal. It cannot be merged into
    the next layer, which pads with zeros after the normalisation.
    """
    mean = layer.mean.expand(given).unsqueeze(0).contiguous()
    scale = layer.std.double().reciprocal().to(layer.std.dtype).flatten()
    convolution = _conv_attributes((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    return [Operator("Sub", {"mean": mean}), Operator("Conv", {"scale": scale.diag()[..., None, None]}, convolution)]


def _conv2d(layer: nn.Conv2d, given: Shape) -> list[Operator]:
    if layer.padding_mode != "zeros":
        raise UnsupportedLayer(f"it pads by {layer.padding_mode!r}")
    attributes = _conv_attributes(layer.kernel_size, layer.stride, _conv_pads(layer), layer.dilation, layer.groups)
    return [Operator("Conv", {"weight": layer.weight, "bias": layer.bias}, attributes)]


def _conv_attributes(kernel: Shape, strides: Shape, pads: Shape, dilations: Shape, group: int) -> dict[str, Any]:
    return {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": group}


def _conv_pads(layer: nn.Conv2d) -> Shape:
    """The padding: rows above, columns at the left, rows below, columns at the right."""
    if not isinstance(layer.padding, str):
        return (*layer.padding, *layer.padding)
    wanted = [
        d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
    ]
    return (*(total // 2 for total in wanted), *(total - total // 2 for total in wanted))


def _linear(layer: nn.Linear, given: Shape) -> list[Operator]:
    if len(given) != 1:
        raise UnsupportedLayer(f"a linear layer needs flat inputs, but these have shape {given}")
    return [Operator("Gemm", {"weight": layer.weight, "bias": layer.bias}, {"transB": 1})]


def _flatten(layer: nn.Flatten, given: Shape) -> list[Operator]:
    start, end = layer.start_dim, layer.end_dim if layer.end_dim >= 0 else len(given) + 1 + layer.end_dim
    if (start, end) == (1, len(given)):
        return [Operator("Flatten", {}, {"axis": 1})]
    sizes = (0, *given[: start - 1], prod(given[start - 1 : end]), *given[end:])  # 0 keeps the batch's size
    return [Operator("Reshape", {"shape": torch.tensor(sizes)})]


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, given: Shape) -> list[Operator]:
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedLayer("it keeps no running statistics")
    ones = torch.ones_like(layer.running_mean)
    constants = {
        "scale": layer.weight if layer.affine else ones,
        "bias": layer.bias if layer.affine else ones - 1,
        "mean": layer.running_mean,
        "variance": layer.running_var,
    }
    return [Operator("BatchNormalization", constants, {"epsilon": layer.eps})]


class _Window(NamedTuple):
    """The window of a pooling layer, height and width each; `extra` is padding at the end only.

    With torch's `ceil_mode` a window may reach beyond the end. ONNX tools differ in
    this case, so the missing rows and columns are added as padding.
    """

    kernel: Shape
    stride: Shape
    padding: Shape
    extra: Shape

    @property
    def attributes(self) -> dict[str, Any]:
        end = (p + e for p, e in zip(self.padding, self.extra, strict=True))
        return {"kernel_shape": self.kernel, "strides": self.stride, "pads": (*self.padding, *end)}


def _window(layer: nn.MaxPool2d | nn.AvgPool2d, given: Shape, dilation: Shape = (1, 1)) -> _Window:
    kernel, stride, padding = _both(layer.kernel_size), _both(layer.stride), _both(layer.padding)
    extra: Shape = (0, 0)
    if layer.ceil_mode:
        sides = zip(given[-2:], kernel, stride, padding, dilation, strict=True)
        extra = tuple(beyond(*side) for side in sides)
    if any(p + e >= k for p, e, k in zip(padding, extra, kernel, strict=True)):
        raise UnsupportedLayer(f"{layer}: its windows reach so far beyond the end that one can contain only padding")
    return _Window(kernel, stride, padding, extra)


def beyond(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How far the last window of a pooling with `ceil_mode` reaches beyond the padding at the end."""
    reach = dilation * (kernel - 1) + 1
    windows = -(-(size + 2 * padding - reach) // stride) + 1
    if (windows - 1) * stride >= size + padding:  # a window must begin before the padding at the end
        windows -= 1
    return max((windows - 1) * stride + reach - size - 2 * padding, 0)


def _both(value: Any) -> Shape:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _max_pool(layer: nn.MaxPool2d, given: Shape) -> list[Operator]:
    dilation = _both(layer.dilation)
    return [Operator("MaxPool", {}, _window(layer, given, dilation).attributes | {"dilations": dilation})]


def _avg_pool(layer: nn.AvgPool2d, given: Shape) -> list[Operator]:
    window = _window(layer, given)
    if layer.divisor_override is not None:
        mean = Operator("AveragePool", {}, window.attributes | {"count_include_pad": 1})
        factor = window.kernel[0] * window.kernel[1] / layer.divisor_override
        return [mean, Operator("Mul", {"factor": torch.tensor(factor)})]
    counted = layer.count_include_pad and any(window.padding)
    if counted and any(window.extra):  # torch counts the padding, but nothing beyond it
        pads = torch.tensor([0, 0, *window.padding] * 2)
        rest = window._replace(padding=(0, 0))
        return [Operator("Pad", {"pads": pads}), Operator("AveragePool", {}, rest.attributes)]
    return [Operator("AveragePool", {}, window.attributes | {"count_include_pad": int(counted)})]


def _adaptive_avg_pool(layer: nn.AdaptiveAvgPool2d, given: Shape) -> list[Operator]:
    wanted = [
        size if size is not None else side for size, side in zip(_both(layer.output_size), given[-2:], strict=True)
    ]
    if any(side % size for side, size in zip(given[-2:], wanted, strict=True)):
        raise UnsupportedLayer(f"{layer}: {given[-2]}×{given[-1]} values are not a multiple of its output's")
    kernel = tuple(side // size for side, size in zip(given[-2:], wanted, strict=True))
    return [Operator("AveragePool", {}, {"kernel_shape": kernel, "strides": kernel})]


def _reshape(layer: Reshape, given: Shape) -> list[Operator]:
    return [Operator("Reshape", {"shape": torch.tensor([-1, *layer.shape])})]


def _permute(layer: Permute, given: Shape) -> list[Operator]:
    return [Operator("Transpose", {}, {"perm": (0, *layer.dims)})]


def _pad(layer: Pad, given: Shape) -> list[Operator]:
    pads = [[0] * (len(given) + 1) for _ in range(2)]
    pads[0][layer.dim], pads[1][layer.dim] = layer.before, layer.after
    number = {} if layer.value == 0 else {"value": torch.tensor(layer.value)}
    return [Operator("Pad", {"pads": torch.tensor([*pads[0], *pads[1]])} | number)]


def _slice(layer: Slice, given: Shape) -> list[Operator]:
    places = {"starts": layer.start, "ends": layer.stop, "axes": layer.dim, "steps": layer.step}
    return [Operator("Slice", {name: torch.tensor([number]) for name, number in places.items()})]


def _plain(name: str) -> Callable[[nn.Module, Shape], list[Operator]]:
    return lambda layer, given: [Operator(name)]


def _activation(write: Callable[[Any], list[Operator]]) -> Callable[[nn.Module, Shape], list[Operator]]:
    return lambda layer, given: write(layer)


OPERATORS: dict[type[nn.Module], Callable[..., list[Operator]]] = {
    Normalize: _normalize,
    nn.Conv2d: _conv2d,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool,
    nn.Flatten: _flatten,
    nn.Identity: _plain("Identity"),
    nn.Dropout: _plain("Identity"),
    **{layer: _activation(record.onnx.write) for layer, record in ACTIVATIONS.items()},
    Add: _plain("Add"),
    Concat: lambda layer, given: [Operator("Concat", {}, {"axis": layer.dim})],
    Reshape: _reshape,
    Permute: _permute,
    Pad: _pad,
    Slice: _slice,
}
