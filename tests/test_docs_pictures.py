"""The pictures of the README are of what they claim to show, and can be drawn again."""

import re
import runpy
import sys
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from certtrain.render.console import out
from certtrain.training.api import start_run
from helpers.documents import DOCS, ROOT
from helpers.small_runs import frequent, short_runs, small

PICTURE = DOCS / "picture.py"
KEPT = DOCS / "cifar10"


def words_of(svg: str) -> set[str]:
    """The words in the text of an SVG, without names of layers and numbers."""
    text = " ".join(map(unescape, re.findall(r">([^<]+)</text>", svg))).replace("\xa0", " ")
    return {word for word in re.findall(r"[^\W\d_]{3,}", text) if f"{word}1" not in text}


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The live view of a small run, drawn by the command."""
    folder = tmp_path_factory.mktemp("view")
    with short_runs():
        start_run(small(), folder / "run", frequent())
    words = [str(PICTURE), "view", str(folder / "run"), "--epoch", "3", "--out", str(folder / "view.svg")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        for name, value in {"_width": 120, "_height": 40, "_file": None, "record": False}.items():
            patch.setattr(out, name, value)  # which the command changes for its process
        runpy.run_path(str(PICTURE), run_name="__main__")
    return (folder / "view.svg").read_text(encoding="utf-8")


def test_the_picture_of_the_live_view_has_all_its_words(view: str) -> None:
    own = {"digits", "held", "out"}  # of this run alone, which holds examples out
    missing = words_of(view) - words_of((KEPT / "training.svg").read_text(encoding="utf-8")) - own
    assert len(words_of(view)) > 20
    assert not missing, "draw it again: see docs/picture.py"


def test_the_picture_of_the_report_is_of_the_page_that_is_kept() -> None:
    with Image.open(KEPT / "report.png") as image:
        assert image.info["Source"] == runpy.run_path(str(PICTURE))["hash_of"](KEPT / "report.html")
        assert image.width > 1000


def test_the_readme_shows_both() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r'<img src="([^"]+)"[^>]* alt="[^"]{20,}">', text)
    assert shown == ["docs/cifar10/training.svg", "docs/cifar10/report.png"]
    assert all(Path(ROOT / name).is_file() for name in shown)
