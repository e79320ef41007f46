"""Every data test has a cache folder of its own, and ways to make image files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CERTTRAIN_CACHE", str(folder))
    return folder


@pytest.fixture
def paint() -> Callable[..., Path]:
    """Write a plain image: paint(path, colour, mode="RGB", size=(3, 2)), size as (width, height)."""

    def write(
        path: Path,
        colour: int | tuple[int, ...],
        mode: str = "RGB",
        size: tuple[int, int] = (3, 2),
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(path)
        return path

    return write
