"""The four small networks behind the reference values, in plain torch.

Each builder takes no argument and returns an untrained module; the weights
are in `<name>.safetensors` under `weight/<state_dict key>`.
"""

import torch
from torch import nn


def mlp() -> nn.Sequential:
    """784-64-32-10, no BatchNorm. Input (B, 784)."""
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn4_bn() -> nn.Sequential:
    """Two strided convolutions and one hidden linear layer, BatchNorm after each. Input (B, 1, 28, 28)."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 4, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def cnn7_bn_narrow() -> nn.Sequential:
    """CNN-7 of the paper at width 8 and linear size 32. Input (B, 3, 32, 32)."""

    def block(i: int, o: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, stride, 1), nn.BatchNorm2d(o), nn.ReLU()]

    return nn.Sequential(
        *block(3, 8, 1),
        *block(8, 8, 1),
        *block(8, 16, 2),
        *block(16, 16, 1),
        *block(16, 16, 1),
        nn.Flatten(),
        nn.Linear(16 * 16 * 16, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


class ResidualNet(nn.Module):
    """One convolution, one residual block with a projection, one linear layer. Input (B, 3, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.bn0 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 16, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(8, 16, 1, 2, 0)
        self.head = nn.Linear(16 * 8 * 8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        x = torch.relu(h + self.shortcut(x))
        return self.head(torch.flatten(x, 1))


NETS = {"mlp": mlp, "cnn4_bn": cnn4_bn, "cnn7_bn_narrow": cnn7_bn_narrow, "residual_bn": ResidualNet}
INPUT_SHAPES = {"mlp": (784,), "cnn4_bn": (1, 28, 28), "cnn7_bn_narrow": (3, 32, 32), "residual_bn": (3, 16, 16)}
