"""Sheets of test images: what stands where, and in which frame."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from certtrain.attack import PGD
from certtrain.data import ImageSet
from certtrain.errors import StorageError
from certtrain.palette import PALETTE
from certtrain.reports.confusion import Confusion
from certtrain.reports.sheets import (
    FRAME_PIXELS,
    LEAST_PIXELS,
    VERDICT_ORDER,
    chosen_places,
    draw_attacks,
    draw_verdicts,
    write_sheets,
)
from certtrain.verdicts import Verdict
from certtrain.verification.results import ExampleResult
from certtrain.verification.samples import Sample
from certtrain.verification.verify import verify
from helpers.tiny_classifier import mostly_right


def colour(name: str) -> tuple[int, ...]:
    return tuple(int(PALETTE[name].light[place : place + 2], 16) for place in (1, 3, 5))


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def area(pixels: np.ndarray, wanted: tuple[int, ...]) -> int:
    return int((pixels == np.array(wanted)).all(axis=2).sum())


def top_of(pixels: np.ndarray, verdict: str) -> int:
    return int(np.argwhere((pixels == np.array(colour(verdict))).all(axis=2))[:, 0].min())


FRAME_AREA = (LEAST_PIXELS + 2 * FRAME_PIXELS) ** 2 - LEAST_PIXELS**2


def test_places_have_the_shares_of_the_verdicts_and_their_order():
    verdicts: list[Verdict] = ["misclassified"] * 10 + ["certified"] * 25 + ["open"] * 5 + ["falsified"] * 10
    places = chosen_places(verdicts, 10)
    assert [verdicts[place] for place in places] == [
        *["certified"] * 5, *["open"], *["falsified"] * 2, *["misclassified"] * 2
    ]  # fmt: skip
    assert places[:5] == [10, 11, 12, 13, 14], "the first of their verdict"
    assert len(chosen_places(verdicts, 7)) == 7
    assert chosen_places(["open", "certified"], 20) == [1, 0]


def test_each_image_stands_in_the_frame_of_its_verdict(tmp_path: Path):
    images = ImageSet(
        "grey", "test", torch.full((6, 1, 8, 8), 77, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 1, 1]), ("a", "b")
    )
    verdicts: dict[int, Verdict] = dict(enumerate(["certified", "certified", "open", "falsified", "open", "open"]))  # type: ignore[arg-type]
    draw_verdicts(images, verdicts, tmp_path / "sheet.png")
    pixels = pixels_of(tmp_path / "sheet.png")
    assert area(pixels, (77, 77, 77)) == pytest.approx(6 * LEAST_PIXELS**2, rel=0.02)
    counts = Counter(verdicts.values())
    for verdict in ("certified", "open", "falsified"):
        legend = area(pixels, colour(verdict)) - counts[verdict] * FRAME_AREA
        assert 0 < legend < FRAME_AREA, "the rest is the legend's"
    first, last = (
        np.argwhere((pixels == np.array(colour(v))).all(axis=2))[:, 0].min() for v in ("certified", "falsified")
    )
    assert first + LEAST_PIXELS < last, "the second class has a row of its own"


def test_a_perturbation_is_amplified_so_that_eps_is_black_and_white(tmp_path: Path):
    clean = torch.full((1, 2, 2), 100, dtype=torch.uint8)
    change = torch.tensor([[[0.1, -0.1], [0.0, 0.05]]])
    result = ExampleResult(0, 0, "falsified", None, "attack")
    draw_attacks([Sample(result, clean, clean / 255 + change, 1)], 0.1, ("cat", "dog"), tmp_path / "sheet.png")
    pixels = pixels_of(tmp_path / "sheet.png")
    cell = (LEAST_PIXELS // 2) ** 2
    assert area(pixels, (100, 100, 100)) >= 4 * cell, "clean"
    assert area(pixels, (128, 128, 128)) == pytest.approx(cell, abs=LEAST_PIXELS)
    assert area(pixels, (191, 191, 191)) == pytest.approx(cell, abs=LEAST_PIXELS)
    assert area(pixels, (126, 126, 126)) == pytest.approx(cell, abs=LEAST_PIXELS), "attacked: 100 + 25.5"
    assert area(pixels, (0, 0, 0)) >= cell - LEAST_PIXELS


def test_both_sheets_of_a_verification(tmp_path: Path):
    model, images = mostly_right()
    report = verify(model, images, 0.05, attack=PGD(steps=5), method="ibp")
    files = write_sheets(model, images, report, tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["verdicts.png", "attacks.png"]
    for file in files:
        assert min(pixels_of(file).shape[:2]) > 2 * LEAST_PIXELS
    unattacked = verify(model, images, 0.05, attack=None, method="ibp")
    assert [file.name for file in write_sheets(model, images, unattacked, tmp_path / "other")] == ["verdicts.png"]
    at_zero = verify(model, images, 0.0, attack=PGD(steps=5), method="ibp")
    assert len(write_sheets(model, images, at_zero, tmp_path / "zero")) == 2


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path):
    model, images = mostly_right(10)
    report = verify(model, images, 0.05, attack=None, method="ibp")
    with pytest.raises(StorageError):
        write_sheets(model, images, report, Path("/proc/none"))


def test_all_verdicts_have_colours():
    assert set(VERDICT_ORDER) <= PALETTE.keys()


# --- the confusion on a page -------------------------------------------------------------------------------


def test_cells_have_the_share_of_their_row():
    found = Confusion.of(["a", "b"], [[3, 1], [0, 0]])
    assert found.rows == (("a", ((3, 0.75), (1, 0.25))), ("b", ((0, 0.0), (0, 0.0))))
    assert found.pairs is None


def test_of_many_classes_the_most_frequent_pairs_are_shown():
    names = [f"class {number}" for number in range(30)]
    counts = [[0] * 30 for _ in names]
    counts[3][3], counts[3][4], counts[5][6] = 9, 2, 7
    found = Confusion.of(names, counts)
    assert found.rows == ()
    assert found.pairs is not None
    assert [*map(list, found.pairs.rows)] == [["class 5", "class 6", 7], ["class 3", "class 4", 2]]
