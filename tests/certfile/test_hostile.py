"""Files made to do harm: each ends in one clear error, at once, without much memory and without a traceback."""

import json
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from certtrain import cli, load_model
from certtrain.data import load_images
from certtrain.errors import CerttrainError, ModelFileError, RunError
from certtrain.network.assembly import describe
from certtrain.network.modelfile import KEY, write_model
from certtrain.network.models import InputSpec, build_model
from certtrain.spec.preset import load_preset
from helpers.tiny_classifier import metadata, network

Header = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file, of a small network for digits."""
    train, preset = load_images("digits", "train"), load_preset("digits", {"model": {"name": "mlp", "hidden": [8]}})
    described = describe(preset, train)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build_model(described.architecture, InputSpec(described.input_shape, 10, (0.3,), (0.4,)))
    write_model(tmp_path / "model.safetensors", made, described)
    return tmp_path / "model.safetensors"


def parts(path: Path) -> tuple[Header, bytes]:
    """The header of a safetensors file, and the tensors' bytes."""
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def put(path: Path, header: Header | bytes, body: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)


def described(header: Header, **changes: Any) -> Header:
    """The header with fields of the metadata replaced."""
    about = json.loads(header["__metadata__"][KEY]) | changes
    return header | {"__metadata__": {KEY: json.dumps(about)}}


def tensor(header: Header, **changes: Any) -> Header:
    """The header with another description of one tensor."""
    return header | {"head.bias": header["head.bias"] | changes}


def renamed(header: Header, name: str) -> Header:
    return {name if key == "head.bias" else key: value for key, value in header.items()}


def refused(path: Path, kind: type[CerttrainError] = ModelFileError) -> str:
    """The error's message, which must come within seconds and cost little."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kind) as caught:
        load_model(path)
    assert time.process_time() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_a_file_cut_anywhere_is_not_whole(path: Path):
    whole = path.read_bytes()
    for size in {*range(0, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:size])
        assert "is not a complete safetensors file" in refused(path)


@pytest.mark.parametrize("length", [0, 1, 2**20, 10**8, 2**31, 2**63, 2**64 - 1])
def test_a_header_whose_length_is_a_lie(length: int, path: Path):
    put(path, *parts(path), length)
    assert "is not a complete safetensors file" in refused(path)


@pytest.mark.parametrize("header", [b"[" * 10**6, b"{" * 10**6, b'{"a":' * 10**5, b'{"\xff": 1}', b"null", b"{}"])
def test_a_header_that_is_no_header(header: bytes, path: Path):
    put(path, header, b"")
    assert "not a complete safetensors file" in refused(path) or header == b"{}"


TENSORS: dict[str, Header] = {
    "beyond the end": {"data_offsets": [0, 10**15]},
    "before the start": {"data_offsets": [-8, 32]},
    "over another": {"data_offsets": [0, 40]},
    "backwards": {"data_offsets": [40, 0]},
    "of many values": {"shape": [2**62, 2**62]},
    "of many times none": {"shape": [2**62, 0]},
    "of less than none": {"shape": [-10]},
    "of no known type": {"dtype": "XX"},
    "of bytes": {"dtype": "BOOL", "shape": [40]},
    "of whole numbers": {"dtype": "I64", "shape": [5]},
    "of complex numbers": {"dtype": "C64", "shape": [5]},
    "of eight bits": {"dtype": "F8_E4M3", "shape": [40]},
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_described_wrongly(name: str, path: Path):
    header, body = parts(path)
    put(path, tensor(header, **TENSORS[name]), body)
    assert "safetensors file" in (message := refused(path)) or "head.bias is torch." in message


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "head.bias\0", "\x1b[2J", "", "a" * 200])
def test_a_tensor_with_another_name(name: str, path: Path):
    header, body = parts(path)
    put(path, renamed(header, name), body)
    assert "its tensors differ in" in refused(path)


EMPTY: Header = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
LARGE: dict[str, Callable[[Header], Header]] = {
    "many layers": lambda h: described(
        h, architecture={"name": "graph", "layers": [{"name": f"r{n}", "type": "ReLU"} for n in range(2 * 10**5)]}
    ),
    "many units": lambda h: described(h, architecture={"name": "mlp", "hidden": [1024] * 10**6}),
    "many tensors": lambda h: h | dict.fromkeys((f"t{n}" for n in range(10**5)), EMPTY),
    "many entries": lambda h: h | {"__metadata__": h["__metadata__"] | {f"k{n}": "" for n in range(4 * 10**5)}},
    "many classes": lambda h: described(h, class_names=[str(n) for n in range(6 * 10**5)]),
    "a long note": lambda h: described(h, note="n" * 10**7),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_header_of_many_megabytes_is_not_read(name: str, path: Path):
    header, body = parts(path)
    put(path, LARGE[name](header), body)
    assert "bytes; certtrain reads at most 4,194,304" in refused(path)


MANY: dict[str, Header] = {
    "linear layers": {"name": "mlp", "hidden": [1] * 10**4},
    "convolutions": {"name": "cnn", "channels": [1] * 10**4, "kernels": [1] * 10**4, "strides": [1] * 10**4},
    "linear layers after one": {
        "name": "cnn", "channels": [1], "kernels": [1], "strides": [1], "linear": [1] * 10**4
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MANY)
def test_ten_thousand_layers_are_not_built(name: str, path: Path):
    header, body = parts(path)
    put(path, described(header, architecture=MANY[name]), body)
    assert "a list of at most 256" in refused(path)


def test_a_long_name_of_a_data_set_is_not_repeated(path: Path):
    header, body = parts(path)
    put(path, described(header, dataset="d" * 10**6), body)
    assert "dataset" in refused(path)


@pytest.mark.parametrize(
    "name", ["", "\0", "nul\0.safetensors", "a" * 5000, "/dev/null", "/dev/zero", "/proc/self/mem"]
)
def test_a_path_that_is_no_model_file(name: str, tmp_path: Path):
    with pytest.raises((ModelFileError, RunError)):  # the first is a folder without a run
        load_model(str(tmp_path / name))


# --- at the command line ---------------------------------------------------------------------------------


def said(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one error that the command ends in."""
    monkeypatch.setattr(sys, "argv", ["certtrain", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("command", ["verify", "stats", "export"])
@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc", "a\0b", ""])
def test_the_name_of_a_data_set_is_no_path(name: str, command: str, path: Path, monkeypatch, capsys):
    header, body = parts(path)
    put(path, described(header, dataset=name), body)
    assert "there is no data set" in said([command, str(path)], monkeypatch, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": {}}, "holds a preset that certtrain cannot read"),
        ({"preset": json.loads('{"a":' * 150 + "1" + "}" * 150)}, "holds a preset that certtrain cannot read"),
        ({"class_names": ["\x1b[2J[bold]", *"123456789"]}, r"\x1b[2J[bold]"),
        ({"class_names": ["\0", *"123456789"]}, r"\x00"),
        ({"input_shape": [1, 4, 16]}, "the model takes (1, 4, 16)"),
    ],
)
def test_what_a_header_says_is_shown_and_not_obeyed(change: Header, message: str, path: Path, monkeypatch, capsys):
    header, body = parts(path)
    put(path, described(header, **change), body)
    text = said(["verify", str(path)], monkeypatch, capsys)
    assert message in text
    assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize("name", ["head.weight", "linear1.weight"])
def test_weights_that_overflow_certify_nothing(name: str, path: Path, monkeypatch, capsys):
    header = parts(path)[0]["__metadata__"]
    tensors = load_file(path)
    tensors[name].fill_(3e38)
    save_file(tensors, path, header)
    monkeypatch.setattr(sys, "argv", ["certtrain", "verify", str(path), "--limit", "20", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)["certified"] == 0


def test_a_damaged_file_ends_the_real_command_with_one_line(tmp_path: Path):
    write_model(tmp_path / "m.safetensors", network(metadata()), metadata())
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:-5])
    command = [sys.executable, "-m", "certtrain", "verify", str(tmp_path / "m.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "is not a complete safetensors file" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
