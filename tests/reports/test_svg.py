"""Pictures for a page: their text, colours, axes and stacks."""

import re

import pytest

from certtrain.palette import PALETTE
from certtrain.reports.svg import Curve, EpochAxis, Svg, draw_curves, draw_shares


def texts(svg: Svg) -> list[str]:
    return re.findall(r"<text[^>]*>(.*?)</text>", svg.markup)


def test_a_picture_keeps_text_as_text_and_colours_as_variables():
    svg = draw_curves("n", EpochAxis([1, 2, 3]), [Curve("a<b", [1.0, 2.0, None], "ink")], label="loss & more")
    assert (svg.label, svg.width, svg.height) == ("loss & more over epochs", 360, 210)
    assert "epoch" in texts(svg)
    assert "var(--ink)" in svg.markup
    assert not set(re.findall(r"#[0-9a-f]{6}\b", svg.markup)) & {colour.light for colour in PALETTE.values()}
    assert "svg" not in svg.markup  # the element itself is the template's


def test_several_curves_have_a_legend_and_one_has_none():
    curves = [Curve("first", [0.1, 0.2], "natural"), Curve("second", [0.3, 0.4], "certified", dashed=True)]
    assert {"first", "second", "50%"} <= set(
        texts(draw_curves("n", EpochAxis([1, 2]), curves, label="x", percent=True))
    )
    assert "first" not in texts(draw_curves("n", EpochAxis([1, 2]), curves[:1], label="x"))


def test_the_warm_up_is_shaded():
    curve = Curve("x", [1.0] * 4, "ink")
    assert "var(--shade)" not in draw_curves("n", EpochAxis([1, 2, 3, 4]), [curve], label="x").markup
    svg = draw_curves("n", EpochAxis([1, 2, 3, 4], (2, 3)), [curve], label="x")
    path = re.search(r'<path d="M ([\d.]+) [^"]*?L ([\d.]+) [^"]*"[^>]*var\(--shade\)', svg.markup)
    assert path is not None
    # of the axes' 56 to 352 points, epochs 2 and 3 take the middle half
    assert (float(path[1]), float(path[2])) == pytest.approx((130.0, 278.0), abs=0.5)


def test_a_logarithmic_axis_runs_over_whole_decades():
    curve = Curve("x", [20.0, 0.0, None, 3000.0], "ink")
    shown = texts(draw_curves("n", EpochAxis([1, 2, 3, 4]), [curve], label="x", log=True))
    assert {"10", "100", "1000", "10000"} <= set(shown)


def test_shares_are_stacked():
    shares = {"active": [0.25, 0.5], "unstable": [0.25, None], "inactive": [0.5, 0.5]}
    svg = draw_shares("n", EpochAxis([1, 2]), shares, [0.1, 0.2], label="x")
    filled = re.findall(r'<path d="([^"]*)"[^>]*fill: var\(--(active|unstable|inactive)\)', svg.markup)
    assert [colour for _, colour in filled] == ["active", "unstable", "inactive"]
    heights = [{float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)} for path, _ in filled]
    bottom, top = 172.0, 10.0  # 210 points less the margins

    def at(*levels: float) -> list[float]:
        return sorted(bottom + (top - bottom) * level for level in levels)

    assert sorted(heights[0]) == pytest.approx(at(0, 0.25, 0.5), abs=0.02)
    assert sorted(heights[1]) == pytest.approx(at(0.25, 0.5), abs=0.02)
    assert sorted(heights[2]) == pytest.approx(at(0.5, 1), abs=0.02)
