"""The user's code is run once, is given what it asks for, and fails with one message that says where."""

import functools
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.errors import CerttrainError, NetworkError, PresetError, UnsupportedLayer
from certtrain.network.graphs import GraphNetwork
from certtrain.network.source import changed_source, read_network, resolve_module
from certtrain.spec.layers import Graph, ModuleSection, Origin
from certtrain.spec.preset import Preset, load_preset
from helpers.tiny_classifier import CLASSES, SHAPE, images

HEAD = "import torch\nfrom torch import nn\n"
MADE = "def make(input_shape, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, classes))\n"


def read(source: str | Callable[..., Any], **arguments: Any) -> Graph:
    return read_network(ModuleSection(name="module", source=source, arguments=arguments), SHAPE, len(CLASSES))


def names(graph: Graph) -> list[str]:
    return [layer.name for layer in graph.layers]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put Python code into mynet.py in the current folder, which is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())

    def put(code: str) -> Path:
        (tmp_path / "mynet.py").write_text(HEAD + code, encoding="utf-8")
        return tmp_path / "mynet.py"

    return put


# --- what it is given --------------------------------------------------------------------------------------


class Net(nn.Module):
    """Takes what may be given by name, and keeps it."""

    seen: tuple[Any, ...] = ()

    def __init__(self, width: int = 2, *, classes: int, input_shape: tuple[int, ...], steps: list[int] | None = None):
        super().__init__()
        Net.seen = (width, classes, input_shape, steps)
        self.conv = nn.Conv2d(input_shape[0], width, 1)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).flatten(1))


def test_shape_classes_and_arguments_are_given_by_name():
    graph = read(Net, width=3, steps=[1, 2])
    assert Net.seen == (3, 3, (1, 2, 2), [1, 2])
    assert names(graph) == ["conv", "relu", "flatten", "head"]
    assert graph.origin == Origin(source="Net", arguments={"width": 3, "steps": [1, 2]})


def test_an_argument_of_the_users_own_wins():
    read(functools.partial(Net, classes=3), input_shape=[1, 2, 2])
    assert Net.seen == (2, 3, [1, 2, 2], None)


def test_what_asks_for_nothing_is_given_nothing():
    assert names(read(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))) == ["0", "1"]


def test_a_source_file_is_run(write: Callable[[str], Path]):
    file = write(MADE)
    graph = read("mynet.py:make")
    assert names(graph) == ["0", "1"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert graph.origin == Origin(source="mynet.py:make", sha256=digest)
    assert names(read(f"{file}:make")) == ["0", "1"]


def test_a_source_file_may_import_what_lies_beside_it(write: Callable[[str], Path]):
    (write("").parent / "parts_of_mynet.py").write_text(HEAD + MADE, encoding="utf-8")
    write("from parts_of_mynet import make\n")
    assert names(read("mynet.py:make")) == ["0", "1"]


def test_a_source_file_is_read_anew_each_time(write: Callable[[str], Path]):
    """A bytecode cache goes by the second and the size, which these two have in common."""
    write("Net = lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU())\n")
    first = read("mynet.py:Net")
    write("Net = lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh())\n")
    assert [graph.layers[-1].type for graph in (first, read("mynet.py:Net"))] == ["ReLU", "Tanh"]


def test_user_code_prints_beside_the_results(write: Callable[[str], Path], capsys: pytest.CaptureFixture[str]):
    write("print('hello')\n" + MADE)
    read("mynet.py:make")
    assert capsys.readouterr() == ("", "hello\n")


def test_user_code_draws_no_random_numbers_of_others():
    state = torch.get_rng_state()
    read(Net)
    assert torch.equal(torch.get_rng_state(), state)


# --- what it may be ----------------------------------------------------------------------------------------


class Base(nn.Module):
    """A small network to be spoilt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 1), nn.Linear(8, 3)
        self.spoil()

    def spoil(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.conv(x)).flatten(1))

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(x)


def spoilt(spoil: Callable[[Any], object] = lambda net: None, **methods: Callable[..., Any]) -> type[nn.Module]:
    """A kind of network that does something more when it is made, or else when it runs."""
    return type("Spoilt", (Base,), {"spoil": spoil, **methods})


def replaces_the_forward_of_a_layer(net: Any) -> None:
    net.conv.forward = lambda x: 2 * F.conv2d(x, net.conv.weight, net.conv.bias)


def shares_a_weight(net: Any) -> None:
    net.other = nn.Conv2d(1, 2, 1)
    net.other.weight = net.conv.weight


def adds(**layers: nn.Module) -> Callable[[Any], None]:
    return lambda net: [setattr(net, name, layer) for name, layer in layers.items()]


def fails(net: Any, x: Tensor) -> Tensor:
    raise KeyError("colour")


def fails_when_followed(net: Any, x: Tensor) -> Tensor:
    if isinstance(x, torch.fx.Proxy):
        raise AttributeError("no pixels")
    return x


BAD: dict[str, tuple[Any, type[CerttrainError], str]] = {
    "no network": (lambda: 5, NetworkError, r"<lambda> returns 5, which is not a torch\.nn\.Module"),
    "a class": (lambda: Base, NetworkError, r"returns <class .*which is not a torch\.nn\.Module"),
    "a network itself": (Base(), NetworkError, "Base is a network already; give the class or function"),
    "too few arguments": (lambda size: None, NetworkError, r"<lambda>\(\) raises TypeError: .*'size'"),
    "raises": (
        lambda classes: 1 / 0,
        NetworkError,
        r"<lambda>\(classes=3\) raises ZeroDivisionError.*test_source\.py, line",
    ),
    "exits": (lambda: sys.exit("bye"), NetworkError, "raises SystemExit: bye"),
    "double": (spoilt(lambda net: net.double()), NetworkError, r"'conv\.weight' is torch\.float64; .* torch\.float32"),
    "elsewhere": (spoilt(lambda net: net.to("meta")), NetworkError, r"'conv\.weight' is on meta; .*on the CPU"),
    "frozen": (spoilt(lambda net: net.head.requires_grad_(False)), NetworkError, r"'head\.weight' is frozen"),
    "shape": (spoilt(forward=lambda net, x: net.conv(x)), NetworkError, r"\(2, 2, 2, 2\) .* have shape \(2, 3\)"),
    "classes": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), NetworkError, r"shape \(2, 2\) .* \(2, 3\)"),
    "tuple": (spoilt(forward=lambda net, x: (x, x)), NetworkError, "returns tuple, not a tensor of logits"),
    "misfit": (
        spoilt(forward=lambda net, x: net.head(x)),
        NetworkError,
        r"images of shape \(2, 1, 2, 2\): Runtime.*line",
    ),
    "fails": (spoilt(forward=fails), NetworkError, r"does not take images .*KeyError: 'colour' \(.*test_source\.py"),
    "fails later": (
        spoilt(middle=fails_when_followed),
        UnsupportedLayer,
        "cannot be traced: AttributeError: no pixels",
    ),
    "branches": (
        spoilt(middle=lambda net, x: x if x.mean() > 9 else -x),
        UnsupportedLayer,
        "cannot be traced: .*must not branch",
    ),
    "unknown layer": (
        spoilt(adds(act=nn.Mish()), middle=lambda net, x: net.act(x)),
        UnsupportedLayer,
        "Spoilt: layer 'act' is a Mish.* can be bounded: .*ReLU",
    ),
    "unknown function": (
        spoilt(middle=lambda net, x: x.exp()),
        UnsupportedLayer,
        r"Spoilt: node 'exp' calls x\.exp\(\)",
    ),
    "hook": (
        spoilt(lambda net: net.conv.register_forward_hook(lambda *given: None)),
        UnsupportedLayer,
        "'conv' has a forward hook",
    ),
    "hook on all": (
        spoilt(lambda net: net.register_forward_pre_hook(lambda *given: None)),
        UnsupportedLayer,
        "Spoilt has a forward hook",
    ),
    "dropout": (
        spoilt(adds(drop=nn.Dropout(0.5)), middle=lambda net, x: net.drop(x)),
        UnsupportedLayer,
        "'drop' is random in training",
    ),
    "two networks": (
        spoilt(middle=lambda net, x: torch.relu(x) if net.training else x),
        UnsupportedLayer,
        "other layers in training than in evaluation",
    ),
    "replaced forward": (
        spoilt(replaces_the_forward_of_a_layer),
        UnsupportedLayer,
        "Spoilt: layer 'conv' has another 'forward' than its class Conv2d",
    ),
    "other layers for tensors": (
        spoilt(middle=lambda net, x: torch.relu(x) if type(x) is Tensor else x),
        UnsupportedLayer,
        "depends on something that cannot be traced",
    ),
    "weight in common": (
        spoilt(shares_a_weight, forward=lambda net, x: net.head((net.conv(x) + net.other(x)).flatten(1))),
        UnsupportedLayer,
        "'conv' and 'other' share a weight",
    ),
    "no statistics": (
        spoilt(adds(bn=nn.BatchNorm2d(2, track_running_stats=False)), middle=lambda net, x: net.bn(x)),
        UnsupportedLayer,
        "'bn' keeps no running statistics",
    ),
    "parametrised": (
        spoilt(lambda net: nn.utils.parametrizations.weight_norm(net.conv)),
        UnsupportedLayer,
        "'conv' is a ParametrizedConv2d",
    ),
}


def test_the_network_to_be_spoilt_is_good():
    assert names(read(spoilt())) == ["conv", "relu", "flatten", "head"]
    assert names(read(spoilt(adds(unused=nn.Mish(), drop=nn.Dropout(0.5))))) == ["conv", "relu", "flatten", "head"]


def test_a_network_may_ask_for_the_shape_of_its_images():
    flattened = spoilt(forward=lambda net, x: net.head(torch.relu(net.conv(x)).view(-1, net.head.in_features)))
    assert names(read(flattened)) == ["conv", "relu", "view", "head"]


@pytest.mark.parametrize("name", BAD)
def test_a_network_that_cannot_be_trained_is_one_clear_error(name: str):
    source, kind, message = BAD[name]
    with pytest.raises(CerttrainError, match=f"(?s){message}") as caught:
        read(source)
    assert type(caught.value) is kind


def test_lazy_layers_are_made_by_the_first_images():
    graph = read(spoilt(adds(head=nn.LazyLinear(3))))
    assert graph.layers[-1].in_features == 8


FILES: dict[str, tuple[bytes, str, str]] = {
    "syntax": (b"def (:\n", "X", r"mynet\.py cannot be run: SyntaxError: .*mynet\.py, line 1\)"),
    "bytes": (b"\xff\xfe\x00", "X", r"mynet\.py cannot be run: SyntaxError"),
    "raises": (b"x = 1\nraise ValueError('boo')\n", "X", r"cannot be run: ValueError: boo \(mynet\.py, line 2\)"),
    "exits": (b"import sys\nsys.exit(3)\n", "X", "cannot be run: SystemExit: 3"),
    "name": (b"class Mine: pass\n", "Yours", r"mynet\.py has no 'Yours'; it has Mine"),
    "empty": (b"", "X", r"mynet\.py has no 'X'; it has no class or function"),
    "value": (b"X = 5\n", "X", "mynet.py:X is not a class or function but 5"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_source_file_that_cannot_be_used(name: str, write: Callable[[str], Path]):
    content, wanted, message = FILES[name]
    write("").write_bytes(content)
    with pytest.raises(NetworkError, match=message):
        read(f"mynet.py:{wanted}")


def test_a_missing_source_file_says_where_it_was_searched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NetworkError, match=rf"source file mynet\.py in the current folder, {tmp_path}, cannot be read"):
        read("mynet.py:X")
    with pytest.raises(NetworkError, match=rf"source file {tmp_path}/mynet\.py cannot be read: No such file"):
        read(f"{tmp_path}/mynet.py:X")
    (tmp_path / "mynet.py").mkdir()
    with pytest.raises(NetworkError, match=r"cannot be read: Is a directory"):
        read("mynet.py:X")


# --- in a preset -------------------------------------------------------------------------------------------


def preset(**model: Any) -> Preset:
    return load_preset("digits", {"model": {"name": "module", **model}})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"source": "mynet.py"}, r'model\.source: it must name a Python file .* like "mynet\.py:MyNet"'),
        ({"source": "mynet.py:"}, r"model\.source"),
        ({"source": ":MyNet"}, r"model\.source"),
        ({"source": "mynet.toml:MyNet"}, r"model\.source"),
        ({"source": "mynet.py:a b"}, r"model\.source"),
        ({"source": 5}, r"model\.source"),
        ({}, r"model\.source: must be given"),
        ({"source": "mynet.py:X", "arguments": 5}, r"model\.arguments"),
        ({"source": "mynet.py:X", "arguments": {"a": float("nan")}}, r"model\.arguments\.a.*finite"),
        ({"source": "mynet.py:X", "arguments": {"a": object()}}, r"model\.arguments\.a"),
        ({"source": "mynet.py:X", "args": {}}, r"model\.args: .*did you mean"),
    ],
)
def test_a_wrong_section_is_named(model: dict[str, Any], message: str):
    with pytest.raises(PresetError, match=message):
        preset(**model)


def test_another_networks_fields_are_let_go_of():
    plain = {"model": {"name": "mlp", "hidden": [3], "batch_norm": False}}
    fields = load_preset("digits", plain).model_dump()
    found = load_preset(fields, {"model.name": "module", "model.source": "mynet.py:MyNet"})
    assert found.model == ModuleSection(name="module", source="mynet.py:MyNet")


def test_a_preset_is_resolved_once():
    resolved = resolve_module(preset(source=Net, arguments={"width": 2}), images())
    assert isinstance(resolved.model, Graph)
    assert resolve_module(resolved, images()) is resolved
    assert Preset.model_validate_json(resolved.model_dump_json()) == resolved
    assert resolve_module(load_preset("digits"), images()) == load_preset("digits")
    GraphNetwork(resolved.model)


def test_a_source_that_has_changed_is_noticed(write: Callable[[str], Path]):
    file = write(MADE)
    resolved = resolve_module(preset(source="mynet.py:make"), images())
    assert changed_source(resolved) is None
    write(MADE + "# another line\n")
    assert changed_source(resolved) == "mynet.py"
    file.unlink()
    assert changed_source(resolved) is None
    assert changed_source(load_preset("digits")) is None
    assert changed_source(resolve_module(preset(source=Net), images())) is None
