"""Programs of torch.export: read as what they compute, and refused where something is not known."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.supported import checked_graph
from certtrain.errors import ModelFileError, UnsupportedLayer
from certtrain.interchange.program import read_program
from certtrain.network.graphs import GraphNetwork
from helpers.foreign_networks import changed_program, in_json, save_program


class Written(nn.Module):
    """A network whose forward pass is the given function of (module, x); it has layers for it."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(64, 3)
        self.narrow, self.pooled, self.wide = nn.Linear(16, 3), nn.Linear(4, 3), nn.Linear(128, 3)
        self.side, self.flat_norm = nn.Conv2d(2, 4, 1, stride=1, bias=False), nn.BatchNorm1d(64)
        self.register_buffer("mean", torch.tensor([0.4, 0.6]).view(1, 2, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3]).view(2, 1, 1), persistent=False)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _head(net: Any, x: Tensor) -> Tensor:
    return net.head(torch.flatten(x, 1))


def _twice_after_relu(net: Any, x: Tensor) -> Tensor:
    x = net.conv(x)
    return _head(net, torch.relu_(x) + x)


SUPPORTED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "normalised inside": lambda net, x: _head(net, net.conv((x - net.mean) / net.std)),
    "scaled and shifted": lambda net, x: _head(net, net.conv(x * 2.5 + 0.3 - 0.1)),
    "batch norms": lambda net, x: net.head(net.flat_norm(torch.flatten(net.norm(net.conv(x)), 1))),
    "a skip connection": lambda net, x: _head(net, F.relu(net.conv(x) + net.side(x))),
    "in place": lambda net, x: _head(net, F.relu(net.conv(x), inplace=True)),
    "a sum in place": lambda net, x: _head(net, net.conv(x).add_(net.side(x))),
    "in place, and then used twice": _twice_after_relu,
    "pools": lambda net, x: net.narrow(F.max_pool2d(net.conv(x), 2).flatten(1)),
    "averages": lambda net, x: net.narrow(F.avg_pool2d(net.conv(x), 2).flatten(1)),
    "one mean for a channel": lambda net, x: net.pooled(net.conv(x).mean((2, 3))),
    "an adaptive mean": lambda net, x: net.pooled(torch.flatten(F.adaptive_avg_pool2d(net.conv(x), 1), 1)),
    "a view": lambda net, x: net.head(net.conv(x).view(x.shape[0], -1)),
    "a reshape": lambda net, x: net.head(net.conv(x).reshape(-1, 64)),
    "a permutation": lambda net, x: _head(net, net.conv(x).permute(0, 2, 3, 1)),
    "joined": lambda net, x: net.wide(torch.flatten(torch.cat([net.conv(x), net.side(x)], 1), 1)),
    "dropout": lambda net, x: _head(net, F.dropout(net.conv(x), 0.5, training=net.training)),
    **{
        name: lambda net, x, function=function: _head(net, function(net.conv(x)))
        for name, function in {
            "leaky relu": lambda x: F.leaky_relu(x, 0.2),
            "elu": lambda x: F.elu(x, 0.7),
            "gelu": F.gelu,
            "silu": F.silu,
            "softplus": lambda x: F.softplus(x, 2.0),
            "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.4),
            "relu6": F.relu6,
            "clamp": lambda x: torch.clamp(x, min=-0.2, max=0.5),
            "sigmoid": torch.sigmoid,
            "tanh": torch.tanh,
        }.items()
    },
}


@pytest.mark.parametrize("case", SUPPORTED)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_program_is_read_as_what_it_computes(case: str, batch: int, tmp_path: Path) -> None:
    network = Written(SUPPORTED[case])
    network(torch.randn(8, 2, 4, 4))  # the BatchNorms have seen a batch
    path = save_program(network.eval(), tmp_path / "net.pt2", (2, 4, 4), batch)
    found = read_program(path)
    assert (found.shape, found.outputs) == ((2, 4, 4), 3)
    made = GraphNetwork(found.data.graph)
    made.load_state_dict(found.data.state)
    x = torch.randn(5, 2, 4, 4)
    assert torch.allclose(made.eval()(x), network(x), rtol=1e-5, atol=1e-6)
    checked_graph(made, found.shape)


def _overwritten_view(net: Any, x: Tensor) -> Tensor:
    x = net.conv(x)
    flat = torch.flatten(x, 1)
    torch.relu_(x)
    return net.head(flat)


REFUSED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "an operator without a rule": lambda net, x: _head(net, torch.sin(net.conv(x))),
    "a product of results": lambda net, x: _head(net, net.conv(x) * net.side(x)),
    "a view of a value that is overwritten": _overwritten_view,
    "an input that is overwritten": lambda net, x: _head(net, net.conv(torch.relu_(x))),
    "images that are mixed": lambda net, x: _head(net, net.conv(x).flip(0)),
    "a division by a negative number": lambda net, x: _head(net, net.conv(x) / -2),
    "a constant for each pixel": lambda net, x: _head(net, net.conv(x) + torch.ones_like(x[:1, :1])),
    "two outputs": lambda net, x: (_head(net, net.conv(x)), x),  # type: ignore[dict-item, return-value]
    "a GELU by tanh": lambda net, x: _head(net, F.gelu(net.conv(x), approximate="tanh")),
    "no logits": lambda net, x: net.conv(x),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_refused(case: str, tmp_path: Path) -> None:
    path = save_program(Written(REFUSED[case]).eval(), tmp_path / "net.pt2", (2, 4, 4))
    with pytest.raises(UnsupportedLayer):
        read_program(path)


def test_a_network_in_training_mode_is_refused(tmp_path: Path) -> None:
    for case in ("batch norms", "dropout"):
        path = save_program(Written(SUPPORTED[case]).train(), tmp_path / "net.pt2", (2, 4, 4))
        with pytest.raises(UnsupportedLayer):
            read_program(path)


# --- hostile files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    return save_program(Written(SUPPORTED["normalised inside"]).eval(), folder / "net.pt2", (2, 4, 4))


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickles_in_the_archive_are_never_loaded(good: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    torch.save(_Payload(touched), tmp_path / "payload.pt")
    payload = (tmp_path / "payload.pt").read_bytes()
    path = changed_program(good, lambda name, data: payload if name.endswith("sample_inputs/model.pt") else data)
    assert read_program(path).outputs == 3
    pickled = changed_program(good, lambda name, data: payload if "/weight_" in name else data)
    with pytest.raises((ModelFileError, UnsupportedLayer)):
        read_program(pickled)
    said = changed_program(good, lambda name, data: data.replace(b'"use_pickle": false', b'"use_pickle": true'))
    with pytest.raises(UnsupportedLayer, match="pickled"):
        read_program(said)
    assert not touched.exists()


def _expression(program: Any) -> None:
    text = "__import__('os').system('touch hacked')"
    described = program["graph_module"]["graph"]["tensor_values"]
    for name in ("x",):
        described[name]["sizes"][1] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}


def _weights(change: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    return in_json(lambda config: change(config["config"]["conv.weight"]), "model_weights_config.json")


def _without_nodes(program: Any) -> None:
    program["graph_module"]["graph"]["nodes"] = []


def _other_output(program: Any) -> None:
    """An earlier result as the signature's output."""
    module = program["graph_module"]
    earlier = module["graph"]["nodes"][-1]["inputs"][0]["arg"]["as_tensor"]
    module["signature"]["output_specs"][0]["user_output"]["arg"]["as_tensor"].update(earlier)


def _other_inputs(program: Any) -> None:
    """Two parameters of the signature with each other's names in the graph."""
    specs = program["graph_module"]["signature"]["input_specs"]
    first, second = [about for spec in specs if (about := spec.get("parameter"))][-2:]
    first["arg"], second["arg"] = second["arg"], first["arg"]


def _renamed(program: Any) -> None:
    """A node whose first argument has a name that its operator does not know."""
    program["graph_module"]["graph"]["nodes"][-1]["inputs"][0]["name"] = "other"


def _twice(program: Any) -> None:
    """A node with two values of one argument."""
    inputs = program["graph_module"]["graph"]["nodes"][-1]["inputs"]
    inputs.append(dict(inputs[0]))


def test_an_argument_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    """Without the lower limit, torch takes the upper one for it."""
    network = nn.Sequential(nn.Hardtanh(-0.3, 0.5), nn.Flatten(), nn.Linear(32, 3)).eval()
    path, x = save_program(network, tmp_path / "net.pt2", (2, 4, 4)), torch.rand(2, 2, 4, 4)

    def left_out(program: Any) -> None:
        program["graph_module"]["graph"]["nodes"][0]["inputs"].pop(1)

    changed = changed_program(path, in_json(left_out))
    program: Any = torch.export.load(changed).module()
    assert torch.allclose(program(x), network[1:](x.clamp(0.5, 1.0)), atol=1e-6), "torch goes by places"
    with pytest.raises(UnsupportedLayer, match="are not the first of"):
        read_program(changed)


def test_an_argument_that_the_operator_does_not_have_is_refused(tmp_path: Path) -> None:
    """Torch ignores it; for `view` it would be the shape."""
    network = Written(lambda net, x: net.head(net.conv(x).reshape(1, 64))).eval()
    path = save_program(network, tmp_path / "net.pt2", (2, 4, 4), batch=1)

    def added(program: Any) -> None:
        (found,) = [n for n in program["graph_module"]["graph"]["nodes"] if n["target"].endswith("reshape.default")]
        found["inputs"].append({"name": "size", "arg": {"as_ints": [1, 64]}, "kind": 2})

    with pytest.raises(UnsupportedLayer, match="no argument 'size'"):
        read_program(changed_program(path, in_json(added)))


HOSTILE: dict[str, Callable[[str, bytes], bytes | None]] = {
    "code in a size": in_json(_expression),
    "another version": in_json(lambda program: program["schema_version"].update(major=9)),
    "no signature": in_json(lambda program: program["graph_module"].pop("signature")),
    "no nodes": in_json(_without_nodes),
    "nodes that are no list": in_json(lambda program: program["graph_module"]["graph"].update(nodes=7)),
    "another output": in_json(_other_output),
    "other inputs": in_json(_other_inputs),
    "an unknown argument": in_json(_renamed),
    "an argument twice": in_json(_twice),
    "a list": lambda name, data: b"[]" if name.endswith("model.json") else data,
    "deep JSON": lambda name, data: b"[" * 100_000 if name.endswith("model.json") else data,
    "no JSON": lambda name, data: data[:100] if name.endswith("model.json") else data,
    "weights elsewhere": _weights(lambda entry: entry.update(path_name="../../models/model.json")),
    "a negative size": _weights(lambda entry: entry["tensor_meta"]["sizes"][0].update(as_int=-4)),
    "a huge size": _weights(lambda entry: entry["tensor_meta"]["sizes"][0].update(as_int=2**40)),
    "an offset outside": _weights(lambda entry: entry["tensor_meta"]["storage_offset"].update(as_int=10**6)),
    "strides outside": _weights(lambda entry: entry["tensor_meta"]["strides"][0].update(as_int=10**6)),
    "short weights": lambda name, data: data[: len(data) // 2] if "/weight_0" in name else data,
    "weights that are not finite": lambda name, data: b"\xff" * len(data) if "/weight_0" in name else data,
    "no weights": lambda name, data: None if "/weight_0" in name else data,
    "another byte order": lambda name, data: b"big" if name.endswith("byteorder") else data,
    "another format": lambda name, data: b"aot" if name.endswith("archive_format") else data,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_clear_errors(case: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ModelFileError, UnsupportedLayer), match=r"pt2"):
        read_program(changed_program(good, HOSTILE[case]))
    assert not (tmp_path / "hacked").exists()


def test_other_files_are_clear_errors(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.pt2", "w") as file:
        file.writestr("a/models/model.json", "{}")
        file.writestr("b/models/model.json", "{}")
    torch.save({"w": torch.ones(2)}, tmp_path / "state.pt2")
    (tmp_path / "text.pt2").write_text("hello")
    for name in ("two", "state", "text", "absent"):
        with pytest.raises(ModelFileError, match=f"{name}.pt2"):
            read_program(tmp_path / f"{name}.pt2")
