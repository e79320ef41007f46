"""Pages from templates: escaped, well formed, and nothing loaded from anywhere."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

import certtrain.reports
from certtrain.reports.pages import CellValue, Picture, Table, render_page, shown_value
from certtrain.reports.svg import Svg
from helpers.html_pages import Page

HOSTILE = "<script>alert(\"x\")</script> & 'y'"
TEMPLATES = sorted((Path(certtrain.reports.__file__).parent / "templates").iterdir())

EVERY_BLOCK = """\
{% extends "page.html" %}
{% from "blocks.html" import bar, facts, figure, gallery, legend, table, tile %}
{% block content %}
<p>{{ text }}</p>
{{ table(data) }}
{{ facts([(text, text)]) }}
{{ tile(text, text, text) }}
{{ bar({"open": 0.5}) }}
{{ legend(["open"]) }}
{{ figure(picture) }}
{{ gallery([picture]) }}
{% endblock %}
"""


def rendered(folder: Path, content: str, **values: Any) -> str:
    """A page from a template with this content, which may use all blocks."""
    frame = '{% extends "page.html" %}{% import "blocks.html" as blocks %}{% block content %}' + content
    (folder / "test.html").write_text(frame + "{% endblock %}", encoding="utf-8")
    return render_page("test.html", folder, title="T", **values)


def every_block(folder: Path, text: str) -> str:
    (folder / "every.html").write_text(EVERY_BLOCK, encoding="utf-8")
    picture = Picture(Svg(text, 10, 20.5, "<g></g>"), text, text)
    data = Table((text, "b"), [(text, text)])
    return render_page("every.html", folder, title=text, text=text, data=data, picture=picture)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "inf"),
        (0, "0"),
        (1234567, "1,234,567"),
        (0.00012345, "0.000123"),
        ("a<b", "a<b"),
    ],
)
def test_values_become_text(value: CellValue, shown: str):
    assert shown_value(value) == shown


def test_every_text_is_escaped(tmp_path: Path):
    written = every_block(tmp_path, HOSTILE)
    page = Page(written)
    assert "script" not in page.tags
    assert "<script" not in written
    assert page.text.count(HOSTILE) == 2 + 1 + 3 + 2 + 3 + 2 * 2  # the title twice; a picture's label is an attribute
    assert written.count('aria-label="&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; &#39;y&#39;"') == 2


def test_nothing_but_the_markup_of_pictures_goes_unescaped():
    found = [(file.name, line.strip()) for file in TEMPLATES for line in file.read_text("utf-8").splitlines()]
    unsafe = [(name, line) for name, line in found if re.search(r"\|\s*safe\b|autoescape|\bMarkup\b", line)]
    assert [name for name, _ in unsafe] == ["blocks.html"]
    assert "{{ svg.markup | safe }}" in unsafe[0][1]
    sources = [file.read_text("utf-8") for file in Path(certtrain.reports.__file__).parent.glob("*.py")]
    assert not any("Markup(" in source or "markupsafe" in source for source in sources)


def test_a_picture_keeps_its_markup_and_its_size(tmp_path: Path):
    written = every_block(tmp_path, "x")
    assert written.count('<svg role="img" aria-label="x" viewBox="0 0 10 20.5"><g></g></svg>') == 2


def test_a_page_is_whole_and_loads_nothing(tmp_path: Path):
    written = every_block(tmp_path, "x")
    assert written.startswith("<!DOCTYPE html>\n<html lang=")
    assert written.endswith("</html>\n")
    assert "default-src 'none'" in written
    assert 'name="viewport"' in written
    assert Page(written).loads == []
    assert not re.search(r"https?:|@import|url\(", written)


def test_every_colour_has_its_variable_on_light_and_on_dark_paper(tmp_path: Path):
    written = every_block(tmp_path, "x")
    assert (written.count("--certified: #23894c;"), written.count("--certified: #4cc27c;")) == (1, 1)
    assert "i.certified { background: var(--certified); }" in written


def test_a_table_keeps_its_cells_in_their_places(tmp_path: Path):
    data = Table(("name", "n"), [("a", 1), ("b", None)])
    written = rendered(tmp_path, "{{ blocks.table(data) }}", data=data)
    assert Page(written).tables == [[["name", "n"], ["a", "1"], ["b", "–"]]]
    assert '<td class="left">a</td><td>1</td>' in written


@pytest.mark.parametrize("row", [("a",), ("a", 1, 2)])
def test_a_row_of_another_length_is_refused(row: tuple[CellValue, ...]):
    with pytest.raises(ValueError, match="the header 2"):
        Table(("name", "n"), [row])


def test_an_alignment_of_another_length_is_refused():
    with pytest.raises(ValueError, match="the header 2"):
        Table(("name", "n"), [], "l")


@pytest.mark.parametrize("block", ['bar({"pink": 1.0})', 'legend(["pink"])'])
def test_an_unknown_colour_is_refused(block: str, tmp_path: Path):
    with pytest.raises(ValueError, match="'pink' is not a colour"):
        rendered(tmp_path, f"{{{{ blocks.{block} }}}}")


def test_a_bar_leaves_out_what_is_not_there(tmp_path: Path):
    shares = {"active": 0.25, "unstable": 0.0, "inactive": math.nan, "open": 0.75}
    written = rendered(tmp_path, "{{ blocks.bar(shares) }}", shares=shares)
    assert re.findall(r'class="(\w+)" style="width:([\d.]+)%"', written) == [("active", "25.000"), ("open", "75.000")]
    assert 'aria-label="active 25.00%, open 75.00%" title="active 25.00%, open 75.00%"' in written


def test_a_value_that_a_template_lacks_is_an_error(tmp_path: Path):
    with pytest.raises(UndefinedError, match="nothing"):
        rendered(tmp_path, "{{ nothing }}")
