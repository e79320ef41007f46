"""A user's own pictures: taken as they are where they fit, and otherwise changed by rules that are said."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from certtrain.data import load_images
from certtrain.data.pictures import (
    counterexample_file,
    is_bright_where_data_are_dark,
    list_pictures,
    read_picture,
    to_levels,
    write_picture,
)
from certtrain.errors import DataError


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_again(tmp_path: Path, channels: int):
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    write_picture(tmp_path / "a.png", pixels)
    found = read_picture(tmp_path / "a.png", (channels, 5, 7))
    assert torch.equal(found.pixels, pixels)
    assert found.changes == ()


def test_grey_pictures_stored_in_colour_are_grey(tmp_path: Path):
    pixels = torch.randint(0, 256, (1, 4, 4), dtype=torch.uint8)
    write_picture(tmp_path / "a.png", pixels.expand(3, -1, -1))
    assert torch.equal(read_picture(tmp_path / "a.png", (1, 4, 4)).pixels, pixels)
    write_picture(tmp_path / "b.png", pixels)
    assert torch.equal(read_picture(tmp_path / "b.png", (3, 4, 4)).pixels, pixels.expand(3, -1, -1))


def test_another_size_is_resized_by_bilinear_interpolation_with_antialiasing(tmp_path: Path):
    levels = torch.zeros(1, 280, 280, dtype=torch.uint8)
    levels[:, 100:110, 100:110] = 250  # one pixel of the 28 x 28
    write_picture(tmp_path / "a.png", levels)
    found = read_picture(tmp_path / "a.png", (1, 28, 28))
    assert found.changes == ("resized from 280×280 to 28×28 (bilinear, antialiased)",)
    # A pixel is the mean of 20 pixels in each direction, with weights that fall to 0: 3/4 for the middle half.
    assert found.pixels[0, 10, 10].item() == pytest.approx(250 * 0.75**2, abs=1)
    assert found.pixels[0, 10, 11].item() == pytest.approx(250 * 0.75 * 0.125, abs=1)
    assert found.pixels[0, 14, 14] == 0
    write_picture(tmp_path / "wide.png", levels[:, :140])
    stretched = read_picture(tmp_path / "wide.png", (1, 28, 28)).changes
    assert stretched[0].startswith("resized from 280×140 to 28×28")
    assert stretched[1].startswith("stretched")


def test_colours_become_grey_by_their_luma(tmp_path: Path):
    for colour, level in (((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)):
        Image.new("RGB", (4, 4), colour).save(tmp_path / "a.png")
        found = read_picture(tmp_path / "a.png", (1, 4, 4))
        assert found.changes == ("colours turned to grey (luma of ITU-R BT.601)",)
        assert set(found.pixels.flatten().tolist()) == {level}
        assert read_picture(tmp_path / "a.png", (3, 4, 4)).changes == ()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_on_white_as_they_are_shown(tmp_path: Path, mode: str):
    drawing = Image.new("RGBA", (4, 4), (0, 0, 0, 0))  # black ink, and black where nothing is drawn
    drawing.putpixel((1, 2), (0, 0, 0, 255))
    drawing.putpixel((3, 3), (0, 0, 0, 255))
    drawing.convert(mode).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", (1, 4, 4))
    assert found.changes == ("transparent parts put on white",)
    assert found.pixels.sum() == 255 * 14
    assert found.pixels[0, 2, 1] == found.pixels[0, 3, 3] == 0
    Image.new("RGBA", (4, 4), (9, 9, 9, 255)).save(tmp_path / "opaque.png")
    assert read_picture(tmp_path / "opaque.png", (1, 4, 4)).changes == ()


def test_a_photograph_is_turned_as_its_camera_was(tmp_path: Path):
    picture, turned = Image.new("L", (2, 3)), Image.Exif()
    picture.putpixel((0, 0), 255)
    turned[0x0112] = 6  # the camera's top is on the right
    picture.save(tmp_path / "a.png", exif=turned)
    found = read_picture(tmp_path / "a.png", (1, 2, 3))
    assert found.pixels.tolist() == [[[0, 0, 255], [0, 0, 0]]]


def test_inverted_levels_are_what_is_left_to_255(tmp_path: Path):
    pixels = torch.randint(0, 256, (1, 4, 4), dtype=torch.uint8)
    write_picture(tmp_path / "a.png", pixels)
    found = read_picture(tmp_path / "a.png", (1, 4, 4), invert=True)
    assert torch.equal(found.pixels.int(), 255 - pixels.int())
    assert found.changes == ("inverted",)


def test_what_is_no_image_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="there is no image file"):
        read_picture(tmp_path / "none.png", (1, 6, 8))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_picture(tmp_path / "text.png", (1, 6, 8))


def test_pictures_are_bright_where_the_data_are_dark_if_they_are_inverted_and_never_otherwise():
    images = load_images("digits", "test").images
    assert not any(is_bright_where_data_are_dark(pixels, "digits") for pixels in images)
    assert all(is_bright_where_data_are_dark(255 - pixels, "digits") for pixels in images)
    assert not any(is_bright_where_data_are_dark(255 - pixels, "cifar10") for pixels in images)


def test_a_folder_has_its_images_without_counterexamples(tmp_path: Path):
    with pytest.raises(DataError, match="holds no images"):
        list_pictures([tmp_path])
    for name in ("b.png", "a.jpg", ".hidden.png", "notes.txt", "c-counterexample.png"):
        (tmp_path / name).touch()
    write_picture(tmp_path / "b-counterexample.png", torch.zeros(1, 2, 2, dtype=torch.uint8))
    found = list_pictures([tmp_path, Path("other.png")])
    foreign = tmp_path / "c-counterexample.png"
    assert found == [tmp_path / "a.jpg", tmp_path / "b.png", foreign, Path("other.png")]
    assert counterexample_file(tmp_path / "b.png") == tmp_path / "b-counterexample.png"


def test_pixels_become_the_nearest_level():
    assert to_levels(torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0])).tolist() == [0, 0, 1, 255]
