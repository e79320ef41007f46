"""Files of torch's own exporters, the older one and the one of today, read as what ONNX Runtime computes."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.errors import UnsupportedLayer
from certtrain.interchange.onnxfile import read_onnx
from helpers.onnx_files import agrees

onnx = pytest.importorskip("onnx", reason='ONNX is not installed: pip install "certtrain[onnx]"')
pytest.importorskip("onnxruntime", reason='ONNX is not installed: pip install "certtrain[onnx]"')
pytest.importorskip("onnxscript", reason='torch\'s exporter needs a package: pip install "certtrain[test]"')

Shape = tuple[int, ...]
IMAGE: Shape = (3, 8, 8)


class Net(nn.Module):
    """Some layers, and a function that says how they are applied."""

    def __init__(self, apply: Callable[["Net", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.apply_to = apply
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_to(self, x)


def normed(channels: int, out: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


def residual(net: Any, x: Tensor) -> Tensor:
    x = net.stem(x)
    x = F.relu(net.norm(net.conv(x)) + net.skip(x))
    return net.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def mobile(net: Any, x: Tensor) -> Tensor:
    """Depthwise convolutions between pointwise ones, ReLU6, and the mean over space."""
    x = F.relu6(net.deep(F.relu6(net.wide(x))))
    return net.head(net.narrow(x).mean([2, 3]))


def inception(net: Any, x: Tensor) -> Tensor:
    x = torch.cat([net.one(x), net.three(x), F.max_pool2d(x, 3, 1, 1)], 1)
    return net.head(torch.relu(x).flatten(1))


def excited(net: Any, x: Tensor) -> Tensor:
    """A sum that stretches sides, for the product that networks with squeeze and excitation have."""
    x = net.conv(x)
    return net.head((x + net.gate(F.adaptive_avg_pool2d(x, 1))).relu().flatten(1))


def turned(net: Any, x: Tensor) -> Tensor:
    """Values in other orders and shapes, padded, cut, and put side by side again."""
    x = F.pad(x, (1, 0, 0, 2)).permute(0, 2, 3, 1)
    x = torch.cat([x[:, 1:, :, :2], -x[:, :-1, :, 1:]], 3).reshape(-1, 81, 4)
    x = net.rows(x).transpose(1, 2)
    return net.head(x.relu().flatten(1).unsqueeze(1).squeeze(1))


def clamped(net: Any, x: Tensor) -> Tensor:
    x = torch.clamp(net.first(x.flatten(1)) / 3 - 0.5, -1, 2)
    return net.head(1 - 2 * torch.clamp(x, min=0.1)) * torch.tensor([1.0, 2.0, 3.0])


def difference(net: Any, x: Tensor) -> Tensor:
    x = x.flatten(1)
    return net.head(F.leaky_relu(net.one(x) - net.other(x), 0.2)) @ torch.ones(3, 4)


MADE: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.ReLU(), nn.Linear(9, 3)), IMAGE),
    "mlp with batch norm": (
        lambda: nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Dropout(), nn.Linear(9, 3)),
        (6,),
    ),
    "cnn": (lambda: nn.Sequential(normed(3, 4), normed(4, 5, 2), nn.Flatten(), nn.Linear(80, 3)), IMAGE),
    "pooled cnn": (
        lambda: nn.Sequential(
            normed(3, 4), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 3)
        ),
        IMAGE,
    ),
    "pooled with ceil": (
        lambda: nn.Sequential(normed(3, 4), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.Linear(64, 3)),
        IMAGE,
    ),
    "resnet": (
        lambda: Net(
            residual,
            stem=normed(3, 4),
            conv=nn.Conv2d(4, 6, 3, 2, 1, bias=False),
            norm=nn.BatchNorm2d(6),
            skip=nn.Conv2d(4, 6, 1, 2),
            head=nn.Linear(6, 3),
        ),
        IMAGE,
    ),
    "mobilenet": (
        lambda: Net(
            mobile,
            wide=nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)),
            deep=nn.Sequential(nn.Conv2d(6, 6, 3, 2, 1, groups=6), nn.BatchNorm2d(6)),
            narrow=nn.Conv2d(6, 4, 1),
            head=nn.Linear(4, 3),
        ),
        IMAGE,
    ),
    "inception": (
        lambda: Net(inception, one=nn.Conv2d(3, 2, 1), three=nn.Conv2d(3, 4, 3, 1, 1), head=nn.Linear(576, 3)),
        IMAGE,
    ),
    "stretched sum": (
        lambda: Net(excited, conv=nn.Conv2d(3, 4, 3), gate=nn.Conv2d(4, 4, 1), head=nn.Linear(144, 3)),
        IMAGE,
    ),
    "turned": (lambda: Net(turned, rows=nn.Linear(4, 2), head=nn.Linear(162, 3)), IMAGE),
    "clamped": (lambda: Net(clamped, first=nn.Linear(192, 9), head=nn.Linear(9, 3)), IMAGE),
    "difference": (
        lambda: Net(difference, one=nn.Linear(6, 5), other=nn.Linear(6, 5), head=nn.Linear(5, 3)),
        (6,),
    ),
    "same padding": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 4, padding="same"), nn.Flatten(), nn.Linear(128, 3)),
        IMAGE,
    ),
    "normalised": (
        lambda: Net(
            lambda net, x: net.head((net.conv((x - net.mean) / net.std)).flatten(1)),
            conv=nn.Conv2d(3, 2, 3),
            head=nn.Linear(72, 3),
        ),
        IMAGE,
    ),
}


def network(name: str) -> nn.Module:
    """In evaluation mode, its BatchNorm with something to do."""
    torch.manual_seed(0)
    made = MADE[name][0]()
    if name == "normalised":
        made.register_buffer("mean", torch.rand(1, 3, 1, 1))
        made.register_buffer("std", torch.rand(1, 3, 1, 1) + 0.5)
    for layer in made.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(layer.weight)
    return made.eval()


def export(model: nn.Module, shape: Shape, path: Path, *, new: bool, batch: int = 1, **more: Any) -> Path:
    """As a user does it; what torch says of its own plans is not of interest."""
    x = torch.rand(batch, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(path), dynamo=new, **({"verbose": False} if new else {}), **more)
    return path


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's, of speed
@pytest.mark.parametrize("new", [False, True], ids=["older", "new"])
@pytest.mark.parametrize("name", MADE)
def test_what_torch_exports_is_read(name: str, new: bool, tmp_path: Path) -> None:
    model, shape = network(name), MADE[name][1]
    found = agrees(export(model, shape, tmp_path / "net.onnx", new=new))
    x = torch.rand(4, *shape)
    torch.testing.assert_close(found.network(x.reshape(4, *found.shape)), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("new", [False, True], ids=["older", "new"])
def test_a_fixed_batch_is_read_as_the_network_of_each_input(new: bool, tmp_path: Path) -> None:
    found = agrees(export(network("resnet"), IMAGE, tmp_path / "net.onnx", new=new, batch=5))
    assert found.shape == IMAGE
    assert found.outputs == 3


@pytest.mark.parametrize("new", [False, True], ids=["older", "new"])
def test_a_free_batch_is_read_where_sizes_are_asked_for(new: bool, tmp_path: Path) -> None:
    model = Net(lambda net, x: net.head(x.view(x.size(0), -1)), head=nn.Linear(192, 3)).eval()
    batch = torch.export.Dim("batch", min=1, max=512)
    free: dict[str, Any] = (
        {"dynamic_shapes": ({0: batch},)} if new else {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    )
    path = export(model, IMAGE, tmp_path / "net.onnx", new=new, batch=2, **free)
    assert agrees(path, count=3).shape == IMAGE
    assert agrees(path, count=1).outputs == 3


@pytest.mark.parametrize("new", [False, True], ids=["older", "new"])
def test_a_network_of_float64_stays_one(new: bool, tmp_path: Path) -> None:
    model = network("mlp").double()
    x = torch.rand(1, *IMAGE, dtype=torch.float64)
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(path), dynamo=new, **({"verbose": False} if new else {}))
    found = agrees(path)
    weights = [tensor for tensor in found.network.parameters() if tensor.dim() == 2]
    assert all(tensor.dtype == torch.float64 for tensor in found.network.parameters())
    assert any(torch.equal(tensor, model[1].weight) for tensor in weights)


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
@pytest.mark.parametrize("name", ["turned", "clamped", "mobilenet", "resnet"])
def test_older_opsets_are_read_as_they_are(name: str, opset: int, tmp_path: Path) -> None:
    path = export(network(name), MADE[name][1], tmp_path / "net.onnx", new=False, opset_version=opset)
    assert onnx.load(path).opset_import[0].version == opset
    agrees(path)


def test_an_average_that_reaches_over_the_end_is_refused_by_name(tmp_path: Path) -> None:
    pooled = nn.Sequential(nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.Flatten()).eval()
    path = export(pooled, IMAGE, tmp_path / "net.onnx", new=False)
    with pytest.raises(UnsupportedLayer, match=r"\(AveragePool\): ceil_mode with windows that reach beyond the end"):
        read_onnx(path)


OF_TORCH_2_6 = sorted((Path(__file__).parent / "torch26").glob("*.onnx"))


def test_the_older_exporter_of_torch_2_6_is_there_for_every_network_and_the_new_one_for_most() -> None:
    """That of BatchNorm fails, with the onnxscript that goes with it as with that of today."""
    older = {path.stem for path in OF_TORCH_2_6 if path.stem.endswith("-older")}
    assert older == {f"{name.replace(' ', '-')}-older" for name in MADE}
    assert len(OF_TORCH_2_6) - len(older) == 8


@pytest.mark.parametrize("path", OF_TORCH_2_6, ids=lambda path: path.stem)
def test_what_torch_2_6_exported_is_read(path: Path) -> None:
    """Written by torch 2.6.0 of the networks of `MADE`, without the notes that say where and how."""
    agrees(path)
