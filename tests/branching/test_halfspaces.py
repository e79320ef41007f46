"""Linear bounds of several functions: no input that may violate a case is cut off, and sums are bounds too."""

import pytest
import torch
from torch import Generator, Tensor

from certtrain.branching.halfspaces import LinearFunctions, open_cases, remaining, with_combinations

BOXES, CASES, FUNCTIONS, INPUTS = 40, 2, 3, 3


def drawn(seed: int, functions: int = FUNCTIONS) -> tuple[LinearFunctions, Tensor]:
    """Linear functions over boxes, and their constants (D, C, S): the bounds are their values in the best corners."""
    generator = Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lower, widths = normal(BOXES, INPUTS), normal(BOXES, INPUTS).abs()
    slopes, constants = normal(BOXES, CASES, functions, INPUTS), normal(BOXES, CASES, functions)
    slopes[0], slopes[1, :, 0], slopes[2, 0, 0, 0] = 0.0, 0.0, 1e-300
    upper = lower + widths
    corner = torch.where(slopes > 0, lower[:, None, None], upper[:, None, None])
    bounds = (slopes * corner).sum(3) + constants
    return LinearFunctions.of(lower, upper, bounds, slopes), constants


def inputs_of(linear: LinearFunctions, seed: int, count: int = 400) -> Tensor:
    """Inputs (P, D, N) of the boxes."""
    share = torch.rand(count, *linear.lower.shape, generator=Generator().manual_seed(seed), dtype=torch.float64)
    return linear.lower + share * (linear.upper - linear.lower)


def values_at(linear: LinearFunctions, constants: Tensor, x: Tensor) -> Tensor:
    """The functions' values (P, D, C, S)."""
    return torch.einsum("dcsn,pdn->pdcs", linear.coefficients[:, :, : constants.shape[2]], x) + constants


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("combined", [False, True])
def test_no_input_where_all_functions_are_at_most_zero_is_cut_off(seed: int, combined: bool):
    linear, constants = drawn(seed)
    x = inputs_of(linear, seed)
    violating = (values_at(linear, constants, x) <= 0).all(3)  # (P, D, C)
    left = remaining(with_combinations(linear) if combined else linear, torch.ones(BOXES, CASES, dtype=torch.bool))
    assert bool((left.cases | ~violating.any(0)).all())
    inside = ((x >= left.lower) & (x <= left.upper)).all(2)
    assert bool((inside | ~violating.any(2)).all())
    assert violating.any()
    assert not left.cases.all()
    assert bool(((left.upper - left.lower).prod(1) <= (linear.upper - linear.lower).prod(1)).all())


def test_much_is_cut_off_and_one_function_is_cut_exactly():
    """x + y ≥ 0.5 is excluded from the unit square: what is left is the square below 0.5."""
    slopes = torch.ones(1, 1, 1, 2).double()
    linear = LinearFunctions.of(
        torch.zeros(1, 2).double(), torch.ones(1, 2).double(), torch.full((1, 1, 1), -0.5), slopes
    )
    left = remaining(linear, torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(left.upper, torch.full((1, 2), 0.5).double(), rtol=1e-12, atol=0)
    assert bool((left.upper >= 0.5).all())
    assert left.lower.tolist() == [[0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_a_combination_is_a_bound_and_closes_cases_that_no_function_closes(seed: int):
    linear, constants = drawn(seed)
    with_sums = with_combinations(linear)
    assert with_sums.bounds.shape == (BOXES, CASES, FUNCTIONS + 1)
    # Some function is at least the combination everywhere, since the weights sum to one.
    largest = values_at(linear, constants, inputs_of(linear, seed)).amax(3).amin(0)
    assert bool((with_sums.bounds[..., -1] <= largest + 1e-9).all())
    assert bool((with_sums.bounds[..., -1] >= linear.bounds.amax(2) - 2).all())
    closed = open_cases(linear) & ~open_cases(with_sums)
    assert bool(closed.any())
    assert bool((largest[closed] > 0).all())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("of_coefficient", [False, True])
def test_a_bound_that_is_not_finite_closes_nothing_and_cuts_nothing(value: float, of_coefficient: bool):
    linear, _ = drawn(0, functions=1)
    bounds, slopes = linear.bounds.clone(), linear.coefficients.clone()
    (slopes if of_coefficient else bounds)[...] = value
    broken = LinearFunctions.of(linear.lower, linear.upper, bounds, slopes)
    left = remaining(with_combinations(broken), torch.ones(BOXES, CASES, dtype=torch.bool))
    assert bool(left.cases.all())
    assert bool(open_cases(broken).all())
    assert torch.equal(left.lower, linear.lower)
    assert torch.equal(left.upper, linear.upper)


def test_one_function_that_is_not_finite_leaves_the_others_their_effect():
    linear, constants = drawn(3)
    bounds = linear.bounds.clone()
    bounds[:, :, 0] = torch.nan
    broken = LinearFunctions.of(linear.lower, linear.upper, bounds, linear.coefficients)
    left = remaining(with_combinations(broken), torch.ones(BOXES, CASES, dtype=torch.bool))
    x = inputs_of(linear, 3)
    violating = (values_at(linear, constants, x)[..., 1:] <= 0).all(3)
    assert bool((left.cases | ~violating.any(0)).all())
    assert not left.cases.all()


def test_a_combination_with_a_function_that_is_not_finite_is_no_bound():
    linear, _ = drawn(3)
    bounds = linear.bounds.clone()
    bounds[0, 0, 0], bounds[1, 1, 2], bounds[2, 0] = torch.nan, -torch.inf, torch.inf
    found = with_combinations(LinearFunctions.of(linear.lower, linear.upper, bounds, linear.coefficients))
    unknown = torch.tensor([[0, 0], [1, 1], [2, 0]]).T
    assert found.bounds[*unknown, -1].tolist() == [-torch.inf] * 3
    assert not found.coefficients[*unknown, -1].any()
    assert not found.bounds.isnan().any()


def test_cases_that_do_not_count_are_left_out():
    linear, _ = drawn(1)
    none = remaining(linear, torch.zeros(BOXES, CASES, dtype=torch.bool))
    assert not none.cases.any()
    assert torch.equal(none.lower, linear.lower)
    first = remaining(linear, torch.tensor([True, False]).expand(BOXES, 2))
    both = remaining(linear, torch.ones(BOXES, CASES, dtype=torch.bool))
    assert torch.equal(first.cases[:, 0], both.cases[:, 0])
    assert bool((first.lower >= both.lower)[first.cases[:, 0]].all())


def test_a_corner_on_the_wrong_side_would_be_found():
    """The test above can fail: halfspaces measured from the wrong corners cut off inputs."""
    linear, constants = drawn(0)
    wrong = linear._replace(coefficients=-linear.coefficients)
    x = inputs_of(linear, 0)
    violating = (values_at(linear, constants, x) <= 0).all(3)
    left = remaining(wrong, torch.ones(BOXES, CASES, dtype=torch.bool))
    inside = ((x >= left.lower) & (x <= left.upper)).all(2)
    assert not bool((inside | ~violating.any(2)).all())
