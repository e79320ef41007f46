"""Interval bound propagation: one pass carries the clean batch and its box together.

A box is kept as centre and radius.

Affine layer: c' = Wc + b, r' = |W| r (Gowal et al. 2018, eq. 6 to 8).
Monotone layer: applied to both ends of the interval.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.graph import Add, LayerCall, LayerGraph, Normalize, trace_layers
from certtrain.errors import UnsupportedLayer

Pointwise = Callable[[Tensor], Tensor]


class Box(NamedTuple):
    """A batch of boxes and, where it is wanted, the clean batch inside them; (B, …) each, radius not negative."""

    centre: Tensor
    radius: Tensor
    clean: Tensor | None = None

    @property
    def lower(self) -> Tensor:
        return self.centre - self.radius

    @property
    def upper(self) -> Tensor:
        return self.centre + self.radius

    def through(self, points: Pointwise, radius: Pointwise) -> "Box":
        """The box after a layer that maps centre and clean batch by `points`, and radius by `radius`."""
        clean = None if self.clean is None else points(self.clean)
        return Box(points(self.centre), radius(self.radius), clean)


def input_box(x: Tensor, eps: float | Tensor, clip: tuple[float, float] | None, *, with_clean: bool) -> Box:
    """The box [x − ε, x + ε] ∩ clip around each of `x` (B, …)."""
    lower, upper = x - eps, x + eps
    if clip is not None:
        lower, upper = lower.clamp(*clip), upper.clamp(*clip)
    return Box((lower + upper) / 2, (upper - lower) / 2, x if with_clean else None)


class Passed(NamedTuple):
    """What a pass leaves behind: the output's box, the head's input, and what was watched."""

    output: Box
    head_input: Box
    watched: list[tuple[str, Box]]


def interval_pass(graph: LayerGraph, box: Box, *, watch: tuple[type[nn.Module], ...] = ()) -> Passed:
    """Carry `box` through the network; `watch` names layer types whose input boxes are kept, in order.

    In training mode BatchNorm takes the clean batch's statistics for all that
    the box carries, and updates its running statistics once.
    """
    values = {0: box}
    watched: list[tuple[str, Box]] = []
    inputs: tuple[Box, ...] = ()
    for number, (call, done) in enumerate(zip(graph.calls, graph.last_uses, strict=True)):
        inputs = tuple(values[i] for i in call.inputs)
        if isinstance(call.layer, watch):
            watched.append((call.name, inputs[0]))
        values[number + 1] = RULES[type(call.layer)](call.layer, *inputs)
        for value in done:
            del values[value]
    return Passed(values[len(graph.calls)], inputs[0], watched)


def boundable(model: nn.Module) -> LayerGraph:
    """The layers of `model`, each of them known to have a rule.

    Raises UnsupportedLayer that names the first layer without one.
    """
    if model._forward_hooks or model._forward_pre_hooks:
        raise UnsupportedLayer(f"{type(model).__name__} has a forward hook, which bounds cannot follow; remove it")
    graph = trace_layers(model)
    for call in graph.calls:
        _check(call)
    return graph


def _check(call: LayerCall) -> None:
    if type(call.layer) not in RULES:
        raise UnsupportedLayer(
            f"layer {call.name!r} is a {type(call.layer).__name__}, for which there is no bound rule. "
            f"Layers that can be bounded: {', '.join(sorted(t.__name__ for t in RULES))}."
        )
    if call.layer._forward_hooks or call.layer._forward_pre_hooks:
        raise UnsupportedLayer(f"layer {call.name!r} has a forward hook, which bounds cannot follow; remove it")
    if isinstance(call.layer, nn.AvgPool2d) and (call.layer.divisor_override or 1) < 0:
        raise UnsupportedLayer(f"layer {call.name!r} has a negative divisor, so it is no average")
    if isinstance(call.layer, nn.Conv2d) and call.layer.padding_mode != "zeros":
        raise UnsupportedLayer(f"layer {call.name!r} pads by {call.layer.padding_mode!r}; only 'zeros' has a rule")
    if isinstance(call.layer, nn.MaxPool2d) and call.layer.return_indices:
        raise UnsupportedLayer(f"layer {call.name!r} returns indices; use return_indices=False")
    if isinstance(call.layer, nn.Flatten) and call.layer.start_dim != 1:
        raise UnsupportedLayer(f"layer {call.name!r} flattens the batch; use start_dim=1")
    if isinstance(call.layer, nn.LeakyReLU) and call.layer.negative_slope < 0:
        raise UnsupportedLayer(f"layer {call.name!r} has a negative slope, so it is not monotone")


# --- the rules -------------------------------------------------------------------------------------------


def _linear(layer: nn.Linear, box: Box) -> Box:
    weight = layer.weight.abs()
    return box.through(layer, lambda radius: F.linear(radius, weight))


def _conv2d(layer: nn.Conv2d, box: Box) -> Box:
    def on_radius(radius: Tensor) -> Tensor:
        weight = layer.weight.abs()
        return F.conv2d(radius, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    return box.through(layer, on_radius)


def _normalize(layer: Normalize, box: Box) -> Box:
    return box.through(layer, lambda radius: radius / layer.std.abs())


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, box: Box) -> Box:
    """x ↦ (x − mean) / √(var + e) · weight + bias, with the clean batch's mean and biased variance in training."""
    mean, variance = _batch_statistics(layer, box) if layer.training else _running_statistics(layer)
    scale = torch.rsqrt(variance + layer.eps)
    if layer.affine:
        scale = scale * layer.weight
    shift = layer.bias - mean * scale if layer.affine else -mean * scale
    shape = (1, -1) + (1,) * (box.radius.dim() - 2)
    scale, shift = scale.view(shape), shift.view(shape)
    return box.through(lambda points: torch.addcmul(shift, points, scale), lambda radius: radius * scale.abs())


def _batch_statistics(layer: nn.BatchNorm1d | nn.BatchNorm2d, box: Box) -> tuple[Tensor, Tensor]:
    clean = box.centre if box.clean is None else box.clean
    dims = [d for d in range(clean.dim()) if d != 1]
    count = clean.numel() // clean.shape[1]
    if count < 2:
        raise UnsupportedLayer(f"{layer} cannot take the variance of one value: use batches of two or more")
    variance, mean = torch.var_mean(clean, dims, correction=0)
    _update_running_statistics(layer, mean.detach(), variance.detach() * (count / (count - 1)))
    return mean, variance


@torch.no_grad()
def _update_running_statistics(layer: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return
    layer.num_batches_tracked += 1
    weight = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), weight)
    layer.running_var.lerp_(variance.to(layer.running_var.dtype), weight)


def _running_statistics(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedLayer(f"{layer} keeps no running statistics, so its bounds would depend on the batch")
    return layer.running_mean, layer.running_var


def _monotone(layer: Pointwise, box: Box) -> Box:
    """A layer that never falls when an input rises: it maps ends to ends."""
    lower, upper = layer(box.lower), layer(box.upper)
    clean = None if box.clean is None else layer(box.clean)
    return Box((lower + upper) / 2, (upper - lower) / 2, clean)


def _relu(layer: nn.ReLU, box: Box) -> Box:
    return _monotone(torch.relu, box)  # never in place: the box is kept for the regularisers


def _leaky_relu(layer: nn.LeakyReLU, box: Box) -> Box:
    return _monotone(lambda x: F.leaky_relu(x, layer.negative_slope), box)


def _averaging(layer: nn.Module, box: Box) -> Box:
    """A linear layer whose weights are not negative, so that |W| is W."""
    return box.through(layer, layer)


def _add(layer: Add, left: Box, right: Box) -> Box:
    clean = None if left.clean is None or right.clean is None else left.clean + right.clean
    return Box(left.centre + right.centre, left.radius + right.radius, clean)


def _dropout(layer: nn.Dropout, box: Box) -> Box:
    if layer.training and layer.p > 0:
        raise UnsupportedLayer(f"{layer} is random in training; bounds need p = 0 or evaluation mode")
    return box


Rule = Callable[..., Box]

# Layer → rule, by exact type: a subclass may compute something else.
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Normalize: _normalize,
    nn.AvgPool2d: _averaging,
    nn.AdaptiveAvgPool2d: _averaging,
    nn.Flatten: _averaging,
    nn.Identity: _averaging,
    nn.Dropout: _dropout,
    Add: _add,
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Sigmoid: _monotone,
    nn.Tanh: _monotone,
    nn.MaxPool2d: _monotone,
}
