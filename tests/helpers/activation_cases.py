"""Every activation with what is expected of it: tests of rules, lines, rounding, files and ONNX take these cases."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations.clamps import Clamp
from helpers.exact_functions import clamped, exp, normal, sigmoid, softplus

Ends = tuple[float, float]
LOG2, PHI = math.log(2), 0.8413447460685429  # softplus at 0, Φ(1)


class ActivationCase(NamedTuple):
    """A layer, and boxes worked out by hand: the ends of an input, and those of the result.

    rounded: whether a result that is stored in bfloat16 is compared with the exact one.
    """

    layer: nn.Module
    by_hand: tuple[tuple[Ends, Ends], ...] = ()
    rounded: bool = False


class Activated(NamedTuple):
    """What the tests of one activation need beside its cases.

    exactly: what the layer gives for one number. calls: functions and methods that equal it, by how they are written.
    searched: layers whose optimised lines must give tighter bounds than CROWN's.
    """

    exactly: Callable[[Any, Fraction], Fraction]
    calls: dict[str, Callable[[Tensor], Tensor]]
    searched: dict[str, Callable[[], nn.Module]]


CASES = {
    "relu": ActivationCase(nn.ReLU(), (((-1, 2), (0, 2)), ((-3, -1), (0, 0)), ((1, 2), (1, 2)))),
    "relu in place": ActivationCase(nn.ReLU(inplace=True)),
    "leaky relu": ActivationCase(nn.LeakyReLU(0.3), (((-2, 4), (-0.6, 4)), ((-4, -2), (-1.2, -0.6))), rounded=True),
    "leaky relu in place": ActivationCase(nn.LeakyReLU(0.3, inplace=True)),
    "sigmoid": ActivationCase(nn.Sigmoid(), (((0, math.log(3)), (0.5, 0.75)),), rounded=True),
    "tanh": ActivationCase(nn.Tanh(), (((0, math.atanh(0.5)), (0, 0.5)),)),
    "gelu": ActivationCase(
        nn.GELU(),
        (((-2, 1), (-0.169971207479903662, PHI)), ((-2, -1), (PHI - 1, -0.0455002638963584)), ((0, 1), (0, PHI))),
        rounded=True,
    ),
    "silu": ActivationCase(
        nn.SiLU(),
        (
            ((-3, math.log(3)), (-0.278464542761073795, 0.75 * math.log(3))),
            ((-math.log(3), 0), (-0.25 * math.log(3), 0)),
            ((-30, -20), (-20 / (1 + math.exp(20)), -30 / (1 + math.exp(30)))),
        ), rounded=True),
    "silu in place": ActivationCase(nn.SiLU(inplace=True)),
    "softplus": ActivationCase(
        nn.Softplus(),
        (((0, math.log(3)), (LOG2, math.log(4))), ((30, 40), (30, 40)), ((0, 30), (LOG2, 30))),
        rounded=True,
    ),
    "softplus of another beta": ActivationCase(
        nn.Softplus(2.0, 15.0), (((0, math.log(3) / 2), (LOG2 / 2, math.log(4) / 2)), ((8, 9), (8, 9)))
    ),
    "softplus of a low threshold": ActivationCase(
        nn.Softplus(1.0, 1.0), (((0, math.log(1.5)), (LOG2, math.log(2.5))),)
    ),
    "elu": ActivationCase(nn.ELU(), (((-math.log(2), 2), (-0.5, 2)),), rounded=True),
    "elu in place": ActivationCase(nn.ELU(0.5, inplace=True)),
    "elu, flat": ActivationCase(nn.ELU(0.25), (((-math.log(2), 2), (-0.125, 2)), ((1, 2), (1, 2)))),
    "elu, steep": ActivationCase(nn.ELU(3.0), (((-math.log(4), -math.log(2)), (-2.25, -1.5)),)),
    "hardtanh": ActivationCase(nn.Hardtanh(-0.5, 1.5), (((-2, 1), (-0.5, 1)), ((-3, -2), (-0.5, -0.5)))),
    "hardtanh in place": ActivationCase(nn.Hardtanh(inplace=True)),
    "relu6": ActivationCase(nn.ReLU6(), (((-1, 7), (0, 6)), ((1, 2), (1, 2)))),
    "relu6 in place": ActivationCase(nn.ReLU6(inplace=True)),
    "clamp": ActivationCase(Clamp(0.25, 0.75), (((-1, 2), (0.25, 0.75)), ((0.3, 1), (0.3, 0.75)))),
    "clamp from below": ActivationCase(Clamp(min=-0.2), (((-1, 2), (-0.2, 2)),)),
    "clamp from above": ActivationCase(Clamp(max=0.7), (((-1, 2), (-1, 0.7)),), rounded=True),
}  # fmt: skip
LAYERS = [case.layer for case in CASES.values() if not getattr(case.layer, "inplace", False)]

# The calls of each activation, its exact results, and what the search for slopes is tried on.
ACTIVATED: dict[type[nn.Module], Activated] = {
    nn.ReLU: Activated(
        lambda layer, v: max(v, Fraction(0)),
        {
            "x.relu()": lambda x: x.relu(),
            "x.relu_()": lambda x: x.relu_(),
            "torch.relu_": torch.relu_,
            "F.relu by name": lambda x: F.relu(input=x),
            "F.relu in place by name": lambda x: F.relu(input=x, inplace=True),
        },
        {"relu": nn.ReLU},
    ),
    nn.LeakyReLU: Activated(
        lambda layer, v: v if v > 0 else Fraction(layer.negative_slope) * v,
        {"F.leaky_relu": lambda x: F.leaky_relu(x, 0.2)},
        {
            "leaky 0.1": lambda: nn.LeakyReLU(0.1),
            "leaky 0.01": lambda: nn.LeakyReLU(0.01),
            "leaky 2.5": lambda: nn.LeakyReLU(2.5),
        },
    ),
    nn.Sigmoid: Activated(
        lambda layer, v: sigmoid(v),
        {"x.sigmoid()": lambda x: x.sigmoid(), "F.sigmoid": F.sigmoid},
        {"sigmoid": nn.Sigmoid},
    ),
    nn.Tanh: Activated(
        lambda layer, v: 2 * sigmoid(2 * v) - 1,
        {"x.tanh()": lambda x: x.tanh(), "F.tanh": F.tanh},
        {"tanh": nn.Tanh},
    ),
    nn.GELU: Activated(
        lambda layer, v: v * normal(v),
        {"F.gelu": F.gelu, "F.gelu by name": lambda x: F.gelu(x, approximate="none")},
        {"gelu": nn.GELU},
    ),
    nn.SiLU: Activated(
        lambda layer, v: v * sigmoid(v),
        {"F.silu": F.silu, "F.silu in place": lambda x: F.silu(x, inplace=True)},
        {"silu": nn.SiLU},
    ),
    nn.Softplus: Activated(
        softplus,
        {"F.softplus": F.softplus, "F.softplus by name": lambda x: F.softplus(x, beta=2, threshold=15)},
        {"softplus": nn.Softplus},
    ),
    nn.ELU: Activated(
        lambda layer, v: v if v > 0 else Fraction(layer.alpha) * (exp(v) - 1),
        {"F.elu": lambda x: F.elu(x, 0.5), "F.elu in place": lambda x: F.elu(x, alpha=2.0, inplace=True)},
        {"elu": nn.ELU},
    ),
    nn.Hardtanh: Activated(
        lambda layer, v: clamped(v, layer.min_val, layer.max_val),
        {"F.hardtanh": F.hardtanh, "F.hardtanh in place": lambda x: F.hardtanh(x, -0.2, 0.3, True)},
        {"hardtanh": lambda: nn.Hardtanh(-0.5, 0.5)},
    ),
    nn.ReLU6: Activated(lambda layer, v: clamped(v, 0.0, 6.0), {"F.relu6": F.relu6}, {"relu6": nn.ReLU6}),
    Clamp: Activated(
        lambda layer, v: clamped(v, layer.min, layer.max),
        {
            "torch.clamp": lambda x: torch.clamp(x, -0.3, 0.4),
            "torch.clamp by name": lambda x: torch.clamp(x, min=0),
            "torch.clip": lambda x: torch.clip(x, max=0.25),
            "x.clamp()": lambda x: x.clamp(0, 1),
            "x.clamp_()": lambda x: x.clamp_(min=-0.25, max=0.25),
            "x.clip()": lambda x: x.clip(None, 0.5),
        },
        {"clamp": lambda: Clamp(-0.3, None)},
    ),
}
