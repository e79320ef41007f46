"""ONNX files as they lie on a disk: packed, with weights beside them, with other endings, and hostile."""

import gzip
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from certtrain.errors import CerttrainError, ModelFileError, PropertyError, UnsupportedLayer
from certtrain.interchange import onnxload, vnnlib
from certtrain.interchange.onnxfile import open_network, read_onnx
from certtrain.interchange.packed import ending, read_whole
from certtrain.interchange.vnnlib import read_property
from helpers.onnx_files import agrees, node, random, save

onnx = pytest.importorskip("onnx", reason='ONNX is not installed: pip install "certtrain[onnx]"')

W, B = random(4, 3), random(3, seed=1)
PROPERTY = """(declare-const X_0 Real)
(declare-const Y_0 Real)
(assert (<= X_0 1.0))
(assert (>= X_0 0.0))
(assert (>= Y_0 0.5))
"""


def plain(folder: Path) -> Path:
    return save(folder, [node("Gemm", "x w b", "y")], ["n", 4], ["n", 3], w=W, b=B)


def split(folder: Path, location: str = "net.onnx.data") -> Path:
    """The same network, its weights in a file beside it."""
    path = plain(folder)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    """What the file says of its first tensor, changed."""
    proto = onnx.load(path, load_external_data=False)
    change(proto.graph.initializer[0])
    path.write_bytes(proto.SerializeToString())
    return path


def says(key: str, value: str) -> Callable[[Any], None]:
    def change(tensor: Any) -> None:
        entries = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
        del tensor.external_data[:]
        for name, text in entries.items():
            tensor.external_data.add(key=name, value=text)

    return change


# --- weights in another file --------------------------------------------------------------------------------


def test_weights_beside_the_network_are_read(tmp_path: Path) -> None:
    found = agrees(split(tmp_path))
    assert any(torch.equal(tensor, W.T) for tensor in found.network.parameters())


def test_weights_in_a_folder_inside_are_read(tmp_path: Path) -> None:
    path = split(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "net.onnx.data").rename(tmp_path / "data/w")
    for number in range(2):
        proto = onnx.load(path, load_external_data=False)
        says("location", "data/w")(proto.graph.initializer[number])
        path.write_bytes(proto.SerializeToString())
    assert any(torch.equal(tensor, W.T) for tensor in read_onnx(path).network.parameters())


def test_weights_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    read_onnx(Path("../net.onnx"))
    monkeypatch.chdir(tmp_path)
    read_onnx(Path("net.onnx"))


@pytest.mark.parametrize("location", ["../net.onnx.data", "/etc/passwd", "a/../../b", "C:\\w", "..\\w", ""])
def test_a_path_that_leads_out_is_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = changed(split(tmp_path / "in"), says("location", location))
    (tmp_path / "net.onnx.data").write_bytes(bytes(1000))
    with pytest.raises(ModelFileError, match=r"net.onnx keeps the tensor 'w' in another file: .*only files there are"):
        read_onnx(path)


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = split(tmp_path / "in")
    (tmp_path / "in/net.onnx.data").rename(tmp_path / "secret")
    (tmp_path / "in/net.onnx.data").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelFileError, match="is a link that leads out of the network's own folder"):
        read_onnx(path)
    (tmp_path / "link.onnx").symlink_to(path)  # the network itself may be a link; its folder is the link's
    with pytest.raises(ModelFileError, match=r"there is no file 'net\.onnx\.data' beside it"):
        read_onnx(tmp_path / "link.onnx")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    path = split(tmp_path)
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(ModelFileError, match=r"there is no file 'net.onnx.data' beside it. Copy both files together"):
        read_onnx(path)
    os.mkfifo(tmp_path / "net.onnx.data")  # which would be waited for
    with pytest.raises(ModelFileError, match="there is no file"):
        read_onnx(path)


def test_a_short_file_is_refused(tmp_path: Path) -> None:
    path = split(tmp_path)
    (tmp_path / "net.onnx.data").write_bytes((tmp_path / "net.onnx.data").read_bytes()[:20])
    with pytest.raises(ModelFileError, match=r"ends too early: 48 bytes are expected from byte 0 on"):
        read_onnx(path)


@pytest.mark.parametrize(("key", "value"), [("length", "47"), ("offset", "-4"), ("offset", "x"), ("length", "1e3")])
def test_places_that_cannot_be_are_refused(key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"net\.onnx keeps the tensor 'w' in another file"):
        read_onnx(changed(split(tmp_path), says(key, value)))


@pytest.mark.parametrize("sides", [[2**40, 2**40], [-1, 3], [2**28 + 1]])
def test_a_shape_that_cannot_be_is_refused_before_anything_is_read(sides: list[int], tmp_path: Path) -> None:
    def change(tensor: Any) -> None:
        del tensor.dims[:]
        tensor.dims.extend(sides)

    with pytest.raises(ModelFileError, match="268,435,456 values are the limit"):
        read_onnx(changed(split(tmp_path), change))


def test_all_tensors_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = split(tmp_path)
    monkeypatch.setattr(onnxload, "_bytes", lambda path: path.read_bytes())
    monkeypatch.setattr(onnxload, "MOST_FILE_BYTES", 50)
    with pytest.raises(ModelFileError, match=r"tensor 'b' in another file: its tensors have more than"):
        read_onnx(path)


# --- packed files, endings, and a mark at the beginning -----------------------------------------------------


@pytest.mark.parametrize("name", ["net.onnx", "NET.ONNX", "net.onnx.gz", "Net.Onnx.GZ"])
def test_endings_in_any_case_and_packed_files_open(name: str, tmp_path: Path) -> None:
    data = plain(tmp_path).read_bytes()
    (tmp_path / "net.onnx").unlink()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    network, shape = open_network(tmp_path / name)
    assert shape == (4,)
    assert torch.allclose(network(torch.ones(1, 4)), W.sum(0) + B)


def test_a_packed_network_has_its_weights_beside_it(tmp_path: Path) -> None:
    path = split(tmp_path)
    (tmp_path / "net.onnx.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_onnx(tmp_path / "net.onnx.gz").shape == (4,)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxload, "MOST_UNPACKED", 2**20)
    monkeypatch.setattr(vnnlib, "MOST_PROPERTY_BYTES", 2**20)
    for name in ("net.onnx.gz", "p.vnnlib.gz"):
        (tmp_path / name).write_bytes(gzip.compress(bytes(2**25)))
    message = "is larger than 1 MiB once it is unpacked, the limit"
    with pytest.raises(ModelFileError, match=f"net.onnx.gz is not read: it {message}"):
        read_onnx(tmp_path / "net.onnx.gz")
    with pytest.raises(PropertyError, match=message):
        read_property(tmp_path / "p.vnnlib.gz")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"no gzip", lambda data: data[:20] + b"!" * 99]
)
def test_damaged_packed_files_are_errors(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "net.onnx.gz").write_bytes(damage(gzip.compress(plain(tmp_path).read_bytes())))
    with pytest.raises(ModelFileError, match=r"the network .*net\.onnx\.gz cannot be read"):
        read_onnx(tmp_path / "net.onnx.gz")
    (tmp_path / "p.vnnlib.gz").write_bytes(damage(gzip.compress(PROPERTY.encode())))
    with pytest.raises(PropertyError, match=r"p\.vnnlib\.gz cannot be read"):
        read_property(tmp_path / "p.vnnlib.gz")


@pytest.mark.parametrize("name", ["p.vnnlib", "P.VNNLIB", "p.vnnlib.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_properties_may_be_packed_and_begin_with_a_mark(name: str, mark: bytes, tmp_path: Path) -> None:
    data = mark + PROPERTY.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_property(tmp_path / name).inputs == 1


def test_a_property_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.vnnlib").write_bytes(b"\xff\xfe")
    with pytest.raises(PropertyError, match=r"p\.vnnlib cannot be read: .*utf-8"):
        read_property(tmp_path / "p.vnnlib")


def test_no_more_than_the_limit_is_ever_in_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        read_whole(tmp_path / "bomb.gz", 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_the_limit_itself_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_whole(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="larger than"):
        read_whole(tmp_path / "a", 4)
    assert ending(Path("x/Net.v1.ONNX.gz")) == ".onnx"
    assert ending(Path("model.safetensors")) == ".safetensors"


# --- constants that would fill memory -----------------------------------------------------------------------


def test_constants_that_are_computed_are_bounded(tmp_path: Path) -> None:
    nodes = [node("ConstantOfShape", "s", "c"), node("Add", "x c", "y")]
    path = save(tmp_path, nodes, ["n", 4], ["n", 4], s=torch.tensor([2**31, 2**31]))
    with pytest.raises(UnsupportedLayer, match=r"\(ConstantOfShape\): it makes up to 4,611,686,018,427,387,904 values"):
        read_onnx(path)
    nodes = [node("Mul", "a b", "c"), node("Add", "x c", "y")]
    path = save(tmp_path, nodes, ["n", 4], ["n", 4], a=torch.ones(2**15, 1), b=torch.ones(1, 2**15))
    with pytest.raises(UnsupportedLayer, match=r"\(Mul\): it makes up to"):
        read_onnx(path)


def test_flipped_bytes_of_a_split_network_never_raise_anything_else(tmp_path: Path) -> None:
    path = split(tmp_path)
    whole, generator, messages = path.read_bytes(), torch.Generator().manual_seed(0), list[str]()
    for _ in range(150):
        data = bytearray(whole)
        for place in torch.randint(0, len(data), (2,), generator=generator).tolist():
            data[place] ^= 1 << int(torch.randint(0, 8, (), generator=generator))
        path.write_bytes(bytes(data))
        try:
            read_onnx(path)
        except CerttrainError as error:
            messages.append(str(error))
    assert messages
    assert all("net.onnx" in message for message in messages)
