"""digits, CIFAR-10, TinyImageNet, and the choice among all of them."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

from certtrain.data import NORMALIZATION, load_images
from certtrain.errors import DataError

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WNIDS = ("n01", "n02", "n03")


def test_digits_are_the_uci_set():
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.input_shape == test.input_shape == (1, 8, 8)
    both = torch.cat([train.labels, test.labels])
    # The counts that the UCI repository gives for the test part.
    assert both.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert train.labels[:10].tolist() == list(range(10))
    # The first row of the first digit is 0 0 5 13 9 1 0 0 in sixteenths.
    assert train.images[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert train.images.max() == 255


def test_digits_agree_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    source = sklearn.load_digits()
    parts = [load_images("digits", split) for split in ("train", "test")]
    images = torch.cat([part.images for part in parts])
    assert torch.equal((images.squeeze(1) * (16 / 255)).round().double(), torch.from_numpy(source.images))
    assert torch.equal(torch.cat([part.labels for part in parts]), torch.from_numpy(source.target))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match=r"'svhn'; known are digits, mnist, fashion-mnist, cifar10, tinyimagenet"):
        load_images("svhn", "train")


def test_wrong_splits_and_channels_are_refused():
    with pytest.raises(DataError, match="no split 'val'"):
        load_images("digits", "val")
    with pytest.raises(DataError, match="1 channel or 3, not 2"):
        load_images("digits", "train", channels=2)
    with pytest.raises(DataError, match="channels=3 does not fit digits, whose images are 1x8x8"):
        load_images("digits", "train", channels=3)
    assert load_images("digits", "train", channels=1).input_shape == (1, 8, 8)


def test_published_normalization_fits_the_channels():
    assert NORMALIZATION.keys() == {"digits", "mnist", "fashion-mnist", "cifar10", "tinyimagenet"}
    for name, (mean, std) in NORMALIZATION.items():
        assert len(mean) == len(std) == (3 if name in ("cifar10", "tinyimagenet") else 1)


@pytest.fixture
def cifar_folder(tmp_path, paint) -> Path:
    for split in ("train", "test"):
        for number, label in enumerate(CIFAR_CLASSES):
            paint(tmp_path / "cifar10" / split / label / "1.png", (number, 0, 0))
    return tmp_path / "cifar10"


def test_cifar10_from_an_image_folder_or_its_parent(cifar_folder):
    for data_dir in (cifar_folder, cifar_folder.parent):
        found = load_images("cifar10", "test", data_dir=data_dir)
        assert found.class_names == CIFAR_CLASSES
        assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist()


def test_cifar10_folders_must_have_its_classes(cifar_folder):
    (cifar_folder / "test/truck").rename(cifar_folder / "test/lorry")
    with pytest.raises(DataError, match="missing truck; not expected lorry"):
        load_images("cifar10", "test", data_dir=cifar_folder)


@pytest.fixture
def cifar_batches(tmp_path, monkeypatch) -> Path:
    """torchvision's layout with two images a file and matching checksums."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: dict[str, object]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    pixels = torch.arange(2 * 3072).remainder(251).byte().view(2, 3072).numpy()
    train = [write("data_batch_1", {"data": pixels, "labels": [9, 3]})]
    test = [write("test_batch", {"data": pixels[::-1].copy(), "labels": [3, 9]})]
    meta = write("batches.meta", {"label_names": list(CIFAR_CLASSES)})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return folder


def test_cifar10_from_torchvisions_files(cifar_batches):
    pixels = torch.arange(2 * 3072).remainder(251).byte().view(2, 3, 32, 32)
    for data_dir in (cifar_batches, cifar_batches.parent):
        train = load_images("cifar10", "train", data_dir=data_dir)
        test = load_images("cifar10", "test", data_dir=data_dir)
        assert torch.equal(train.images, pixels)
        assert torch.equal(test.images, pixels.flip(0))
        assert (train.labels.tolist(), test.labels.tolist()) == ([9, 3], [3, 9])
        assert train.class_names == CIFAR_CLASSES


def test_a_changed_cifar10_file_is_refused(cifar_batches):
    with (cifar_batches / "test_batch").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="damaged or incomplete"):
        load_images("cifar10", "train", data_dir=cifar_batches)


def test_cifar10_not_found_says_where(tmp_path):
    with pytest.raises(DataError, match=rf"looked for cifar-10-batches-py or .* in {tmp_path}, {tmp_path}/cifar10"):
        load_images("cifar10", "train", data_dir=tmp_path)


@pytest.fixture
def tiny(tmp_path, paint) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    for number, wnid in enumerate(WNIDS):
        paint(root / "train" / wnid / "images" / f"{wnid}_0.png", (number, 0, 0))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("a box")
    lines = []
    for position, label in enumerate((2, 0, 1, 0)):
        paint(root / "val/images" / f"val_{position}.png", (label, 0, 0))
        lines.append(f"val_{position}.png\t{WNIDS[label]}\t0\t32\t44\t62\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "test/images").mkdir(parents=True)
    return root


@pytest.mark.parametrize("split", ["train", "test"])
def test_tinyimagenet_as_it_unpacks(tiny, split):
    for data_dir in (tiny, tiny.parent):
        found = load_images("tinyimagenet", split, data_dir=data_dir)
        assert found.class_names == WNIDS
        assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist()
        assert found.labels.bincount().tolist() == ([1, 1, 1] if split == "train" else [2, 1, 1])


@pytest.mark.parametrize("name", ["val", "test"])
def test_tinyimagenet_rearranged(tiny, paint, name):
    (tiny / "test/images").rmdir()
    (tiny / "test").rmdir()
    (tiny / "val").rename(tiny.parent / "old")
    for number, wnid in enumerate(WNIDS):
        paint(tiny / name / wnid / "x.png", (number, 0, 0))
    found = load_images("tinyimagenet", "test", data_dir=tiny)
    assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist()
    (tiny / name / "n02" / "x.png").unlink()
    (tiny / name / "n02").rmdir()
    with pytest.raises(DataError, match="missing n02"):
        load_images("tinyimagenet", "test", data_dir=tiny)


def test_grey_tinyimagenet_images_get_three_channels(tiny, paint):
    for wnid in WNIDS:
        paint(tiny / "train" / wnid / "images" / f"{wnid}_0.png", 5, "L")
    assert load_images("tinyimagenet", "train", data_dir=tiny).input_shape == (3, 2, 3)


def test_tinyimagenets_annotations_are_checked(tiny, paint):
    path = tiny / "val/val_annotations.txt"
    whole = path.read_text()
    path.write_text(whole + "val_4.png\tn99\t0\t0\t0\t0\n")
    with pytest.raises(DataError, match="line 5: 'n99' is not one of the 3 classes"):
        load_images("tinyimagenet", "test", data_dir=tiny)
    path.write_text(whole)
    paint(tiny / "val/images/val_4.png", (0, 0, 0))
    with pytest.raises(DataError, match=r"disagree, first about val_4\.png"):
        load_images("tinyimagenet", "test", data_dir=tiny)


def test_tinyimagenet_is_not_downloaded(tmp_path):
    for options in ({}, {"data_dir": tmp_path}):
        with pytest.raises(DataError, match=r"cs231n\.stanford\.edu/tiny-imagenet-200\.zip .*--data-dir"):
            load_images("tinyimagenet", "train", **options)
