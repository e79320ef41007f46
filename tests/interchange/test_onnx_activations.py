"""Activations that files have as one operator or as several: read as the layer that they are, or refused by name."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.activations.clamps import Clamp
from certtrain.errors import UnsupportedLayer
from certtrain.interchange.onnxfile import Imported, read_onnx
from certtrain.interchange.onnxoperators import READERS
from helpers.activation_cases import LAYERS
from helpers.exports import NOT_IN_ONNX
from helpers.onnx_files import agrees, exported, node, save

onnx = pytest.importorskip("onnx", reason='ONNX is not installed: pip install "certtrain[onnx]"')
pytest.importorskip("onnxruntime", reason='ONNX is not installed: pip install "certtrain[onnx]"')

CLAMPS = (nn.Hardtanh, nn.ReLU6, Clamp)  # which a Clip is as well: it is read as two ReLUs, whose signs can be split
ROOT, ONE, HALF = torch.tensor(2.0).sqrt(), torch.tensor(1.0), torch.tensor(0.5)


def kinds(found: Imported) -> list[str]:
    return [layer.type for layer in found.graph.layers]


def numbers(layer: nn.Module) -> dict[str, float]:
    return {name: value for name, value in vars(layer).items() if isinstance(value, float)}


# --- what is written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer not in NOT_IN_ONNX], ids=str)
def test_an_activation_that_is_written_is_read_as_itself(layer: nn.Module, tmp_path: Path) -> None:
    found = agrees(exported(nn.Sequential(nn.Linear(3, 4), layer), (3,), tmp_path))
    if isinstance(layer, CLAMPS):
        assert set(kinds(found)[1:]) <= {"ReLU", "BatchNorm1d"}
        return
    scaled = isinstance(layer, nn.Softplus) and layer.beta != 1
    expected = ["BatchNorm1d", "Softplus", "BatchNorm1d"] if scaled else [type(layer).__name__]
    assert kinds(found) == ["Linear", *expected]
    again = found.network._graph.calls[-1].layer
    if not isinstance(layer, nn.Softplus):
        assert numbers(again) == pytest.approx(numbers(layer))


def test_every_operator_that_an_activation_is_written_as_is_read() -> None:
    for layer in LAYERS:
        if layer not in NOT_IN_ONNX:
            assert {operator.type for operator in ACTIVATIONS[type(layer)].onnx.write(layer)} <= READERS.keys()


# --- what torch writes -----------------------------------------------------------------------------------


class Applied(nn.Module):
    """Functions, each between two linear layers."""

    def __init__(self, *functions: Any) -> None:
        super().__init__()
        self.functions, self.first = functions, nn.Linear(3, 4)
        self.others = nn.ModuleList(nn.Linear(4, 4) for _ in functions)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for function, linear in zip(self.functions, self.others, strict=True):
            x = linear(function(x))
        return x


FUNCTIONS: dict[str, tuple[Any, list[str]]] = {
    "gelu": (F.gelu, ["GELU"]),
    "silu": (F.silu, ["SiLU"]),
    "half of silu": (lambda x: F.silu(2 * x) / 2, ["BatchNorm1d", "SiLU", "BatchNorm1d"]),
    "softplus": (F.softplus, ["Softplus"]),
    "elu": (lambda x: F.elu(x, 0.5), ["ELU"]),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.25), ["BatchNorm1d", "ReLU", "BatchNorm1d", "ReLU", "BatchNorm1d"]),
    "relu6": (F.relu6, ["ReLU", "BatchNorm1d", "ReLU", "BatchNorm1d"]),
}


def from_torch(*functions: Any, path: Path, new: bool, opset: int | None, double: bool = False) -> Applied:
    """As a user exports it."""
    torch.manual_seed(0)
    model = Applied(*functions).eval()
    x = torch.rand(1, 3)
    if double:
        model, x = model.double(), x.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        more = {"verbose": False} if new else {}
        torch.onnx.export(model, (x,), str(path), dynamo=new, opset_version=opset, **more)
    return model


@pytest.mark.parametrize(("new", "opset"), [(False, 9), (False, 13), (False, 20), (True, 18), (True, 20)])
def test_what_torch_exports_is_read_as_its_layers(new: bool, opset: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason='torch\'s exporter needs a package: pip install "certtrain[test]"')
    functions, expected = zip(*FUNCTIONS.values(), strict=True)
    model = from_torch(*functions, path=tmp_path / "net.onnx", new=new, opset=opset)
    found = agrees(tmp_path / "net.onnx")
    assert kinds(found) == ["Linear", *(kind for layers in expected for kind in [*layers, "Linear"])]
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) * 20
    torch.testing.assert_close(found.network(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("double", [False, True])
def test_a_softplus_of_todays_exporter_keeps_its_arguments(double: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason='torch\'s exporter needs a package: pip install "certtrain[test]"')
    from_torch(lambda x: F.softplus(x, 2.0, 10.0), path=tmp_path / "net.onnx", new=True, opset=18, double=double)
    found = agrees(tmp_path / "net.onnx")
    assert kinds(found) == ["Linear", "Softplus", "Linear"]
    layer = found.network._graph.calls[1].layer
    assert (layer.beta, layer.threshold) == (2.0, 10.0)


@pytest.mark.parametrize("new", [False, True])
def test_a_gelu_in_float64_is_read_as_well(new: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason='torch\'s exporter needs a package: pip install "certtrain[test]"')
    model = from_torch(F.gelu, path=tmp_path / "net.onnx", new=new, opset=18 if new else 13, double=True)
    found, x = read_onnx(tmp_path / "net.onnx"), torch.randn(50, 3, dtype=torch.float64)  # which ONNX Runtime lacks
    assert kinds(found) == ["Linear", "GELU", "Linear"]
    torch.testing.assert_close(found.network(x), model(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("new", "opset"), [(False, 13), (False, 20), (True, 18), (True, 20)])
def test_the_other_gelu_is_refused(new: bool, opset: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason='torch\'s exporter needs a package: pip install "certtrain[test]"')
    tanh = from_torch(lambda x: F.gelu(x, approximate="tanh"), path=tmp_path / "net.onnx", new=new, opset=opset)
    assert tanh is not None
    message = r"approximate = b'tanh' is not read" if opset == 20 else r"'Pow' is not supported|product of two layers'"
    with pytest.raises(UnsupportedLayer, match=message):
        read_onnx(tmp_path / "net.onnx")


# --- patterns --------------------------------------------------------------------------------------------


def pattern(folder: Path, *nodes: str, opset: int = 13, **constants: Tensor) -> Path:
    """Nodes written as "y = Kind a b", from x (n, 3)."""
    made = []
    for line in nodes:
        output, _, rest = line.partition(" = ")
        kind, *inputs = rest.split()
        made.append(node(kind, " ".join(inputs), output))
    return save(folder, made, ["n", 3], ["n", 3], opset=opset, **constants)


ERF = ("a = Div x root", "b = Erf a", "c = Add b one")
SCALED = torch.tensor([2.0, -3.0, 0.5])
SCALED_GELU = ["BatchNorm1d", "GELU", "BatchNorm1d"]
PATTERNS: dict[str, tuple[tuple[str, ...], dict[str, Tensor], list[str]]] = {
    "gelu": ((*ERF, "d = Mul x c", "y = Mul d half"), {}, ["GELU"]),
    "half first": ((*ERF, "d = Mul x half", "y = Mul d c"), {}, ["GELU"]),
    "half of the sum": ((*ERF, "d = Mul c half", "y = Mul d x"), {}, ["GELU"]),
    "one first": (("a = Mul x inverse", "b = Erf a", "c = Add one b", "d = Mul c half", "y = Mul d x"), {}, ["GELU"]),
    "without half": ((*ERF, "y = Mul x c"), {}, ["GELU", "BatchNorm1d"]),
    "of a multiple": (
        ("x2 = Mul x scaled", "a = Div x2 root", "b = Erf a", "c = Add b one", "d = Mul x2 c", "y = Mul d half"),
        {"scaled": SCALED},
        ["BatchNorm1d", "GELU"],
    ),
    "of a sum": (
        ("x2 = Add x scaled", "a = Div x2 root", "b = Erf a", "c = Add b one", "d = Mul x2 c", "y = Mul d half"),
        {"scaled": SCALED},
        ["BatchNorm1d", "GELU"],
    ),
    "reshaped between": (
        (*ERF, "s = Unsqueeze c places", "t = Squeeze s places", "d = Mul x t", "y = Mul d half"),
        {"places": torch.tensor([2])},
        ["GELU"],
    ),
    "another root": (("a = Div x half", "b = Erf a", "c = Add b one", "y = Mul x c"), {}, SCALED_GELU),
    "a root that is close": (
        ("a = Mul x other", "b = Erf a", "c = Add b one", "y = Mul x c"), {"other": torch.tensor(0.70711)}, SCALED_GELU
    ),
    "silu": (("a = Sigmoid x", "y = Mul x a"), {}, ["SiLU"]),
    "silu the other way round": (("a = Sigmoid x", "y = Mul a x"), {}, ["SiLU"]),
    "a quick gelu": (
        ("b = Mul x scale", "a = Sigmoid b", "y = Mul x a"),
        {"scale": torch.tensor(1.702)},
        ["BatchNorm1d", "SiLU", "BatchNorm1d"],
    ),
    "silu and sigmoid": (("a = Sigmoid x", "b = Mul x a", "y = Add a b"), {}, ["Sigmoid", "SiLU", "Add"]),
    "softplus": (("a = Softplus x", "c = Greater x half", "y = Where c x a"), {}, ["Softplus"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_an_activation_of_several_operators_is_read(name: str, tmp_path: Path) -> None:
    nodes, constants, expected = PATTERNS[name]
    path = pattern(tmp_path, *nodes, root=ROOT, one=ONE, half=HALF, inverse=1 / ROOT, **constants)
    assert kinds(agrees(path)) == expected


WRONG: dict[str, tuple[tuple[str, ...], dict[str, Tensor], str]] = {
    "another sum": (("a = Div x root", "b = Erf a", "c = Add b half", "y = Mul x c"), {}, "which this is not"),
    "another factor": ((*ERF, "r = Relu x", "y = Mul r c"), {}, "which this is not"),
    "moved": ((*ERF, "r = Add x half", "y = Mul r c"), {}, "which this is not"),
    "an erf alone": (("y = Erf x",), {}, "the result of Erf is read only as a part of an activation"),
    "an erf in a layer": (("a = Erf x", "y = Relu a"), {}, "the result of Erf is read only as a part"),
    "an erf of an erf": (("a = Erf x", "y = Erf a"), {}, "it is given the result of Erf itself"),
    "an erf with itself": ((*ERF, "y = Mul c c"), {}, "product of two layers' results"),
    "a square": (("y = Mul x x",), {}, "product of two layers' results"),
    "another sigmoid": (("r = Relu x", "a = Sigmoid r", "y = Mul x a"), {}, "product of two layers' results"),
    "one less a sigmoid": (("a = Sigmoid x", "b = Sub one a", "y = Mul x b"), {}, "product of two layers' results"),
    "a product with relu": (("a = Relu x", "y = Mul x a"), {}, "product of two layers' results"),
    "the other branch": (("a = Softplus x", "c = Greater x half", "y = Where c a x"), {}, "only as torch writes"),
    "another function": (("a = Relu x", "c = Greater x half", "y = Where c x a"), {}, "only as torch writes"),
    "another beta": (
        ("b = Mul x half", "a = Softplus b", "c = Greater b half", "y = Where c x a"), {}, "only as torch writes"
    ),
    "a falling condition": (
        ("a = Softplus x", "n = Neg x", "c = Greater n half", "y = Where c x a"), {}, "only as torch writes"
    ),
    "a condition alone": (("c = Greater x half", "y = Relu c"), {}, "Greater is read only|tensor\\(bool\\)"),
    "several limits": (("a = Softplus x", "c = Greater x three", "y = Where c x a"), {"three": SCALED}, "one number"),
    "a late threshold": (
        ("a = Softplus x", "c = Greater x late", "y = Where c x a"), {"late": torch.tensor(90.0)}, "read as a Softplus"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_such_activation_is_refused(name: str, tmp_path: Path) -> None:
    nodes, constants, message = WRONG[name]
    path = pattern(tmp_path, *nodes, root=ROOT, one=ONE, half=HALF, inverse=1 / ROOT, **constants)
    with pytest.raises(Exception, match=message) as refused:
        read_onnx(path)
    assert type(refused.value).__module__ == "certtrain.errors"


def test_an_elu_that_falls_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Elu", "x", "y", alpha=-1.0)], ["n", 3], ["n", 3])
    with pytest.raises(UnsupportedLayer, match="it cannot be read as a ELU"):
        read_onnx(path)


def test_a_scaled_value_shares_no_sigmoid_with_another(tmp_path: Path) -> None:
    """x · sigmoid(y) of two values of one layer, one of them moved: no SiLU."""
    path = pattern(tmp_path, "m = Add x one", "a = Sigmoid m", "y = Mul x a", one=ONE)
    with pytest.raises(UnsupportedLayer, match="product of two layers' results"):
        read_onnx(path)
