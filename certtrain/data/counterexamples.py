"""The pictures of counterexamples that certtrain writes beside images, which are not part of anyone's data."""

from pathlib import Path

from PIL import Image

ENDING = "-counterexample"  # the end of such a picture's name
WRITER = ("Software", "certtrain")  # PNG's own key for the program that wrote a file


def counterexample_file(picture: Path) -> Path:
    """Where the counterexample to a picture is written: beside it."""
    return picture.with_name(f"{picture.stem}{ENDING}.png")


def is_own(path: Path) -> bool:
    """Whether the file is a picture that certtrain wrote."""
    key, program = WRITER
    try:
        with Image.open(path) as image:
            return image.info.get(key) == program
    except OSError:  # no image, or no file
        return False


def is_counterexample(path: Path) -> bool:
    """Whether the file is the picture of a counterexample that certtrain wrote."""
    return path.stem.endswith(ENDING) and is_own(path)
