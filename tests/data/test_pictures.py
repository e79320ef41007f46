"""A user's own pictures: taken as they are, or refused with a sentence that says what to do."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from certtrain.data.pictures import counterexample_file, list_pictures, read_picture, to_levels, write_picture
from certtrain.errors import DataError


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_again(tmp_path: Path, channels: int):
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    write_picture(tmp_path / "a.png", pixels)
    assert torch.equal(read_picture(tmp_path / "a.png", (channels, 5, 7)), pixels)


def test_grey_pictures_stored_in_colour_are_grey(tmp_path: Path):
    pixels = torch.randint(0, 256, (1, 4, 4), dtype=torch.uint8)
    write_picture(tmp_path / "a.png", pixels.expand(3, -1, -1))
    assert torch.equal(read_picture(tmp_path / "a.png", (1, 4, 4)), pixels)
    write_picture(tmp_path / "b.png", pixels)
    assert torch.equal(read_picture(tmp_path / "b.png", (3, 4, 4)), pixels.expand(3, -1, -1))


def test_nothing_is_resized_or_recoloured(tmp_path: Path):
    Image.new("RGB", (8, 6), (255, 0, 0)).save(tmp_path / "red.png")
    with pytest.raises(DataError, match=r"has 8×6 pixels, but the model takes 28×28; .*magick .* -resize 28x28!"):
        read_picture(tmp_path / "red.png", (3, 28, 28))
    with pytest.raises(DataError, match="is in colour, but the model takes greyscale"):
        read_picture(tmp_path / "red.png", (1, 6, 8))
    with pytest.raises(DataError, match="there is no image file"):
        read_picture(tmp_path / "none.png", (1, 6, 8))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_picture(tmp_path / "text.png", (1, 6, 8))


def test_a_folder_has_its_images_without_counterexamples(tmp_path: Path):
    with pytest.raises(DataError, match="holds no images"):
        list_pictures([tmp_path])
    for name in ("b.png", "a.jpg", ".hidden.png", "notes.txt", "b-counterexample.png"):
        (tmp_path / name).touch()
    found = list_pictures([tmp_path, Path("other.png")])
    assert found == [tmp_path / "a.jpg", tmp_path / "b.png", Path("other.png")]
    assert counterexample_file(tmp_path / "b.png") == tmp_path / "b-counterexample.png"


def test_pixels_become_the_nearest_level():
    assert to_levels(torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0])).tolist() == [0, 0, 1, 255]
