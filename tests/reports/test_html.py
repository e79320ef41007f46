"""Blocks and pages: escaped, well formed, and nothing loaded from anywhere."""

import math
import re

import pytest
from pages import Page

from certtrain.reports import html
from certtrain.reports.html import PALETTE, Html

HOSTILE = "<script>alert(\"x\")</script> & 'y'"


def contrast(first: str, second: str) -> float:
    """The contrast of two colours by the definition of WCAG 2.1: from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_contrast_of_black_and_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "inf"),
        (0, "0"),
        (1234567, "1,234,567"),
        (0.00012345, "0.000123"),
        ("a<b", "a&lt;b"),
        (Html("<b>a</b>"), "<b>a</b>"),
    ],
)
def test_values_become_text(value: html.Cell, shown: str):
    assert html.text(value) == shown


def every_block(text: str) -> list[Html]:
    return [
        html.heading(text),
        html.paragraph(text, html.code(text)),
        html.note(text),
        html.listing(text),
        html.bullets([text]),
        html.details(text, [html.paragraph(text)]),
        html.table((text, "b"), [(text, text)]),
        html.facts([(text, text)]),
        html.tiles([(text, text, text)]),
        html.bar([(text, 0.5, "open")]),
        html.legend([(text, "open")]),
        html.gallery([html.figure(Html("<svg></svg>"), text, text)]),
    ]


def test_every_text_is_escaped():
    written = html.page(HOSTILE, every_block(HOSTILE))
    page = Page(written)
    assert "script" not in page.tags
    assert "<script" not in written
    assert page.text.count(HOSTILE) == 2 + 19  # the title twice; the bar's is an attribute
    assert f'aria-label="{html.text(HOSTILE)} 50.00%"' in written


def test_a_page_is_whole_and_loads_nothing():
    written = html.page("T", every_block("x"))
    assert written.startswith("<!DOCTYPE html>\n<html lang=")
    assert "default-src 'none'" in written
    assert 'name="viewport"' in written
    assert Page(written).loads == []
    assert not re.search(r"https?:|@import|url\(", written)


def test_a_table_keeps_its_cells_in_their_places():
    page = Page(html.table(("name", "n"), [("a", 1), ("b", None)]))
    assert page.tables == [[["name", "n"], ["a", "1"], ["b", "–"]]]


@pytest.mark.parametrize("row", [("a",), ("a", 1, 2)])
def test_a_row_of_another_length_is_refused(row: tuple[html.Cell, ...]):
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        html.table(("name", "n"), [row])


def test_an_unknown_colour_is_refused():
    with pytest.raises(ValueError, match="'pink' is not a colour"):
        html.bar([("x", 1.0, "pink")])


def test_a_bar_leaves_out_what_is_not_there():
    drawn = html.bar([("a", 0.25, "active"), ("b", 0.0, "unstable"), ("c", math.nan, "inactive"), ("d", 0.75, "open")])
    assert re.findall(r'class="(\w+)" style="width:([\d.]+)%"', drawn) == [("active", "25.000"), ("open", "75.000")]


@pytest.mark.parametrize("paper", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_the_paper(paper: int):
    ground, shade = PALETTE["paper"][paper], PALETTE["shade"][paper]
    for name, least in (("ink", 7.0), ("muted", 4.5)):
        assert contrast(PALETTE[name][paper], ground) > least
        assert contrast(PALETTE[name][paper], shade) > least


def test_lines_and_bars_stand_out_from_the_paper():
    for name, colours in PALETTE.items():
        if name not in ("paper", "shade", "grid"):
            for paper in (0, 1):
                assert contrast(colours[paper], PALETTE["paper"][paper]) > 1.7, name


def test_colours_can_be_told_apart_in_a_picture():
    lights = [light for light, _ in PALETTE.values()]
    assert len(set(lights)) == len(lights)  # a picture's colour leads to one variable
