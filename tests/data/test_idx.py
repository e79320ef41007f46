import gzip
import os
import struct
from pathlib import Path

import pytest
import torch

from certtrain.data import load_images
from certtrain.data.idx import read_idx
from certtrain.errors import DataError

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(*shape: int, values: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


PIXELS = bytes(range(12))
IMAGE_FILE, LABEL_FILE = idx(2, 2, 3, values=PIXELS), idx(2, values=bytes([7, 0]))


def write_pair(folder: Path, *, packed: bool = False) -> Path:
    folder.mkdir(parents=True)
    for name, content in ((IMAGES, IMAGE_FILE), (LABELS, LABEL_FILE)):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", [".", "raw", "MNIST/raw"])
def test_mnist_is_read_where_it_lies(tmp_path, packed, place):
    root = tmp_path / "data"
    folder = write_pair(root / place, packed=packed)
    before = sorted(os.listdir(folder))
    folder.chmod(0o555)
    found = load_images("mnist", "test", data_dir=root)
    assert found.images.tolist() == [[[[0, 1, 2], [3, 4, 5]]], [[[6, 7, 8], [9, 10, 11]]]]
    assert found.labels.tolist() == [7, 0]
    assert found.labels.dtype == torch.int64
    assert found.class_names == tuple("0123456789")
    assert sorted(os.listdir(folder)) == before
    folder.chmod(0o755)


def test_fashion_mnist_has_its_own_place_and_names(tmp_path):
    write_pair(tmp_path / "FashionMNIST" / "raw")
    found = load_images("fashion-mnist", "test", data_dir=tmp_path)
    assert (found.class_names[0], found.class_names[7], len(found.class_names)) == (
        "T-shirt/top",
        "Sneaker",
        10,
    )
    with pytest.raises(DataError, match="mnist not found"):
        load_images("mnist", "test", data_dir=tmp_path)


def test_splits_are_not_mixed_up(tmp_path):
    folder = write_pair(tmp_path / "data")
    with pytest.raises(DataError, match=r"looked for train-images-idx3-ubyte .* in .*data"):
        load_images("mnist", "train", data_dir=folder)


def test_plain_content_under_a_gz_name_is_read(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(LABEL_FILE)
    assert read_idx(path, 1).tolist() == [7, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGE_FILE[:-1], r"needs 12 bytes of values, but it holds 11"),
        (IMAGE_FILE + b"\0", r"needs 12 bytes of values, but it holds 13"),
        (IMAGE_FILE[:15], "not an idx file of uint8 values in 3 dimensions"),
        (b"", "not an idx file"),
        (LABEL_FILE, "not an idx file of uint8 values in 3 dimensions"),
        (bytes([0, 0, 9, 3]) + IMAGE_FILE[4:], "not an idx file of uint8"),
        (gzip.compress(IMAGE_FILE, mtime=0)[:-12], "cannot be read"),
        (gzip.compress(IMAGE_FILE, mtime=0)[:-8] + bytes(8), "cannot be read"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, content, message):
    path = tmp_path / IMAGES
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_an_empty_set_is_refused(tmp_path):
    (tmp_path / IMAGES).write_bytes(idx(0, 2, 3, values=b""))
    (tmp_path / LABELS).write_bytes(idx(0, values=b""))
    with pytest.raises(DataError, match="empty"):
        load_images("mnist", "test", data_dir=tmp_path)


def test_images_and_labels_must_be_as_many(tmp_path):
    folder = write_pair(tmp_path / "data")
    (folder / LABELS).write_bytes(idx(3, values=bytes(3)))
    with pytest.raises(DataError, match="2 images but 3 labels"):
        load_images("mnist", "test", data_dir=folder)


def test_without_a_folder_torchvision_downloads_once(cache, monkeypatch, capfd):
    calls = []

    def fake(root: str, *, download: bool) -> None:
        print("a progress bar")
        calls.append((root, download))
        write_pair(Path(root) / "MNIST" / "raw")

    monkeypatch.setattr("torchvision.datasets.MNIST", fake)
    events = []
    for _ in range(2):
        found = load_images("mnist", "test", on_progress=lambda *event: events.append(event))
    assert found.labels.tolist() == [7, 0]
    assert calls == [(str(cache), True)]
    assert events == [("downloading mnist", 0, 1), ("downloading mnist", 1, 1)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("Error downloading\nno route")])
@pytest.mark.parametrize(("name", "target"), [("fashion-mnist", "FashionMNIST"), ("cifar10", "CIFAR10")])
def test_a_failed_download_points_to_data_dir(monkeypatch, error, name, target):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"torchvision.datasets.{target}", fail)
    with pytest.raises(DataError, match=rf"{name} could not be downloaded .*no route.*--data-dir"):
        load_images(name, "test")


@pytest.mark.parametrize(("name", "seventh"), [("mnist", "7"), ("fashion-mnist", "Sneaker")])
def test_image_folders_are_read_too(tmp_path: Path, paint, name: str, seventh: str):
    for split in ("train", "test"):
        for digit in range(10):
            paint(tmp_path / split / str(digit) / "a.png", 10 * digit, "L", (28, 28))
    found = load_images(name, "test", data_dir=tmp_path)
    assert (len(found), found.input_shape, found.class_names[7]) == (10, (1, 28, 28), seventh)
    for image, label in zip(found.images, found.labels.tolist(), strict=True):
        assert bool((image == 10 * label).all())
    (tmp_path / "test" / "3").rename(tmp_path / "test" / "three")
    with pytest.raises(DataError, match="missing 3; not expected three"):
        load_images(name, "test", data_dir=tmp_path)
