"""ε as people write it, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from certtrain.errors import CerttrainError, EpsilonError
from certtrain.spec.epsilon import format_eps, parse_eps, parse_radii

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("value", "eps"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255", 8 / 255),
        ("8/255\n", 8 / 255),
        ("0.3", 0.3),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("0", 0.0),
        ("1", 1.0),
        (0.1, 0.1),
        (0, 0.0),
        (1, 1.0),
    ],
)
def test_what_is_an_eps(value: str | float, eps: float):
    assert parse_eps(value) == eps


@pytest.mark.parametrize("value", ["8/0", "abc", "", " ", "8/", "/255", "1/2/3", "0,3", "8/255/", "0x1"])
def test_what_is_no_number(value: str):
    with pytest.raises(EpsilonError, match=r"is not a number; write it like 8/255 or 0\.3"):
        parse_eps(value)


@pytest.mark.parametrize("value", ["-1", "2", "8", "-1/255", "256/255", 1.0001, -1e-9, float("inf"), float("nan")])
def test_what_is_outside_the_range(value: str | float):
    with pytest.raises(EpsilonError, match=r"is outside \[0, 1\]; .*write 8/255 rather than 8"):
        parse_eps(value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "-1e400"])
def test_what_is_not_finite(value: str):
    with pytest.raises(EpsilonError, match=r"is not a number|is outside \[0, 1\]"):
        parse_eps(value)


@pytest.mark.parametrize("value", [None, [0.1], {}])
def test_what_is_not_even_text(value: object):
    with pytest.raises(EpsilonError, match="is not a number"):
        parse_eps(value)


def test_a_number_with_a_gigantic_exponent_is_refused_at_once():
    code = "from certtrain.spec.epsilon import parse_eps; parse_eps('1e999999999')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert "EpsilonError" in result.stderr


def test_the_error_is_caught_as_certtrains_and_as_a_value_error():
    assert issubclass(EpsilonError, CerttrainError)
    assert issubclass(EpsilonError, ValueError)


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (1.0, "255/255"), (0.1, "0.1"), (0.0, "0"), (0.3, "0.3"), (1e-6, "1e-06")]
)
def test_eps_is_shown_as_it_is_written(eps: float, text: str):
    assert format_eps(eps) == text


@pytest.mark.parametrize(
    ("eps", "text"),
    [(0.0999999999, "0.0999999"), (0.09999999, "0.0999999"), (8 / 255 + 2e-10, "0.0313725"), (0.1 * 3, "0.3"),
     (0.3 - 1e-16, "0.3"), (1 - 1e-9, "0.999999"), (2e-7 / 3, "6.66666e-08")],
)  # fmt: skip
def test_what_is_shown_is_no_larger_than_eps(eps: float, text: str):
    assert format_eps(eps) == text


@pytest.mark.parametrize("text", ["1e-400", "1e-999999999", "1E-400/3", "0.5/1e400"])
def test_a_radius_that_becomes_zero_is_refused(text: str):
    with pytest.raises(EpsilonError, match=r"too small|not a number"):
        parse_eps(text)


@pytest.mark.parametrize("level", range(1, 256))
def test_what_is_shown_is_the_eps(level: int):
    assert parse_eps(format_eps(level / 255)) == pytest.approx(level / 255, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "radii"),
    [
        ("0.1", (0.1,)),
        ("8/255", (8 / 255,)),
        ("0.3, 0.1,0.2,0.1", (0.1, 0.2, 0.3)),
        ("0.05..0.3:6", (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)),
        ("0..8/255:9", tuple(level / 255 for level in range(9))),
        ("0.5/255..1/255:2", (0.5 / 255, 1 / 255)),
        ("0..0.2:3,0.3", (0.0, 0.1, 0.2, 0.3)),
    ],
)
def test_lists_and_ranges_have_the_very_numbers_that_are_given_one_by_one(text: str, radii: tuple[float, ...]):
    assert parse_radii(text) == radii


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a number"),
        ("0.1,", "is not a number"),
        ("0.1;0.2", "is not a number"),
        ("0.1..2:3", r"is outside \[0, 1\]"),
        ("0.1..0.2", "needs its number of radii"),
        ("0.1..0.2:1", "needs its number of radii"),
        ("0.1..0.2:x", "needs its number of radii"),
        ("0.1..0.2:1001", "needs its number of radii"),
        ("0.1..0.2:99999999999999999999", "needs its number of radii"),
        ("0.2..0.1:3", "begins with its larger end"),
        ("0.1..0.1:3", "begins with its larger end"),
        ("0..0.1:600,0.2..0.3:600", "has 1,200 radii"),
    ],
)
def test_what_is_no_list_of_radii(text: str, message: str):
    with pytest.raises(EpsilonError, match=message):
        parse_radii(text)
