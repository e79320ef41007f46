"""The box in floating-point numbers, against rational arithmetic."""

from fractions import Fraction

import pytest
import torch
from torch import Generator, Tensor

from certtrain.bounds.box import box_ends

RADII = [0.0, 1e-12, 2**-24, 8 / 255, 0.1, 0.3, 0.5, 1.0]


def pixels(dtype: torch.dtype, count: int = 300) -> Tensor:
    """Random pixels of every size, grey levels, both ends, and the smallest numbers."""
    generator = Generator().manual_seed(0)
    random = torch.rand(count, generator=generator, dtype=dtype)
    special = torch.tensor([0.0, -0.0, 1.0, 1 - 2**-24, 2**-149, 2**-126, 1e-9, 0.1, 0.3], dtype=dtype)
    return torch.cat([random, random**20, torch.arange(256, dtype=dtype) / 255, special])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("eps", RADII)
def test_the_ends_are_the_outermost_numbers_of_the_real_box(eps: float, dtype: torch.dtype):
    x = pixels(dtype)
    lower, upper = box_ends(x, eps)
    assert lower.dtype == upper.dtype == dtype
    outside = torch.full_like(x, 2.0)
    under, over = lower.nextafter(-outside), upper.nextafter(outside)
    for centre, low, high, below, above in zip(*(t.tolist() for t in (x, lower, upper, under, over)), strict=True):
        least, greatest = max(Fraction(centre) - Fraction(eps), 0), min(Fraction(centre) + Fraction(eps), 1)
        assert Fraction(below) < least <= Fraction(low) <= Fraction(centre)
        assert Fraction(centre) <= Fraction(high) <= greatest < Fraction(above)


def test_plain_rounding_would_leave_the_box():
    x = pixels(torch.float32)
    lower, upper = box_ends(x, 8 / 255)
    assert bool(((x - 8 / 255).clamp(0, 1) < lower).any())
    assert bool(((x + 8 / 255).clamp(0, 1) > upper).any())


def test_without_a_radius_the_box_is_the_point():
    x = pixels(torch.float32)
    lower, upper = box_ends(x, 0.0)
    assert torch.equal(lower, x)
    assert torch.equal(upper, x)
