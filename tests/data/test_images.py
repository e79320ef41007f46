import hashlib
import struct

import pytest
import torch

from certtrain.data import ImageSet, derive_seed, images, pixel_statistics, split_validation, to_unit
from certtrain.errors import DataError


def numbered(count: int, classes: int = 3) -> ImageSet:
    pixels = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1)
    names = tuple(f"class {k}" for k in range(classes))
    return ImageSet("numbers", "train", pixels, torch.arange(count) % classes, names)


def test_an_image_set_knows_its_shape_and_length():
    made = ImageSet(
        "x",
        "train",
        torch.zeros(5, 3, 4, 6, dtype=torch.uint8),
        torch.zeros(5, dtype=torch.int64),
        ("a",),
    )
    assert made.input_shape == (3, 4, 6)
    assert len(made) == 5


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "N,C,H,W"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2), "labels must be int64"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "2 images but 3"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "empty"),
        (
            torch.zeros(5, 1, 2, 2, dtype=torch.uint8),
            torch.tensor([0, 1, 0, 12, 13]),
            "label 12 of example 3 is outside the 2 classes",
        ),
        (
            torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
            torch.tensor([0, -1]),
            "label -1 of example 1 is outside the 2 classes",
        ),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([2]), "label 2 of example 0"),
    ],
)
def test_a_wrong_image_set_cannot_be_made(pixels, labels, message):
    with pytest.raises(DataError, match=message):
        ImageSet("x", "train", pixels, labels, ("a", "b"))


def test_take_keeps_the_first_examples():
    whole = numbered(5)
    assert whole.take(None) is whole
    assert whole.take(2).images.flatten().tolist() == [0, 1]
    assert whole.take(2).labels.tolist() == [0, 1]
    assert len(whole.take(99)) == 5
    with pytest.raises(DataError, match="take the first 0 of"):
        whole.take(0)


def test_the_fingerprint_is_of_pixels_then_labels():
    made = numbered(3)
    assert made.fingerprint() == hashlib.sha256(bytes([0, 1, 2]) + struct.pack("<3q", 0, 1, 2)).hexdigest()


def test_the_fingerprint_ignores_the_memory_layout():
    pixels = torch.arange(24, dtype=torch.uint8).view(1, 2, 3, 4)
    label = torch.tensor([0])
    plain = ImageSet("x", "train", pixels, label, ("a",))
    other = ImageSet("x", "train", pixels.to(memory_format=torch.channels_last), label, ("a",))
    assert plain.fingerprint() == other.fingerprint()


def test_validation_parts_are_disjoint_complete_and_seeded():
    whole = numbered(20)
    rest, held_out = split_validation(whole, 6, seed=0)
    kept, held = rest.images.flatten().tolist(), held_out.images.flatten().tolist()
    assert (len(rest), len(held_out)) == (14, 6)
    assert sorted(kept + held) == list(range(20))
    assert held != list(range(6))
    assert held != list(range(14, 20))
    assert held_out.labels.tolist() == [number % 3 for number in held]
    assert (rest.split, held_out.split) == ("train", "validation")
    assert split_validation(whole, 6, seed=0)[1].fingerprint() == held_out.fingerprint()
    assert split_validation(whole, 6, seed=1)[1].fingerprint() != held_out.fingerprint()


@pytest.mark.parametrize("count", [-1, 0, 20, 21])
def test_no_validation_part_may_be_empty(count):
    with pytest.raises(DataError, match="choose 1 to 19"):
        split_validation(numbered(20), count, seed=0)


def test_pixel_statistics_by_hand():
    pixels = torch.tensor([[[[0, 255]], [[51, 51]]], [[[255, 0]], [[51, 51]]]], dtype=torch.uint8)
    mean, std = pixel_statistics(pixels)
    assert mean == pytest.approx((0.5, 0.2), abs=1e-15)
    assert std == pytest.approx((0.5, 1 / 255), abs=1e-15)


def test_pixel_statistics_do_not_depend_on_the_chunks(monkeypatch):
    pixels = torch.randint(0, 256, (7, 3, 4, 5), generator=torch.Generator().manual_seed(0)).byte()
    whole = pixel_statistics(pixels)
    monkeypatch.setattr(images, "_CHUNK", 2)
    assert pixel_statistics(pixels) == whole
    units = pixels.double() / 255
    assert whole[0] == pytest.approx(units.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert whole[1] == pytest.approx(units.std((0, 2, 3), correction=0).tolist(), rel=1e-12)


def test_to_unit_gives_the_nearest_float_of_every_level():
    levels = torch.arange(256)
    assert torch.equal(to_unit(levels.byte()), (levels.double() / 255).float())


def test_seeds_never_change():
    assert derive_seed(0, "order", 3) == 6254814875441857239
    assert derive_seed() == 4090036724241674979


def test_seeds_of_parts_differ():
    calls = [(), (0,), (1,), ("1",), (0, 1), (1, 0), (10,), ("ab", "c"), ("a", "bc"), ("abc",), (-1,)]
    seeds = {derive_seed(*parts) for parts in calls}
    assert len(seeds) == len(calls)
    assert all(0 <= seed < 2**63 for seed in seeds)
