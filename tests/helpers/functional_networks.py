"""Networks whose forward pass is a function that a test gives."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from certtrain import propagate

X = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A network of some layers whose forward pass is a function of (self, x)."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.other = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
            self.fc = nn.Linear(32, 3)
            self.pooled = nn.Linear(8, 3)
        self.relu, self.overwriting = nn.ReLU(), nn.ReLU(inplace=True)
        self.steps = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self, x)


def fc(layer: nn.Module | None = None, pooled: bool = False) -> Net:
    """Convolution, `layer`, flattening, linear: all of modules."""
    middle = nn.Identity() if layer is None else layer

    def forward(net: Net, x: Tensor) -> Tensor:
        return (net.pooled if pooled else net.fc)(net.flatten(net.middle(net.conv(x))))

    net = Net(forward)
    net.middle, net.flatten = middle, nn.Flatten()
    return net.eval()


def assert_follows(net: nn.Module, x: Tensor = X) -> None:
    """The layers found compute what the module computes."""
    with torch.no_grad():
        clean = propagate(net, x, 0.1).clean
        torch.testing.assert_close(clean, net(x.clone()), rtol=1e-5, atol=1e-6)
