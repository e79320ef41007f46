"""VNN-LIB: what is written is exact, others read the same from it, and what is not understood is an error."""

import math
import re
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from certtrain.errors import PropertyError
from certtrain.interchange.formulas import MOST_CASES
from certtrain.interchange.vnnlib import decimal, parse_property, read_property, robustness_text
from certtrain.properties.cases import Property, exact_box, robustness
from helpers.vnnlib_package import assert_package_agrees

HEAD = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
BOX = "(assert (<= X_0 0.5)) (assert (>= X_0 -1e-3))\n(assert (and (<= X_1 2) (>= X_1 .25)))\n"


def pixels(seed: int = 0, shape: tuple[int, ...] = (1, 3, 4)) -> Tensor:
    """Grey levels, black and white among them."""
    levels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float()
    levels.view(-1)[:2] = torch.tensor([0.0, 255.0])
    return levels / 255


def same(a: Property, b: Property) -> bool:
    if (a.inputs, a.outputs, len(a.cases)) != (b.inputs, b.outputs, len(b.cases)):
        return False
    parts = ("lower", "upper", "functions", "offsets")
    return all(
        torch.equal(vars(left)[part], vars(right)[part])
        for left, right in zip(a.cases, b.cases, strict=True)
        for part in parts
    )


@pytest.mark.parametrize("value", [0.1, 8 / 255, 1.0, 0.0, 2**-40, -0.3, 1e-300])
def test_a_decimal_is_the_number_itself(value: float) -> None:
    assert Fraction(decimal(Fraction(value))) == Fraction(value)
    assert re.fullmatch(r"-?\d+\.\d+", decimal(Fraction(value)))


@pytest.mark.parametrize("eps", [0.0, 1e-9, 2 / 255, 8 / 255, 0.3, 1.0])
def test_the_box_that_is_written_is_the_real_one_and_reads_back_as_the_certified_one(eps: float) -> None:
    x = pixels()
    text = robustness_text(x, 1, eps, 3, "a comment\nof two lines")
    ends = re.findall(r"\(assert \((<=|>=) X_(\d+) (\S+)\)\)", text)
    assert len(ends) == 2 * x.numel()
    for sign, number, value in ends:
        real = Fraction(x.flatten()[int(number)].item())
        expected = min(real + Fraction(eps), Fraction(1)) if sign == "<=" else max(real - Fraction(eps), Fraction(0))
        assert Fraction(value) == expected
    assert same(parse_property(text), robustness(x, 1, eps, 3))


def test_clipping_is_that_of_pixels() -> None:
    box = exact_box(torch.tensor([0.0, 1.0, 0.5]), 0.25)
    assert box == [(0, Fraction(1, 4)), (Fraction(3, 4), 1), (Fraction(1, 4), Fraction(3, 4))]


def test_a_file_reads_as_it_was_written(tmp_path: Path) -> None:
    text = robustness_text(pixels(3), 0, 0.05, 10, "digits")
    (tmp_path / "p.vnnlib").write_text(text)
    assert same(read_property(tmp_path / "p.vnnlib"), robustness(pixels(3), 0, 0.05, 10))


def test_the_vnnlib_package_reads_the_same() -> None:
    for seed in range(5):
        x = pixels(seed)
        text = robustness_text(x, seed % 3, 8 / 255, 3, "a comment")
        assert_package_agrees(text, robustness(x, seed % 3, 8 / 255, 3))


# --- reading what others write ---------------------------------------------------------------------------


def test_conjunctions_disjunctions_and_linear_terms_are_read() -> None:
    asked = parse_property(
        HEAD + BOX + "; a comment (with brackets\n"
        "(assert (or (and (>= Y_0 Y_1) (<= (+ (* 2 Y_2) (- Y_0) -1.5) 3)) (>= (- Y_1 Y_2 (* Y_0 0.5)) 1e1)))\n"
    )
    first, second = asked.cases
    assert first.lower.tolist() == [-0.001, 0.25]
    assert first.upper.tolist() == [0.5, 2.0]
    assert first.functions.tolist() == [[-1.0, 1.0, 0.0], [-1.0, 0.0, 2.0]]
    assert first.offsets.tolist() == [0.0, -4.5]
    assert second.functions.tolist() == [[0.5, -1.0, 1.0]]
    assert second.offsets.tolist() == [10.0]
    assert first.violated_by(torch.tensor([[0.0, 0.0, 2.25], [0.0, 0.0, 2.3], [0.0, 1.0, 0.0]])).tolist() == [
        True,
        False,
        False,
    ]
    assert not first.violated_by(torch.full((1, 3), math.nan)).any()


@pytest.mark.parametrize(
    ("text", "factors", "offset"),
    [
        ("(<= (+ Y_0 1e16) (+ 1e16 1))", [1.0, 0.0, 0.0], -1.0),
        ("(<= (+ Y_0 1e16 1 -1e16) 0)", [1.0, 0.0, 0.0], 1.0),
        ("(<= (+ Y_1 (* 1e16 Y_0) Y_0 (* -1e16 Y_0)) 0)", [1.0, 1.0, 0.0], 0.0),
        ("(<= (- (* 3 (+ 1e16 1 Y_0)) 3e16) 0)", [3.0, 0.0, 0.0], 3.0),
        ("(<= (* 1e200 (* 1e-200 Y_0)) (* 1e300 (* 1e300 (* 1e-300 1e-300))))", [1.0, 0.0, 0.0], -1.0),
    ],
)
def test_sums_and_products_of_numbers_are_exact(text: str, factors: list[float], offset: float) -> None:
    (case,) = parse_property(HEAD + BOX + f"(assert {text})").cases
    assert case.functions.tolist()[0] == pytest.approx(factors, rel=1e-15)
    assert case.offsets.tolist() == pytest.approx([offset], rel=1e-15)


def test_boxes_inside_a_disjunction_make_cases_of_their_own() -> None:
    asked = parse_property(
        HEAD
        + "(assert (or (and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1) (<= Y_0 0))\n"
        + "(and (>= X_0 2) (<= X_0 3) (>= X_1 0) (<= 2 (* 4 X_1)) (<= X_1 1) (<= Y_1 0))))"
    )
    assert [case.lower.tolist() for case in asked.cases] == [[0.0, 0.0], [2.0, 0.5]]
    assert [case.upper.tolist() for case in asked.cases] == [[1.0, 1.0], [3.0, 1.0]]


def test_two_disjunctions_multiply() -> None:
    either = "(assert (or (<= Y_0 0) (<= Y_1 0)))"
    assert len(parse_property(HEAD + BOX + either + "(assert (or (<= Y_2 0) (<= Y_2 1) (<= Y_2 2)))").cases) == 6
    assert len(parse_property(HEAD + BOX + either + "(assert (<= Y_2 0))").cases) == 2


def test_strict_inequalities_are_closed_for_bounds_and_open_for_counterexamples() -> None:
    asked = parse_property(
        HEAD + "(assert (and (> X_0 0) (<= X_0 1) (>= X_1 0) (< X_1 1) (<= X_1 1) (>= X_1 -5)))\n"
        "(assert (or (> Y_0 2) (and (>= Y_0 1) (< Y_1 0) (< X_1 0.5))))\n"
    )
    first, second = asked.cases
    assert (first.lower.tolist(), first.upper.tolist()) == ([0, 0], [1, 1])
    assert first.strict is not None
    assert [part.tolist() for part in first.strict] == [[True], [True, False], [False, True]]
    assert first.violated_by(torch.tensor([[2.0, 0, 0], [2.5, 0, 0]])).tolist() == [False, True]
    assert second.strict is not None
    assert (second.upper.tolist(), second.strict.functions.tolist()) == ([1, 0.5], [False, True])
    outputs = torch.tensor([[1.0, 0, 0], [1.0, -1e-30, 0], [0.9, -1, 0], [math.nan, -1, 0]])
    assert second.violated_by(outputs).tolist() == [False, True, False, False]
    near = second.nearest(torch.tensor([-3.0, 7.0]))
    assert near is not None
    assert near.tolist() == [5e-324, math.nextafter(0.5, 0)]


def test_strict_bounds_may_leave_no_number() -> None:
    text = HEAD + f"(assert (and (> X_0 1) (< X_0 {math.nextafter(1, 2)!r}) (>= X_1 0) (<= X_1 1) (>= Y_0 0)))"
    (case,) = parse_property(text).cases
    assert case.nearest(torch.ones(2)) is None  # but real numbers are left, so that the case is no empty one


def test_a_box_that_is_empty_makes_no_case() -> None:
    some = "(and (>= X_0 0.2) (<= X_0 {}) (>= Y_0 {}))"
    text = HEAD + BOX + f"(assert (or {some.format(0.1, 1)} {some.format(0.3, 2)} (and (> X_1 2) (>= Y_0 3))))"
    (case,) = parse_property(text).cases
    assert case.offsets.tolist() == [2.0]
    none = parse_property(HEAD + BOX + f"(assert (or {some.format(0.1, 1)} {some.format(0.1, 2)}))")
    assert none.cases == ()


def test_clauses_keep_the_order_of_what_is_asserted() -> None:
    text = "(assert (and (or (<= Y_0 1) (and (<= Y_0 2) (<= Y_1 2))) (<= Y_2 9) (or (<= Y_0 3) (<= Y_0 4))))"
    cases = parse_property(HEAD + BOX + text + "(assert (<= Y_2 7))").cases
    expected = [[7, 1, 9, 3], [7, 1, 9, 4], [7, 2, 2, 9, 3], [7, 2, 2, 9, 4]]
    assert [(-case.offsets).tolist() for case in cases] == expected


def test_very_many_cases_are_made_while_they_are_read() -> None:
    either = "(assert (or" + "".join(f" (<= Y_0 {i})" for i in range(150)) + "))\n"
    asked = parse_property(HEAD + BOX + either * 2 + "(assert (<= Y_1 0))")
    assert not isinstance(asked.cases, tuple)
    assert asked.cases.most == 150**2
    for _ in range(2):  # they can be read again
        first, second = islice(asked.cases, 2)
        assert first.offsets.tolist() == [0, 0, 0]
        assert second.offsets.tolist() == [0, 0, -1]
        assert first.lower is second.lower  # the box is one for all
    assert sum(1 for _ in asked.cases) == 150**2


MALFORMED = {
    "(assert (<= X_0 1)": "line 9: this bracket is never closed",
    "assert": "line 9: 'assert' stands outside brackets",
    ")": r"line 9: '\)' stands outside brackets",
    "(check-sat)": "only .declare-const",
    "(vnnlib-version <1.0>)": "only .declare-const",
    "(declare-const X_5 Real)": "'X_5' is declared where X_2 or Y_3 is next",
    "(declare-const Z_0 Real)": "'Z_0' is declared where",
    "(declare-const X_2 Int)": "only .declare-const",
    "(assert (< 0 Y_0 1))": "a formula is",
    "(assert (<< Y_0 1))": "a formula is",
    "(assert (= Y_0 1))": "a formula is",
    "(assert (or))": "a formula is",
    "(assert true)": "only .declare-const",
    "(assert (<= Y_7 1))": "'Y_7' is neither a number nor a declared variable",
    "(assert (<= Y_0 nan))": "'nan' is neither",
    "(assert (<= Y_0 1e999))": "too large",
    "(assert (<= (+ Y_1 (* 1e-400 (* 1e200 (* 1e200 Y_0)))) 0))": "'1e-400' is too small for a number other than zero",
    "(assert (<= Y_0 -1e-310))": "too small",
    "(assert (<= Y_0 (* 1e-300 (* 1e-10 Y_1))))": "its numbers are too small",
    "(assert (<= Y_0 (* Y_1 Y_2)))": "a product of two variables",
    "(assert (<= Y_0 (/ 1 3)))": "a term is",
    "(assert (<= Y_0 X_0))": "between one input and a number, or between outputs",
    "(assert (<= (+ X_0 X_1) 1))": "between one input and a number, or between outputs",
    "(assert (<= 0 1))": "between one input and a number, or between outputs",
    "(assert (<= Y_0 Y_0))": "between one input and a number, or between outputs",
    "(assert (<= Y_0 (+)))": "a term is",
    "(assert (<= Y_0 (+ 1 (<= Y_1 2))))": "line 9: a term is",
    "(assert (and (<= Y_0 1) true))": "line 9: a formula is",
    "(assert (or (<= Y_0 1)\n(xor (<= Y_1 1) (<= Y_2 1))))": "line 10: a formula is",
    "(<= Y_0 1)": "only .declare-const",
    "(" * 1000: "more than 100 nested brackets",
    "(assert (<= X_0 -1))": "X_0 has a lower bound above its upper one",
    "(assert (< X_0 -1e-3))": "X_0 has a lower bound above its upper one",
    "(assert (<= Y_0 (* 1e300 1e300)))": "its numbers are too large",
    "(assert (<= Y_0 (+ 1e308 1e308)))": "its numbers are too large",
    "(assert (<= Y_0 (* 1e-300 (* 1e-300 Y_1))))": "its numbers are too small",
}


@pytest.mark.parametrize("line", MALFORMED, ids=lambda line: line[:40])
def test_what_is_not_understood_is_an_error_with_its_line(line: str) -> None:
    with pytest.raises(PropertyError, match=MALFORMED[line]):
        parse_property(HEAD + BOX + "(assert (<= Y_0 1))\n" + line)


def test_what_is_missing_is_an_error() -> None:
    with pytest.raises(PropertyError, match="X_1 has no finite"):
        parse_property(HEAD + "(assert (<= X_0 1)) (assert (>= X_0 0)) (assert (<= X_1 0)) (assert (<= Y_0 1))")
    with pytest.raises(PropertyError, match="has no condition on the outputs"):
        parse_property(HEAD + BOX)
    with pytest.raises(PropertyError, match="declares no inputs"):
        parse_property("")


def test_a_flood_of_cases_is_stopped() -> None:
    either = "(assert (or" + " (<= Y_0 0)" * 200 + "))\n"
    with pytest.raises(PropertyError, match=f"more than {MOST_CASES:,} cases"):
        parse_property(HEAD + BOX + either * 4)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PropertyError, match=r"none\.vnnlib cannot be read"):
        read_property(tmp_path / "none.vnnlib")
    (tmp_path / "bytes.vnnlib").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PropertyError, match=r"bytes\.vnnlib cannot be read"):
        read_property(tmp_path / "bytes.vnnlib")
    (tmp_path / "bad.vnnlib").write_text("(assert")
    with pytest.raises(PropertyError, match=r"bad\.vnnlib: line 1"):
        read_property(tmp_path / "bad.vnnlib")
