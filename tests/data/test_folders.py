import os
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from certtrain.data import CacheWarning, LeftOutWarning, folders, load_images
from certtrain.data.cache import cache_folder, cache_path, write_cached
from certtrain.data.decode import decode_files
from certtrain.data.listing import check_same_classes
from certtrain.data.pictures import write_picture
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
    events = []
    train = load_images("folder", "train", data_dir=root, on_progress=lambda *event: events.append(event))
    test = load_images("folder", "test", data_dir=root)
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.input_shape == (3, 2, 3)
    assert len(train) == 3
    assert contents(train) == {(0, BLUE), (0, RED), (1, RED)}
    assert contents(test) == {(0, BLUE), (1, RED)}
    assert events == [("decoding images", 3, 3)]


def test_rows_and_columns_survive(tmp_path, paint):
    pixels = torch.arange(18, dtype=torch.uint8).view(2, 3, 3)  # H, W, C
    path = tmp_path / "train" / "a" / "x.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(pixels.numpy()).save(path)
    paint(tmp_path / "train" / "b" / "y.png", 0, "L", size=(3, 2))
    found = load_images("folder", "train", data_dir=tmp_path)
    assert torch.equal(found.images[found.labels == 0][0], pixels.permute(2, 0, 1))


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
    events = []
    found = load_images("folder", "train", data_dir=tmp_path, on_progress=lambda *event: events.append(event))
    assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist()
    assert sorted(found.labels.tolist()) == list(range(30))
    assert [done for _, done, _ in events] == [4, 8, 12, 16, 20, 24, 28, 30]


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


def png(colour_type: int, channels: int, bits: int) -> bytes:
    """2 rows of 3 pixels, by hand: Pillow writes no colours of 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(range(3 * channels * bits // 8))) * 2
    head = struct.pack(">IIBBBBB", 3, 2, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(order: str, bits: int) -> bytes:
    """2 rows of 3 coloured pixels; `order` is that of the bytes, < or >."""
    pixels = bytes(range(18)) * (bits // 8)
    place = 8 + len(pixels)
    longs = {256: 3, 257: 2, 258: place + 2 + 9 * 12 + 4, 259: 1, 262: 2, 273: 8, 277: 3, 278: 2, 279: len(pixels)}
    fields = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in longs.items()]
    fields[2] = struct.pack(f"{order}HHII", 258, 3, 3, longs[258])
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, place)
    table = struct.pack(f"{order}H", 9) + b"".join(fields) + struct.pack(f"{order}I", 0)
    return head + pixels + table + struct.pack(f"{order}HHH", bits, bits, bits)


def ppm(largest: int) -> bytes:
    return b"P6 3 2 %d\n" % largest + bytes(18 * (2 if largest > 255 else 1))


DEEP = {
    "grey.png": png(0, 1, 16),
    "grey_alpha.png": png(4, 2, 16),
    "colour.png": png(2, 3, 16),
    "colour_alpha.png": png(6, 4, 16),
    "small_end.tif": tiff("<", 16),
    "big_end.tif": tiff(">", 16),
    "grey.pgm": b"P5 3 2 65535\n" + bytes(12),
    "colour.ppm": ppm(65535),
    "ten_bits.ppm": ppm(1023),
    "plain.ppm": b"P3 3 2 65535\n" + b"1 " * 18,
}
SHALLOW = {"colour.png": png(2, 3, 8), "colour.tif": tiff("<", 8), "colour.ppm": ppm(255), "few.ppm": ppm(100)}


@pytest.mark.parametrize("name", DEEP)
def test_sixteen_bits_are_refused(tmp_path, paint, name):
    path = tmp_path / "train" / "a" / name
    paint(tmp_path / "train/b/1.png", 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(DEEP[name])
    with pytest.raises(DataError, match="has more than 8 bits per channel; convert it to 8") as caught:
        load_images("folder", "train", data_dir=tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", SHALLOW)
def test_eight_bits_are_read(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(SHALLOW[name])
    assert decode_files([path], None, lambda *_: None).shape == (1, 3, 2, 3)


def test_images_that_an_older_cache_cut_to_eight_bits_are_not_taken_from_it(root, monkeypatch):
    monkeypatch.setattr("certtrain.data.cache._FORMAT", 1)
    older = cache_path(root, ("train/dog/1.png",), None)
    monkeypatch.undo()
    assert cache_path(root, ("train/dog/1.png",), None).name != older.name


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_single_class_is_refused(tmp_path, paint, split):
    for each in ("train", "test"):
        paint(tmp_path / each / "cat" / "1.png", RED)
    with pytest.raises(DataError, match="holds one class, 'cat', but a classifier needs at least two"):
        load_images("folder", split, data_dir=tmp_path)


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="it holds no folders"):
        load_images("folder", "train", data_dir=tmp_path)


HIDDEN = [
    ".ipynb_checkpoints/1-checkpoint.png",
    "__MACOSX/dog/._1.png",
    "cat/.ipynb_checkpoints/1-checkpoint.png",
    "cat/._1.png",
    "cat/.DS_Store",
    "cat/Thumbs.db",
    "dog/desktop.ini",
    ".DS_Store",
    "._x.png",
]


def test_what_is_hidden_is_no_part_of_the_data(root):
    whole = load_images("folder", "train", data_dir=root)
    for name in HIDDEN:
        for split in ("train", "test"):
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no image")
    for name in ("train/dog/1.png", "train/cat/1.png"):  # as notebooks and desktops copy them
        (root / "train" / ".ipynb_checkpoints" / Path(name).name).write_bytes((root / name).read_bytes())
    found = load_images("folder", "train", data_dir=root)
    assert (found.class_names, found.fingerprint()) == (("cat", "dog"), whole.fingerprint())


def test_counterexamples_that_certtrain_wrote_are_no_part_of_the_data(root, paint):
    whole = load_images("folder", "test", data_dir=root)
    write_picture(root / "test/dog/1-counterexample.png", torch.zeros(3, 2, 3, dtype=torch.uint8))
    assert load_images("folder", "test", data_dir=root).fingerprint() == whole.fingerprint()
    paint(root / "test/dog/2-counterexample.png", RED)
    assert len(load_images("folder", "test", data_dir=root)) == len(whole) + 1, "others' files are images like any"


@pytest.mark.parametrize("name", ["3.gif", "3.GIF", "3.heic", "3.jp2", "deeper/3.avif"])
def test_images_in_a_format_that_is_not_read_are_refused(root, name):
    path = root / "train/cat" / name
    path.parent.mkdir(exist_ok=True)
    Image.new("P", (3, 2)).save(path, "GIF")
    with pytest.raises(DataError, match=rf"formats that are not supported, cat/{name}; convert or remove them.*\.webp"):
        load_images("folder", "train", data_dir=root)


def test_many_images_in_such_a_format_are_counted(root):
    for number in range(12):
        (root / f"train/dog/{number:02}.gif").write_bytes(b"")
    with pytest.raises(DataError, match=r"12 of them, the first dog/00\.gif"):
        load_images("folder", "train", data_dir=root)


def test_an_image_in_no_class_folder_is_refused(root, paint):
    paint(root / "train/lost.png", RED)
    with pytest.raises(DataError, match=r"in no class folder, lost\.png; move each into the folder of its class"):
        load_images("folder", "train", data_dir=root)


def test_files_that_are_no_images_are_counted(root):
    (root / "train/notes.txt").write_text("")
    (root / "train/cat/labels.csv").write_text("")
    with pytest.warns(LeftOutWarning, match=r"not images and are left out, 2 of them, the first cat/labels\.csv"):
        assert len(load_images("folder", "train", data_dir=root)) == 3


def test_capital_endings_are_read(root):
    (root / "train/cat/1.png").rename(root / "train/cat/1.PNG")
    assert len(load_images("folder", "train", data_dir=root)) == 3


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
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_images("folder", "train", data_dir=tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"{tmp_path} has no folder train and test. Images are expected"):
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


def test_a_copy_that_keeps_the_time_of_the_original_is_read_anew(tmp_path, paint):
    for level in (30, 99):
        for label in "ab":
            os.utime(paint(tmp_path / "train" / label / "x.bmp", level, "L"), ns=(1, 1))
        assert contents(load_images("folder", "train", data_dir=tmp_path)) == {(0, (level,)), (1, (level,))}


def test_another_folder_has_another_entry(tmp_path, paint):
    for name, level in (("one", 1), ("two", 2)):
        for label in "ab":
            os.utime(paint(tmp_path / name / "train" / label / "x.bmp", level, "L"), ns=(1, 1))
    for name, level in (("one", 1), ("two", 2)):
        found = load_images("folder", "train", data_dir=tmp_path / name)
        assert contents(found) == {(0, (level,)), (1, (level,))}


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


def test_a_flat_folder_is_told_the_layout_with_its_own_names(tmp_path, paint):
    paint(tmp_path / "1.png", 0)
    with pytest.raises(DataError, match=r"has no folder train; it holds 1 file in no class folder\.") as raised:
        load_images("folder", "train", data_dir=tmp_path)
    lines = [f"  {tmp_path}/{split}/{name}/*.png" for split in ("train", "test") for name in ("cat", "dog")]
    assert str(raised.value).splitlines()[1:] == lines
    for name in ("apple", "pear", "plum"):
        paint(tmp_path / name / "1.png", 0)
    with pytest.raises(DataError, match="the folders apple, pear, plum; it holds 1 file beside them") as raised:
        load_images("folder", "train", data_dir=tmp_path)
    assert f"  {tmp_path}/test/pear/*.png" in str(raised.value)


def test_a_message_names_a_folder_once_and_no_empty_list(tmp_path: Path):
    with pytest.raises(DataError, match=f"{tmp_path} has no folder train. Images"):
        load_images("folder", "train", data_dir=tmp_path)
    check_same_classes(("a", "b"), folder_of(tmp_path, "a", "b"))
    with pytest.raises(DataError, match=r"other classes than expected: not expected c\.$"):
        check_same_classes(("a", "b"), folder_of(tmp_path, "c"))
    with pytest.raises(DataError, match=r"other classes than expected: missing d\.$"):
        check_same_classes(("a", "b", "c", "d"), tmp_path)


def folder_of(path: Path, *names: str) -> Path:
    """The folder, with folders of these names in it."""
    for name in names:
        (path / name).mkdir()
    return path
