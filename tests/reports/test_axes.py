"""What has a place on an axis, and round limits."""

import math

import pytest

from certtrain.reports.axes import drawable, from_zero, whole_decades


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_gap(value: float | None):
    assert math.isnan(drawable(value))
    assert math.isnan(drawable(value, log=True))


@pytest.mark.parametrize(("value", "log", "shown"), [(0.0, False, True), (0.0, True, False), (-1.0, False, True)])
def test_a_logarithmic_axis_has_no_zero(value: float, log: bool, shown: bool):
    assert (drawable(value, log) == value) == shown


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([20.0, 3000.0, 0.0, None, math.inf], (10, 10000)),
        ([10.0, 100.0], (10, 100)),
        ([10.0], (10, 100)),
        ([None, 0.0], (1, 10)),
    ],
)
def test_a_logarithmic_axis_ends_at_powers_of_ten(values: list[float | None], limits: tuple[float, float]):
    assert whole_decades(values) == pytest.approx(limits)


@pytest.mark.parametrize(
    ("values", "limits"), [([1.0, 2.0, math.nan], (-0.08, 2.08)), ([-1.0], (-1.04, 0.04)), ([None], (-0.04, 0.04))]
)
def test_a_plain_axis_starts_at_zero(values: list[float | None], limits: tuple[float, float]):
    assert from_zero(values) == pytest.approx(limits)
