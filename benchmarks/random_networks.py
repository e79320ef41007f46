"""Random networks with all supported layers, for `soundness.py`.

A network is a list of steps. Each takes one or two earlier values, mostly the last one, and applies a layer, a
function, an earlier layer again, a sum or a concatenation; the two values of a sum may be broadcast. Everything is
determined by the seed.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import gcd, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from certtrain.bounds.activations.clamps import Clamp
from certtrain.bounds.graph import Normalize
from certtrain.bounds.shape_layers import Concat, Pad, Permute, Reshape, Slice

Shape = tuple[int, ...]
Operation = Callable[..., Tensor]
WEIGHTED = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)
LARGEST, LAYERS = 160, (2, 9)
"""The largest number of entries of a value, and the smallest and largest number of steps of a network."""


class RandomNetwork(nn.Module):
    """A network of steps. Each applies its operation to earlier values; value 0 is the input (B, …)."""

    def __init__(self, steps: list[tuple[Operation, tuple[int, ...]]]) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(dict.fromkeys(op for op, _ in steps if isinstance(op, nn.Module)))
        # A copy of the network must use its own layers, so the steps refer to them by their indices.
        self.places = [list(self.layers).index(op) if isinstance(op, nn.Module) else op for op, _ in steps]

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for place, (_, inputs) in zip(self.places, self.steps, strict=True):
            operation = self.layers[place] if isinstance(place, int) else place
            values.append(operation(*(values[i] for i in inputs)))
        return values[-1]


@dataclass
class NetworkBuilder:
    """A network that is being built: its random numbers, the shapes of its values, and its steps."""

    seed: int
    image: Shape = ()
    shapes: list[Shape] = field(default_factory=list)
    steps: list[tuple[Operation, tuple[int, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        sides = (self.random.randint(1, 3), self.random.randint(1, 7), self.random.randint(1, 7))
        self.image = sides if self.random.random() < 0.85 else (self.random.randint(1, 6),)
        self.shapes = [self.image]

    def add(self, operation: Operation, *inputs: int) -> int:
        """Append a step, and return the number of its value."""
        with torch.no_grad():
            given = [torch.zeros(2, *self.shapes[i]) for i in inputs]
            training = isinstance(operation, nn.Module) and operation.training
            result = operation.eval()(*given) if training else operation(*given)
        self.steps.append((operation, inputs))
        self.shapes.append(tuple(result.shape[1:]))
        return len(self.shapes) - 1


def draw_network(seed: int) -> tuple[RandomNetwork, Shape]:
    """A network in evaluation mode, and the shape of one input."""
    draw = NetworkBuilder(seed)
    if len(draw.image) == 3 and draw.random.random() < 0.4:
        draw.add(_normalize(draw, draw.image), 0)
    for _ in range(draw.random.randint(*LAYERS)):
        add_step(draw)
    add_logits(draw)
    network = RandomNetwork(draw.steps)
    set_weights(network, seed)
    return network.eval(), draw.image


def add_step(draw: NetworkBuilder) -> None:
    """Add a layer, an earlier layer again, a residual sum, or a concatenation."""
    chance, last = draw.random.random(), len(draw.shapes) - 1
    value = last if draw.random.random() < 0.9 else draw.random.randint(0, last)
    if chance < 0.22:
        add_sum(draw, value)
    elif chance < 0.30:
        add_shared(draw, value)
    elif chance < 0.36:
        add_concat(draw, value)
    else:
        add_layer(draw, value)


def add_layer(draw: NetworkBuilder, value: int) -> int:
    """Add a layer on the value; draw another one if its result is too large."""
    shape = draw.shapes[value]
    makers = IMAGES if len(shape) == 3 else OTHERS
    for _ in range(20):
        operation = draw.random.choice(makers)(draw, shape)
        try:
            result = operation(torch.zeros(2, *shape))
            # An average that does not count padding is 0/0 if its window contains nothing but padding.
            size = prod(result.shape[1:]) if bool(result.isfinite().all()) else 0
        except (RuntimeError, ValueError):  # a window larger than the image, or too much padding for an average
            continue
        if 0 < size <= LARGEST:
            return draw.add(operation, value)
    return draw.add(nn.ReLU(), value)


def add_sum(draw: NetworkBuilder, value: int) -> None:
    """Add the sum of the value and itself, an earlier value that fits, or a smaller one that is computed from it."""
    shape = draw.shapes[value]
    fitting = [i for i, other in enumerate(draw.shapes) if i != value and broadcasts(other, shape)]
    chance = draw.random.random()
    if chance < 0.1:
        other = value
    elif fitting and chance < 0.6:
        other = draw.random.choice(fitting)
    else:
        other = draw.add(reduced(draw, shape), value)
    draw.add(torch.add, *draw.random.sample([value, other], 2))


def add_concat(draw: NetworkBuilder, value: int) -> None:
    """Add the concatenation of the value and one of the same shape, which may be itself."""
    shape = draw.shapes[value]
    alike = [i for i, other in enumerate(draw.shapes) if other == shape]
    if 2 * prod(shape) <= LARGEST:
        draw.add(Concat(draw.random.randint(1, len(shape))), value, draw.random.choice(alike))
    else:
        add_layer(draw, value)


def broadcasts(left: Shape, right: Shape) -> bool:
    """Whether the sum of values of both shapes is defined, and not too large."""
    fit = len(left) == len(right) and all(a == b or 1 in (a, b) for a, b in zip(left, right, strict=True))
    return fit and prod(map(max, left, right)) <= LARGEST


def reduced(draw: NetworkBuilder, shape: Shape) -> Operation:
    """A layer whose result has sides of 1 where those of its input are larger."""
    if len(shape) == 3:
        pools = [nn.AdaptiveAvgPool2d(size) for size in (1, (1, None), (None, 1))]
        return draw.random.choice([*pools, nn.Conv2d(shape[0], 1, 1)])
    return nn.Linear(shape[-1], 1)


def add_shared(draw: NetworkBuilder, value: int) -> None:
    """Add an earlier layer with weights again, on a value of the same shape as its input."""
    shared = [(op, draw.shapes[inputs[0]]) for op, inputs in draw.steps if isinstance(op, WEIGHTED)]
    options = [(op, i) for op, taken in shared for i, shape in enumerate(draw.shapes) if shape == taken]
    if options:
        draw.add(*draw.random.choice(options))
    else:
        add_layer(draw, value)


def add_logits(draw: NetworkBuilder) -> None:
    """Add the layers to the logits, mostly two to four from a linear layer."""
    last = len(draw.shapes) - 1
    if len(draw.shapes[last]) > 1:
        last = draw.add(draw.random.choice([nn.Flatten(), _flatten]), last)
    (size,) = draw.shapes[last]
    if not 2 <= size <= 6 or draw.random.random() < 0.6:
        draw.add(nn.Linear(size, draw.random.randint(2, 4), bias=draw.random.random() < 0.8), last)


def set_weights(network: nn.Module, seed: int) -> None:
    """Draw weights that keep values at the order of 1, and statistics that are neither zero nor one."""
    generator = Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.2, 2.0, generator=generator)
        elif tensor.is_floating_point() and not name.endswith((".mean", ".std")):
            scale = max(1.0, tensor[0].numel() ** 0.5) if tensor.dim() > 1 else 2.0
            tensor.normal_(generator=generator).mul_(1.5 / scale)


def describe(network: RandomNetwork) -> str:
    """The steps in words."""
    lines = []
    for number, (operation, inputs) in enumerate(network.steps, start=1):
        title = str(operation) if isinstance(operation, nn.Module) else getattr(operation, "__name__", str(operation))
        lines.append(f"{number}: {title} of {', '.join(map(str, inputs))}")
    return "; ".join(lines)


# --- the layers ------------------------------------------------------------------------------------------


def _normalize(draw: NetworkBuilder, shape: Shape) -> Operation:
    mean = tuple(draw.random.uniform(0.2, 0.6) for _ in range(shape[0]))
    return Normalize(mean, tuple(draw.random.uniform(0.2, 1.5) for _ in range(shape[0])))


def _conv2d(draw: NetworkBuilder, shape: Shape) -> Operation:
    pick, channels = draw.random.choice, draw.random.randint(1, 4)
    groups = pick([1, 1, gcd(shape[0], channels)])
    kernel, dilation = (pick([1, 2, 3]), pick([1, 2, 3])), (pick([1, 1, 2]), pick([1, 1, 2, 3]))
    if draw.random.random() < 0.2:
        return nn.Conv2d(shape[0], channels, kernel, padding="same", dilation=dilation, groups=groups)
    stride, padding = (pick([1, 1, 2, 3]), pick([1, 1, 2])), pick([(0, 0), (1, 1), (2, 0), (1, 3), "valid"])
    bias = draw.random.random() < 0.8
    return nn.Conv2d(shape[0], channels, kernel, stride, padding, dilation, groups, bias)


def _pooling(draw: NetworkBuilder) -> tuple[int | tuple[int, int], int | tuple[int, int] | None, int | tuple[int, int]]:
    pick = draw.random.choice
    return pick([1, 2, 3, (1, 2), (3, 2)]), pick([None, 1, 2, (2, 1), (1, 3)]), pick([0, 0, 1, (0, 1)])


def _max_pool(draw: NetworkBuilder, shape: Shape) -> Operation:
    kernel, stride, padding = _pooling(draw)
    dilation, ceil = draw.random.choice([1, 1, 2, (1, 2)]), draw.random.random() < 0.4
    if draw.random.random() < 0.2:
        return lambda x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil)
    return nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)


def _avg_pool(draw: NetworkBuilder, shape: Shape) -> Operation:
    kernel, stride, padding = _pooling(draw)
    ceil, counted = draw.random.random() < 0.4, draw.random.random() < 0.5
    if draw.random.random() < 0.2:
        return lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, counted)
    return nn.AvgPool2d(kernel, stride, padding, ceil, counted, draw.random.choice([None, None, 3]))


def _adaptive(draw: NetworkBuilder, shape: Shape) -> Operation:
    pick = draw.random.choice
    size = pick([1, 2, (1, 2), (None, 1), (3, None), (2, 3)])
    return pick([nn.AdaptiveAvgPool2d(size), lambda x: F.adaptive_avg_pool2d(x, size)])


def _batch_norm(draw: NetworkBuilder, shape: Shape) -> Operation:
    kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    return kind(shape[0], eps=draw.random.choice([1e-5, 1e-3, 0.1]), affine=draw.random.random() < 0.8)


# Each activation as a module and as a function; a test fails if one is missing here.
ACTIVATED: dict[type[nn.Module], Callable[[NetworkBuilder], list[Operation]]] = {
    nn.ReLU: lambda draw: [nn.ReLU(), torch.relu],
    nn.LeakyReLU: lambda draw: _with(draw, nn.LeakyReLU, F.leaky_relu, [0.01, 0.3, 1.0, 2.5, 0.0]),
    nn.Sigmoid: lambda draw: [nn.Sigmoid(), torch.sigmoid],
    nn.Tanh: lambda draw: [nn.Tanh(), torch.tanh],
    nn.GELU: lambda draw: [nn.GELU(), F.gelu],
    nn.SiLU: lambda draw: [nn.SiLU(), F.silu],
    nn.Softplus: lambda draw: _with(
        draw, nn.Softplus, F.softplus, [(), (0.3,), (4.0,), (1.0, 1.0), (2.0, -0.5), (30.0, 15.0)]
    ),
    nn.ELU: lambda draw: _with(draw, nn.ELU, F.elu, [1.0, 0.01, 0.4, 1.5, 4.0]),
    nn.Hardtanh: lambda draw: _with(draw, nn.Hardtanh, F.hardtanh, [(), (-0.1, 0.3), (-3.0, 0.7), (0.2, 0.21)]),
    nn.ReLU6: lambda draw: [nn.ReLU6(), F.relu6],
    Clamp: lambda draw: _with(
        draw, Clamp, torch.clamp, [(0.0, 1.0), (-0.3, None), (None, 0.4), (0.7, 0.7), (-2.0, 0.1)]
    ),
}


def _with(
    draw: NetworkBuilder, module: Callable[..., nn.Module], function: Operation, choices: list[Any]
) -> list[Operation]:
    """A module and a function with the same arguments, which are one of the choices."""
    chosen = draw.random.choice(choices)
    given = chosen if isinstance(chosen, tuple) else (chosen,)
    return [module(*given), lambda x: function(x, *given)]


def _activation(draw: NetworkBuilder, shape: Shape) -> Operation:
    if draw.random.random() < 0.15:
        return draw.random.choice([nn.Identity(), nn.Dropout(0.3).eval()])
    return draw.random.choice(ACTIVATED[draw.random.choice(list(ACTIVATED))](draw))


def _flatten_part(draw: NetworkBuilder, shape: Shape) -> Operation:
    return nn.Flatten(1, draw.random.choice([-1, 2])) if len(shape) > 1 else nn.Identity()


def _flatten(x: Tensor) -> Tensor:
    return torch.flatten(x, 1)


def _linear(draw: NetworkBuilder, shape: Shape) -> Operation:
    return nn.Linear(shape[-1], draw.random.randint(1, 8), bias=draw.random.random() < 0.8)


def _moved(draw: NetworkBuilder, shape: Shape) -> Operation:
    """A layer that permutes, reshapes, pads or slices."""
    dim = draw.random.randint(1, len(shape))
    start = draw.random.randrange(shape[dim - 1])
    order = draw.random.sample(range(1, len(shape) + 1), len(shape))
    made = [
        Permute(tuple(order)),
        Reshape(tuple(draw.random.sample(shape, len(shape)))),
        Reshape((prod(shape),)),
        Pad(dim, draw.random.randint(0, 2), draw.random.randint(0, 2), draw.random.choice([0.0, 0.0, -0.7, 1e4])),
        Slice(dim, start, draw.random.randint(start + 1, shape[dim - 1]), draw.random.choice([1, 1, 2])),
    ]
    return draw.random.choice(made)


IMAGES = [_conv2d, _conv2d, _conv2d, _max_pool, _avg_pool, _adaptive, _batch_norm, _activation, _activation]
IMAGES += [_activation, _flatten_part, _linear, _moved]
OTHERS = [_linear, _linear, _linear, _batch_norm, _activation, _activation, _activation, _flatten_part, _moved]


def drawn_networks(count: int, seed: int) -> Iterator[tuple[int, RandomNetwork, Shape]]:
    """So many networks, each with its seed."""
    for number in range(seed * 1_000_000, seed * 1_000_000 + count):
        yield number, *draw_network(number)
