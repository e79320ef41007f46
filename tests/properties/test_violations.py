"""The search for violations: many cases at once, each with functions and a box of its own."""

import pytest
import torch
from torch import Generator, nn

from certtrain.attack import PGD
from certtrain.bounds.supported import checked_graph
from certtrain.properties.cases import Case, stacked
from certtrain.properties.exact import PreparedNetwork
from certtrain.properties.violations import AT_A_TIME, Violation, case_bytes, cases_at_a_time, search
from certtrain.runtime.deadline import NEVER, Deadline


def case(seed: int, functions: int) -> Case:
    generator = Generator().manual_seed(seed)
    lower = torch.rand(4, generator=generator, dtype=torch.float64)
    width = torch.rand(4, generator=generator, dtype=torch.float64)
    rows = torch.randn(functions, 3, generator=generator, dtype=torch.float64)
    return Case(lower, lower + width, rows, torch.randn(functions, generator=generator, dtype=torch.float64))


def subject(seed: int = 0) -> PreparedNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval().requires_grad_(False)
        exact = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval().double().requires_grad_(False)
    exact.load_state_dict(network.state_dict())
    return PreparedNetwork(network, exact, checked_graph(exact), (4,))


def outside() -> Case:
    """No output of the networks above is as small."""
    one = torch.ones(4, dtype=torch.float64)
    return Case(0 * one, one, torch.eye(3, dtype=torch.float64)[:1], torch.full((1,), 1e6, dtype=torch.float64))


def test_stacked_cases_have_each_cases_largest_function():
    cases = [case(seed, functions) for seed, functions in enumerate((1, 4, 2, 1))]
    outputs = torch.randn(6, 3, generator=Generator().manual_seed(9))
    numbers = torch.tensor([2, 0, 1, 1, 3, 2])
    outputs[5, 0] = torch.inf  # what a case does not have stays out of it
    found = stacked(cases).largest(outputs, numbers)
    expected = [cases[n].values(row[None]).max() for n, row in zip(numbers.tolist(), outputs, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_case_among_many_is_found_in_its_own_box():
    for seed in range(20):
        wanted = case(seed, 1 + seed % 3)
        found = search(subject(seed), [outside(), outside(), wanted, outside()], PGD(seed=seed))
        alone = search(subject(seed), [wanted], PGD(seed=seed))
        assert (found is None) == (alone is None)
        if found is not None:
            assert bool(((found >= wanted.lower) & (found <= wanted.upper)).all())
            assert bool(wanted.violated_by(subject(seed).exact(found[None])).all())
    assert search(subject(), [outside()] * 3, PGD(steps=3)) is None


def test_boxes_below_the_resolution_of_float32_are_searched_in_float64():
    """Between 1/3 and 1/3 + 1e-12 there is no float32: a violation must be one at the nearest of them as well."""
    network = nn.Sequential(nn.Linear(1, 2))
    exact = nn.Sequential(nn.Linear(1, 2)).double()
    weights = {"0.weight": torch.tensor([[1.0], [0.0]]), "0.bias": torch.zeros(2)}
    network.load_state_dict(weights)
    exact.load_state_dict(weights)
    end, one = torch.tensor([1 / 3], dtype=torch.float64), torch.eye(2, dtype=torch.float64)[:1]
    about = PreparedNetwork(network, exact, checked_graph(exact), (1,))
    reached = Case(end, end + 1e-12, one, -end - 1e-6)
    found = search(about, [reached], PGD(steps=2))
    assert found is not None
    assert float(end) <= float(found) <= float(end) + 1e-12
    assert search(about, [Case(end, end + 1e-12, one, -end + 1e-6)], PGD(steps=2)) is None


@pytest.mark.parametrize("deadline", [NEVER, Deadline(0.0)])
def test_after_the_first_violation_or_the_deadline_none_is_confirmed(deadline: Deadline):
    one = torch.ones(4, dtype=torch.float64)
    wanted = Case(0 * one, one, 0 * one[None, :3], -one[:1])  # reached everywhere
    criterion = Violation(subject(), [wanted] * 3, deadline)
    work = criterion.boxes()
    each = [criterion.confirmed(work.x[row : row + 1], work.row(row)) for row in range(3)]
    assert each == [deadline is NEVER, False, False]


def test_the_cases_of_a_batch_fit_the_memory():
    prepared = subject()
    x = torch.zeros(1, 4, dtype=torch.float64)
    assert case_bytes(prepared, x) == 2 * 8 * (4 + 8 + 8 + 3)
    assert cases_at_a_time(prepared, NEVER) == AT_A_TIME
    for memory, cases in ((1, 1), (3 * 368, 3), (2**40, AT_A_TIME)):
        assert cases_at_a_time(prepared._replace(memory=memory), NEVER) == cases
    wanted = case(3, 1)
    for memory in (1, 2**30):
        small = search(prepared._replace(memory=memory), [outside(), outside(), wanted], PGD(seed=3))
        assert (small is None) == (search(prepared, [wanted], PGD(seed=3)) is None)
