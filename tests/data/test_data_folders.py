import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from certtrain.data import CacheWarning, folders, load_images
from certtrain.data.cache import cache_folder, write_cached
from certtrain.data.decode import decode_files
from certtrain.errors import DataError

RED, BLUE = (200, 10, 20), (5, 6, 250)


@pytest.fixture
def root(tmp_path, paint) -> Path:
    """Classes "cat" and "dog"; three training images and two test images, 3 wide and 2 high."""
    for name, colour in (("train/dog/1.png", RED), ("train/cat/1.png", BLUE), ("train/cat/2.png", RED)):
        paint(tmp_path / "pets" / name, colour)
    for name, colour in (("test/dog/1.png", RED), ("test/cat/1.webp", BLUE)):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (3, 2), colour).save(path, lossless=True)
    return tmp_path / "pets"


def contents(found) -> set[tuple[int, tuple[int, ...]]]:
    return {
        (int(label), tuple(image[:, 0, 0].tolist())) for image, label in zip(found.images, found.labels, strict=True)
    }


def only_cache_file(cache: Path) -> Path:
    (path,) = cache.rglob("*.safetensors")
    return path


def refuse(*_: object) -> None:
    raise AssertionError("decoded although a whole cache entry is there")


def test_a_folder_is_decoded(root):
    heard = []
    train = load_images("folder", "train", data_dir=root, on_progress=lambda *event: heard.append(event))
    test = load_images("folder", "test", data_dir=root)
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.input_shape == (3, 2, 3)
    assert len(train) == 3
    assert contents(train) == {(0, BLUE), (0, RED), (1, RED)}
    assert contents(test) == {(0, BLUE), (1, RED)}
    assert heard == [("decoding images", 3, 3)]


def test_rows_and_columns_survive(tmp_path):
    pixels = torch.arange(18, dtype=torch.uint8).view(2, 3, 3)  # H, W, C
    path = tmp_path / "train" / "a" / "x.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(pixels.numpy()).save(path)
    found = load_images("folder", "train", data_dir=tmp_path)
    assert torch.equal(found.images[0], pixels.permute(2, 0, 1))


def test_the_first_images_hold_several_classes(tmp_path, paint):
    for number in range(20):
        for label in "abc":
            paint(tmp_path / "train" / label / f"{number}.png", 0, "L")
    found = load_images("folder", "train", data_dir=tmp_path)
    assert found.labels.bincount().tolist() == [20, 20, 20]
    assert found.take(12).labels.bincount(minlength=3).min() >= 1


def test_many_images_keep_their_places(tmp_path, paint, monkeypatch):
    monkeypatch.setattr("certtrain.data.decode._CHUNK", 4)
    for level in range(30):
        paint(tmp_path / "train" / f"{level:02}" / "x.png", level, "L")
    heard = []
    found = load_images("folder", "train", data_dir=tmp_path, on_progress=lambda *event: heard.append(event))
    assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist()
    assert sorted(found.labels.tolist()) == list(range(30))
    assert [done for _, done, _ in heard] == [4, 8, 12, 16, 20, 24, 28, 30]


def test_all_grey_means_one_channel(tmp_path, paint):
    paint(tmp_path / "train/a/1.png", 9, "L")
    paint(tmp_path / "train/b/2.png", 1, "1")
    found = load_images("folder", "train", data_dir=tmp_path)
    assert found.input_shape == (1, 2, 3)
    assert contents(found) == {(0, (9,)), (1, (255,))}
    assert found.images.is_contiguous()


def test_grey_among_colours_is_expanded(tmp_path, paint):
    paint(tmp_path / "train/a/1.png", 9, "L")
    paint(tmp_path / "train/b/1.png", RED)
    found = load_images("folder", "train", data_dir=tmp_path)
    assert contents(found) == {(0, (9, 9, 9)), (1, RED)}


@pytest.mark.parametrize("coloured", [0, 1, 2])
def test_one_coloured_image_anywhere_makes_three_channels(tmp_path, paint, monkeypatch, coloured):
    monkeypatch.setattr("certtrain.data.decode._CHUNK", 1)
    paths = [paint(tmp_path / f"{place}.png", 9, "L") for place in range(3)]
    paint(paths[coloured], RED)
    assert decode_files(paths, None, lambda *_: None).shape == (3, 3, 2, 3)


def test_channels_asked_for_are_made(tmp_path, paint):
    paint(tmp_path / "train/a/1.png", 9, "L")
    paint(tmp_path / "train/b/1.png", (100, 100, 100))
    assert contents(load_images("folder", "train", data_dir=tmp_path, channels=1)) == {(0, (9,)), (1, (100,))}
    wide = load_images("folder", "train", data_dir=tmp_path, channels=3)
    assert contents(wide) == {(0, (9, 9, 9)), (1, (100, 100, 100))}


def test_transparency_and_palettes_become_colours(tmp_path, paint):
    paint(tmp_path / "train/a/1.png", (*RED, 128), "RGBA")
    path = paint(tmp_path / "train/b/1.png", BLUE)
    with Image.open(path) as image:
        palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(path)
    assert contents(load_images("folder", "train", data_dir=tmp_path)) == {(0, RED), (1, BLUE)}


def test_sixteen_bits_are_refused(tmp_path, paint):
    path = paint(tmp_path / "train/a/deep.png", 3000, "I;16")
    with pytest.raises(DataError, match="more than 8 bits") as caught:
        load_images("folder", "train", data_dir=tmp_path)
    assert str(path) in str(caught.value)


def test_sizes_must_agree(root, paint):
    odd = paint(root / "train/dog/odd.png", RED, size=(5, 4))
    with pytest.raises(DataError, match=r"is (5x4|3x2) pixels, but (3x2|5x4) is expected") as caught:
        load_images("folder", "train", data_dir=root)
    assert str(odd) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(root, content):
    path = root / "train/cat/2.png"
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    with pytest.raises(DataError, match="cannot be read as an image") as caught:
        load_images("folder", "train", data_dir=root)
    assert str(path) in str(caught.value)


def test_classes_of_both_splits_must_agree(root, paint):
    paint(root / "test/fox/1.png", RED)
    (root / "train/ant").mkdir()
    for split in ("train", "test"):
        with pytest.raises(DataError, match="missing ant; not expected fox"):
            load_images("folder", split, data_dir=root)


def test_a_class_without_images_is_named(root):
    (root / "train/ant").mkdir()
    (root / "test/ant").mkdir()
    with pytest.raises(DataError, match=r"not an image folder .*ant"):
        load_images("folder", "train", data_dir=root)


def test_a_folder_must_be_named_and_be_there(tmp_path):
    with pytest.raises(DataError, match="--data-dir"):
        load_images("folder", "train")
    with pytest.raises(DataError, match="nowhere is not there"):
        load_images("folder", "train", data_dir=tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"looked for train and test in {tmp_path}"):
        load_images("folder", "test", data_dir=tmp_path)


def test_the_second_time_nothing_is_decoded(root, monkeypatch):
    first = load_images("folder", "train", data_dir=root)
    monkeypatch.setattr(folders, "decode_files", refuse)
    second = load_images("folder", "train", data_dir=root)
    assert second.fingerprint() == first.fingerprint()
    assert second.class_names == first.class_names


def test_the_cache_follows_changes(root, paint, tmp_path):
    load_images("folder", "train", data_dir=root)
    path = paint(root / "train/dog/1.png", BLUE)
    os.utime(path, ns=(1, 1))
    assert (1, BLUE) in contents(load_images("folder", "train", data_dir=root))
    paint(root / "train/dog/2.png", (1, 2, 3))
    assert len(load_images("folder", "train", data_dir=root)) == 4
    assert load_images("folder", "train", data_dir=root, channels=1).input_shape == (1, 2, 3)


def test_another_folder_has_another_entry(tmp_path, paint):
    for name, level in (("one", 1), ("two", 2)):
        os.utime(paint(tmp_path / name / "train/a/x.bmp", level, "L"), ns=(1, 1))
    for name, level in (("one", 1), ("two", 2)):
        found = load_images("folder", "train", data_dir=tmp_path / name)
        assert contents(found) == {(0, (level,))}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lose_an_image(path: Path) -> None:
    write_cached(path, load_file(path)["images"][:2].contiguous())


def put_something_else(path: Path) -> None:
    save_file({"weights": torch.zeros(3)}, path)


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lose_an_image, put_something_else])
def test_a_damaged_cache_is_made_anew(root, cache, monkeypatch, damage):
    whole = load_images("folder", "train", data_dir=root).fingerprint()
    damage(only_cache_file(cache))
    assert load_images("folder", "train", data_dir=root).fingerprint() == whole
    monkeypatch.setattr(folders, "decode_files", refuse)
    assert load_images("folder", "train", data_dir=root).fingerprint() == whole


def test_an_unwritable_cache_is_only_a_warning(root, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("CERTTRAIN_CACHE", str(blocked))
    with pytest.warns(CacheWarning, match="CERTTRAIN_CACHE"):
        assert len(load_images("folder", "train", data_dir=root)) == 3


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("CERTTRAIN_CACHE", "/a/b")
    assert cache_folder() == Path("/a/b")
    monkeypatch.delenv("CERTTRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache_folder() == Path("/c/certtrain")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "certtrain"
