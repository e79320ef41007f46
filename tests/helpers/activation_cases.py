"""Every activation with what is expected of it: tests of rules, lines, rounding, files and ONNX take these cases."""

import math
from typing import NamedTuple

from torch import nn

from certtrain.bounds.activations.clamps import Clamp

Ends = tuple[float, float]
LOG2, PHI = math.log(2), 0.8413447460685429  # softplus at 0, Φ(1)


class ActivationCase(NamedTuple):
    """A layer, and boxes worked out by hand: the ends of an input, and those of the result."""

    layer: nn.Module
    by_hand: tuple[tuple[Ends, Ends], ...] = ()


CASES = {
    "relu": ActivationCase(nn.ReLU(), (((-1, 2), (0, 2)), ((-3, -1), (0, 0)), ((1, 2), (1, 2)))),
    "relu in place": ActivationCase(nn.ReLU(inplace=True)),
    "leaky relu": ActivationCase(nn.LeakyReLU(0.3), (((-2, 4), (-0.6, 4)), ((-4, -2), (-1.2, -0.6)))),
    "leaky relu in place": ActivationCase(nn.LeakyReLU(0.3, inplace=True)),
    "sigmoid": ActivationCase(nn.Sigmoid(), (((0, math.log(3)), (0.5, 0.75)),)),
    "tanh": ActivationCase(nn.Tanh(), (((0, math.atanh(0.5)), (0, 0.5)),)),
    "gelu": ActivationCase(
        nn.GELU(),
        (((-2, 1), (-0.169971207479903662, PHI)), ((-2, -1), (PHI - 1, -0.0455002638963584)), ((0, 1), (0, PHI))),
    ),
    "silu": ActivationCase(
        nn.SiLU(),
        (
            ((-3, math.log(3)), (-0.278464542761073795, 0.75 * math.log(3))),
            ((-math.log(3), 0), (-0.25 * math.log(3), 0)),
            ((-30, -20), (-20 / (1 + math.exp(20)), -30 / (1 + math.exp(30)))),
        ),
    ),
    "silu in place": ActivationCase(nn.SiLU(inplace=True)),
    "softplus": ActivationCase(
        nn.Softplus(), (((0, math.log(3)), (LOG2, math.log(4))), ((30, 40), (30, 40)), ((0, 30), (LOG2, 30)))
    ),
    "softplus of another beta": ActivationCase(
        nn.Softplus(2.0, 15.0), (((0, math.log(3) / 2), (LOG2 / 2, math.log(4) / 2)), ((8, 9), (8, 9)))
    ),
    "softplus of a low threshold": ActivationCase(
        nn.Softplus(1.0, 1.0), (((0, math.log(1.5)), (LOG2, math.log(2.5))),)
    ),
    "elu": ActivationCase(nn.ELU(), (((-math.log(2), 2), (-0.5, 2)),)),
    "elu in place": ActivationCase(nn.ELU(0.5, inplace=True)),
    "elu, flat": ActivationCase(nn.ELU(0.25), (((-math.log(2), 2), (-0.125, 2)), ((1, 2), (1, 2)))),
    "elu, steep": ActivationCase(nn.ELU(3.0), (((-math.log(4), -math.log(2)), (-2.25, -1.5)),)),
    "hardtanh": ActivationCase(nn.Hardtanh(-0.5, 1.5), (((-2, 1), (-0.5, 1)), ((-3, -2), (-0.5, -0.5)))),
    "hardtanh in place": ActivationCase(nn.Hardtanh(inplace=True)),
    "relu6": ActivationCase(nn.ReLU6(), (((-1, 7), (0, 6)), ((1, 2), (1, 2)))),
    "relu6 in place": ActivationCase(nn.ReLU6(inplace=True)),
    "clamp": ActivationCase(Clamp(0.25, 0.75), (((-1, 2), (0.25, 0.75)), ((0.3, 1), (0.3, 0.75)))),
    "clamp from below": ActivationCase(Clamp(min=-0.2), (((-1, 2), (-0.2, 2)),)),
    "clamp from above": ActivationCase(Clamp(max=0.7), (((-1, 2), (-1, 0.7)),)),
}  # fmt: skip
LAYERS = [case.layer for case in CASES.values() if not getattr(case.layer, "inplace", False)]
