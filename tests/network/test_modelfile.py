"""A model file brings its network back whole; anything else is one clear error."""

import json
import resource
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from certtrain import load_model
from certtrain.errors import ModelFileError, StorageError
from certtrain.network.modelfile import KEY, read_model, write_model
from certtrain.spec.architecture import CNN, CNN7, MLP, Architecture, ResNeXt, WideResNet
from certtrain.spec.layers import Graph
from certtrain.storage import check_model_file
from helpers.tiny_classifier import SHAPE, metadata, network

LAYERS: list[dict[str, Any]] = [
    {"name": "conv", "type": "Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 3, "padding": 1},
    {"name": "part.bn", "type": "BatchNorm2d", "num_features": 1},
    {"name": "part.again", "type": "Shared", "layer": "conv"},
    {"name": "sum", "type": "Add", "inputs": ["part.again", "input"]},
    {"name": "relu", "type": "ReLU"},
    {"name": "scale", "type": "Normalize", "mean": [0.5], "std": [0.5]},
    {"name": "flat", "type": "Flatten"},
    {"name": "head", "type": "Linear", "in_features": 4, "out_features": 3},
]
GRAPH = Graph.model_validate({"name": "graph", "layers": LAYERS})
ARCHITECTURES: list[Architecture] = [
    GRAPH,
    MLP(name="mlp", hidden=(8, 4)),
    MLP(name="mlp", hidden=(8,), batch_norm=False),
    CNN(name="cnn", channels=(2, 3), kernels=(3, 3), strides=(1, 2), linear=(4,)),
    CNN(name="cnn", channels=(2,), kernels=(2,), strides=(1,), paddings=(0,)),
    CNN7(name="cnn7", width=2, linear_size=4, last_stride=2),
    WideResNet(name="wide-resnet", stem=2, widen_factor=1, linear_size=4),
    WideResNet(name="wide-resnet", stem=2, widen_factor=1, linear_size=4, batch_norm=False),
    ResNeXt(name="resnext", stem=2, bottleneck_width=1, blocks=(2, 1), strides=(1, 2), linear_size=4),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good model file."""
    described = metadata()
    write_model(tmp_path / "model.safetensors", network(described), described)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: str(a)[:40])
def test_a_saved_model_comes_back(architecture: Architecture, tmp_path: Path):
    described = metadata(architecture=architecture, note="untrained", results={"natural_accuracy": 0.5})
    original = network(described)
    write_model(tmp_path / "m.safetensors", original, described)
    loaded, x = load_model(tmp_path / "m.safetensors"), torch.rand(5, *SHAPE)
    assert loaded.metadata == described
    assert not loaded.training
    assert torch.equal(loaded(x), original(x))
    assert loaded.state_dict().keys() == original.state_dict().keys()
    assert all(isinstance(parameter, nn.Parameter) for parameter in loaded.parameters())


def test_a_path_may_be_text(path: Path):
    assert load_model(str(path)).metadata == metadata()


def test_weights_may_be_kept_in_bfloat16(tmp_path: Path):
    described = metadata()
    original = network(described)
    for layer in original.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight = nn.Parameter(layer.weight.detach().bfloat16())
    write_model(tmp_path / "m.safetensors", original, described)
    loaded, x = load_model(tmp_path / "m.safetensors"), torch.rand(5, *SHAPE)
    assert all(not t.is_floating_point() or t.dtype == torch.float32 for t in loaded.state_dict().values())
    assert torch.equal(loaded(x), original.float()(x))


def test_a_loaded_model_can_be_trained_on(path: Path):
    model = load_model(path)
    model(torch.rand(2, *SHAPE)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_saving_twice_gives_the_same_bytes(path: Path, tmp_path: Path):
    described = metadata()
    write_model(tmp_path / "again.safetensors", network(described), described)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_saving_leaves_one_readable_file(path: Path):
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
    assert path.stat().st_mode & stat.S_IRUSR


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match=r"cannot write .*model\.safetensors"):
        write_model(tmp_path / "file" / "model.safetensors", network(metadata()), metadata())
    assert (tmp_path / "file").read_text(encoding="utf-8") == "in the way"


# --- files that are no models ----------------------------------------------------------------------------


def test_a_missing_file_names_the_commands_that_write_one(tmp_path: Path):
    with pytest.raises(ModelFileError, match=r"there is no model file .*certtrain train"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError, match=r"there is no model file .*none\.onnx$"):
        check_model_file(tmp_path / "none.onnx")
    with pytest.raises(ModelFileError, match=r"is a folder; the model of a run is .*model\.safetensors"):
        read_model(tmp_path)


CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "a few bytes": lambda whole: whole[:7],
    "half a header": lambda whole: whole[:100],
    "truncated": lambda whole: whole[:-1],
    "too long": lambda whole: whole + b"\0",
    "noise": lambda whole: bytes((37 * i * i + 11) % 256 for i in range(4096)),
    "zeros": lambda whole: bytes(4096),
    "pickle": lambda whole: b"\x80\x04\x95cposix\nsystem\n(S'true'\ntR.",
    "text": lambda whole: b"not a model\n" * 100,
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_no_safetensors_file(name: str, path: Path):
    path.write_bytes(CONTENTS[name](path.read_bytes()))
    with pytest.raises(ModelFileError, match=r"model\.safetensors is not a complete safetensors file"):
        load_model(path)


@pytest.mark.parametrize("header", [None, {"format": "pt"}])
def test_a_foreign_safetensors_file(header: dict[str, str] | None, path: Path):
    save_file({"weight": torch.zeros(2, 2)}, path, header)
    with pytest.raises(ModelFileError, match="was not written by certtrain"):
        load_model(path)


# --- headers ---------------------------------------------------------------------------------------------


def with_header(path: Path, change: dict[str, Any]) -> Path:
    """The same tensors under a header with fields replaced."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[KEY]) | change
    save_file(load_file(path), path, {KEY: json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"surprise": 1}, "surprise"),
        ({"format": 2}, "format"),
        ({"architecture": {"name": "resnet"}}, "architecture"),
        ({"architecture": {"name": "mlp", "hidden": [0]}}, "hidden"),
        ({"architecture": {"name": "mlp", "hidden": [8], "extra": 1}}, "extra"),
        ({"input_shape": [1, 2]}, "input_shape"),
        ({"class_names": ["one"]}, "class_names"),
        ({"class_names": None}, "class_names"),
        ({"eps": 0}, "eps"),
        ({"eps": "NaN"}, "eps"),
    ],
)
def test_a_header_with_wrong_fields_names_them(change: dict[str, Any], field: str, path: Path):
    with pytest.raises(ModelFileError, match=rf"(?s)has a header that certtrain cannot read:.*{field}"):
        load_model(with_header(path, change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5"])
def test_a_header_that_is_no_object(text: str, path: Path):
    save_file(load_file(path), path, {KEY: text})
    with pytest.raises(ModelFileError, match="has a header that certtrain cannot read"):
        load_model(path)


HUGE = 10**9
GIGANTIC = {
    "hidden layer": {"architecture": {"name": "mlp", "hidden": [10**12]}},
    "two layers": {"architecture": {"name": "mlp", "hidden": [HUGE, HUGE]}},
    "beyond 64 bits": {"architecture": {"name": "mlp", "hidden": [10**30]}},
    "product beyond 64 bits": {"architecture": {"name": "mlp", "hidden": [10**18, 10**18]}},
    "wide": {"architecture": {"name": "cnn7", "width": HUGE}, "input_shape": [1, 8, 8]},
    "padding": {"architecture": {"name": "cnn", "channels": [2], "kernels": [3], "strides": [1], "paddings": [HUGE]}},
    "padding that is allowed": {
        "architecture": {"name": "cnn", "channels": [2**20], "kernels": [1], "strides": [1], "paddings": [1024]}
    },
    "residual": {"architecture": {"name": "wide-resnet", "stem": 2**20, "widen_factor": 2**20}},
    "groups": {"architecture": {"name": "resnext", "cardinality": 2**20, "bottleneck_width": 2**20}},
    "blocks": {"architecture": {"name": "wide-resnet", "blocks": [HUGE, 1, 1]}},
    "blocks that are allowed": {"architecture": {"name": "resnext", "blocks": [64] * 8, "strides": [1] * 8}},
    "stages": {"architecture": {"name": "resnext", "blocks": [1] * 1000, "strides": [1] * 1000}},
    "kernel": {"architecture": {"name": "cnn", "channels": [HUGE], "kernels": [3], "strides": [1]}},
    "images": {"input_shape": [1, HUGE, HUGE]},
    "channels": {"input_shape": [3 * 10**7, 2, 2]},
    "channels beyond 64 bits": {"input_shape": [10**30, 2, 2]},
    "negative images": {"input_shape": [1, -2, -2]},
    "negative channels": {"input_shape": [-1, 2, 2]},
    "no channels": {"input_shape": [0, 2, 2]},
}


def listed(*layers: dict[str, Any]) -> dict[str, Any]:
    """A header's change: an architecture of these layers."""
    return {"architecture": {"name": "graph", "layers": list(layers)}}


def line(count: int, **changes: Any) -> dict[str, Any]:
    """So many small convolutions in groups of groups, and a head that fits what they give, and the file's classes."""
    conv = {"type": "Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1} | changes
    names = (".".join(f"{letter}{number}" for letter in "abcdefgh") for number in range(count))
    return listed(*({"name": name} | conv for name in names), *LAYERS[-2:])


def one(kind: str, **fields: Any) -> dict[str, Any]:
    """One layer, before a head."""
    return listed({"name": "a", "type": kind} | fields, *LAYERS[-2:])


GIGANTIC |= {
    "many layers": line(1000),
    "too many layers": line(10**5),
    "wide layers": line(1000, in_channels=2**20, out_channels=2**20, kernel_size=2**20),
    "beyond 64 bits, a layer": one("Conv2d", in_channels=1, out_channels=10**30, kernel_size=1),
    "huge convolution": one("Conv2d", in_channels=1, out_channels=2**20, kernel_size=2**20, padding=2**19),
    "huge linear layer": listed(LAYERS[-2], {"name": "l", "type": "Linear", "in_features": 4, "out_features": 2**20}),
    "huge averages": one("AdaptiveAvgPool2d", output_size=2**20),
    "huge window": one("MaxPool2d", kernel_size=2**20, padding=2**19, stride=1),
    "huge padding": one("Conv2d", in_channels=1, out_channels=1, kernel_size=1, padding=2**20),
    "many means": one("Normalize", mean=[0.0] * 10**6, std=[1.0] * 10**6),
    "long name": one("ReLU", name="a" * 10**6),
    "deep name": one("ReLU", name=".".join("a" * 10**5)),
    "deep arguments": {
        "architecture": {"name": "graph", "layers": LAYERS, "origin": json.loads('{"a":' * 900 + "1" + "}" * 900)}
    },
    "cycle": listed(LAYERS[0] | {"inputs": ["head"]}, *LAYERS[-2:]),
    "itself": listed(LAYERS[0] | {"inputs": ["conv"]}, *LAYERS[-2:]),
    "inputs": listed(LAYERS[0] | {"inputs": ["input"] * 10**5}, *LAYERS[-2:]),
    "python": one("eval"),
    "dunder": one("__import__"),
    "torch's own": one("ReLU", name="forward"),
    "our own": one("ReLU", name="_graph"),
    "code": {"architecture": {"name": "module", "source": "evil.py:Net"}},
}


@pytest.mark.parametrize("name", GIGANTIC)
def test_a_header_that_asks_for_a_gigantic_network_costs_nothing(name: str, path: Path):
    with_header(path, GIGANTIC[name])
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError, match=r"model\.safetensors (does not contain|has a header)"):
        load_model(path)
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_no_code_is_run_that_a_file_names(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('it was run')\n", encoding="utf-8")
    module = {"name": "module", "source": "evil.py:Net"}
    with pytest.raises(ModelFileError, match="'module' is not known; choose from: "):
        load_model(with_header(path, {"architecture": module}))
    described = metadata(architecture=GRAPH)
    write_model(path, network(described), described)
    origin = {"source": "evil.py:Net"}
    change = {"architecture": described.model_dump(mode="json")["architecture"] | {"origin": origin}}
    assert load_model(with_header(path, change | {"preset": {"model": module}})).metadata.preset == {"model": module}


# --- tensors ---------------------------------------------------------------------------------------------


def with_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """The same header over changed tensors."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, header)
    return path


def put(name: str, value: float) -> Callable[[dict[str, Tensor]], object]:
    """Write `value` into the first entry of a tensor."""
    return lambda tensors: tensors[name].view(-1)[0].fill_(value)


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("head.bias"), r"head\.bias"),
    "extra": (lambda t: t.update(more=torch.zeros(1)), "more"),
    "wrong shape": (lambda t: t.update({"head.weight": torch.zeros(3, 9)}), r"head\.weight.*\(3, 9\), not \(3, 8\)"),
    "transposed": (lambda t: t.update({"head.weight": t["head.weight"].T.contiguous()}), r"head\.weight.*\(8, 3\)"),
    "wrong type": (lambda t: t.update({"head.bias": t["head.bias"].double()}), r"head\.bias.*float64"),
    "NaN weight": (put("head.weight", torch.nan), r"head\.weight holds NaN or infinity"),
    "infinite bias": (put("linear1.bias", -torch.inf), r"linear1\.bias holds NaN or infinity"),
    "NaN statistics": (put("linear1_bn.running_mean", torch.nan), r"running_mean holds NaN"),
    "negative variance": (put("linear1_bn.running_var", -1.0), r"running_var is negative"),
    "negative deviation": (put("normalize.std", -0.5), r"normalize\.std is negative"),
    "no deviation": (put("normalize.std", 0.0), r"normalize\.std holds a zero"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_that_do_not_fit_are_named(name: str, path: Path):
    change, message = CHANGES[name]
    with pytest.raises(ModelFileError, match=rf"does not contain the network that its header describes: .*{message}"):
        load_model(with_tensors(path, change))


GRAPH_CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("network.conv.bias"), r"network\.conv\.bias"),
    "shared": (lambda t: t.update({"network.part.again.bias": torch.zeros(1)}), r"network\.part\.again\.bias"),
    "unprefixed": (lambda t: t.update({"conv.bias": torch.zeros(1)}), r"conv\.bias"),
    "wrong shape": (lambda t: t.update({"network.head.bias": torch.zeros(4)}), r"head\.bias is .*\(4,\), not \(3,\)"),
    "NaN weight": (put("network.conv.weight", torch.nan), r"network\.conv\.weight holds NaN"),
    "negative variance": (put("network.part.bn.running_var", -1.0), r"running_var is negative"),
    "no deviation": (put("network.scale.std", 0.0), r"network\.scale\.std holds a zero"),
}


@pytest.mark.parametrize("name", GRAPH_CHANGES)
def test_tensors_that_do_not_fit_the_layers_are_named(name: str, path: Path):
    change, message = GRAPH_CHANGES[name]
    described = metadata(architecture=GRAPH)
    write_model(path, network(described), described)
    assert load_model(with_tensors(path, lambda tensors: None)).metadata == described
    with pytest.raises(ModelFileError, match=rf"does not contain the network that its header describes: .*{message}"):
        load_model(with_tensors(path, change))


def test_the_checked_file_is_good_before_it_is_changed(path: Path):
    assert load_model(with_tensors(with_header(path, {}), lambda tensors: None)).metadata == metadata()
