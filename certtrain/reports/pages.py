"""Self-contained HTML pages, made by Jinja from the templates beside this file; all text is escaped.

A page loads nothing, and forbids the browser to load anything: styles and pictures are inside it. Colours are
variables of the style sheet, so that pictures follow the reader's light or dark mode; print is always light.

`page.html` is the base template of every page. `blocks.html` has its parts: tables, bars, tiles, figures.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

from certtrain.formats import NO_NUMBER, count_of, duration, number, percent, times
from certtrain.palette import PALETTE
from certtrain.reports.svg import Svg
from certtrain.spec.epsilon import format_eps

CellValue = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A header and rows of values; `align` has a letter for each column, l for left or r for right.

    By default the first column is aligned to the left and the others to the right. Raises ValueError if a row or
    `align` does not have the length of the header.
    """

    header: Sequence[CellValue]
    rows: Sequence[Sequence[CellValue]]
    align: str = ""

    def __post_init__(self) -> None:
        for cells in (self.columns, *self.rows):
            if len(cells) != len(self.header):
                raise ValueError(f"{cells!r} has {len(cells)} cells, the header {len(self.header)}")

    @property
    def columns(self) -> str:
        """The alignment of each column."""
        return self.align or "l" + "r" * (len(self.header) - 1)


@dataclass(frozen=True)
class Picture:
    """A drawing with its title and its caption."""

    svg: Svg
    title: str
    caption: str = ""


@dataclass(frozen=True)
class Sheet:
    """A picture of pixels with its title and its caption, inside the page as a data URI."""

    uri: str
    title: str
    caption: str = ""

    @classmethod
    def read(cls, path: Path, title: str, caption: str = "") -> "Sheet":
        """The PNG file at `path`."""
        return cls(f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}", title, caption)


def render_page(template: str, folder: Path | None = None, **values: Any) -> str:
    """A page from the template of that name, in `folder` or beside this file, filled with `values`.

    Raises jinja2.UndefinedError if the template uses a value that is not given.
    """
    return _environment(folder).get_template(template).render(palette=PALETTE, **values)


def _environment(folder: Path | None) -> Environment:
    own = PackageLoader("certtrain.reports")
    environment = Environment(
        loader=own if folder is None else ChoiceLoader([FileSystemLoader(folder), own]),
        autoescape=lambda name: not str(name).endswith(".md"),  # Markdown and YAML have escapes of their own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "times": times, "duration": duration, "eps": format_eps}
    environment.filters |= {"count_of": count_of, "value": shown_value, "colour": known_colour, "quoted": quoted}
    return environment


def shown_value(value: CellValue) -> str:
    """A value as text: whole numbers with separators, None and NaN as a dash."""
    match value:
        case None:
            return NO_NUMBER
        case int():
            return f"{value:,}"
        case float():
            return number(value)
    return value


def quoted(value: object) -> str:
    """A value as YAML, of which JSON is a part."""
    return json.dumps(value, ensure_ascii=False)


def known_colour(name: str) -> str:
    """The name itself. Raises ValueError if the palette has no colour of that name."""
    if name not in PALETTE:
        raise ValueError(f"{name!r} is not a colour of the palette")
    return name
