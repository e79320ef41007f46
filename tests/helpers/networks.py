"""Small networks of every kind that presets name, ready for bounds, and inputs for them."""

import torch
from torch import Tensor, nn

from certtrain.network.models import InputSpec, build_model
from certtrain.spec.architecture import CNN, CNN7, MLP, Architecture, ResNeXt, WideResNet
from helpers.oracle_networks import NETS
from helpers.oracles import inputs, network

SHAPE, CLASSES = (2, 8, 8), 4

LABELS = torch.tensor([1, 0, 3])


def architectures() -> dict[str, Architecture]:
    """Each kind that presets name, small, with and without BatchNorm."""
    small = {}
    for suffix, norm in ((" built", True), (" built without batch norm", False)):
        small["cnn7" + suffix] = CNN7(name="cnn7", width=2, linear_size=6, last_stride=2, batch_norm=norm)
        convolutions = {"channels": (3, 4), "kernels": (3, 5), "strides": (1, 2), "linear": (6,)}
        small["cnn" + suffix] = CNN(name="cnn", batch_norm=norm, **convolutions)
        small["mlp" + suffix] = MLP(name="mlp", hidden=(6, 5), batch_norm=norm)
        residual = {"stem": 2, "linear_size": 6, "batch_norm": norm}
        small["wide-resnet" + suffix] = WideResNet(name="wide-resnet", widen_factor=1, **residual)
        stages = {"blocks": (2, 1), "strides": (1, 2)}
        small["resnext" + suffix] = ResNeXt(name="resnext", bottleneck_width=2, **stages, **residual)
    return small


BUILT = architectures()


def built(name: str) -> nn.Module:
    """In float64 and evaluation mode, its BatchNorm having seen a batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(BUILT[name], InputSpec(SHAPE, CLASSES, (0.4, 0.5), (0.2, 0.3))).double()
        model.train()(torch.rand(8, *SHAPE, dtype=torch.float64))
    return model.eval()


def case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, three inputs and their labels."""
    if name in NETS:
        return network(name), *(tensor[:3] for tensor in inputs(name))
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return built(name), x, LABELS
