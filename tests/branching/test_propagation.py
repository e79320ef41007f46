"""Conditions on neurons and inputs where a case is violated: no violating input is cut off, and clauses are decided."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain.bounds.rounding import arithmetic_named
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.bounds.supported import checked_graph
from certtrain.branching import inputs
from certtrain.branching.halfspaces import remaining, with_combinations
from certtrain.branching.input_bounds import bounded
from certtrain.branching.input_domains import InputDomains, InputProblem
from certtrain.branching.inputs import InputSearch
from certtrain.branching.propagation import narrowed
from helpers.sampling import points_inside

REAL = arithmetic_named("real")
SETTINGS = replace(VERDICT_SETTINGS, rounding=REAL, domains=100)
INPUTS, HIDDEN, OUTPUTS = 4, 10, 3
ACTIVATIONS = {
    "relu": (nn.ReLU(), nn.ReLU()),
    "leaky": (nn.LeakyReLU(0.2), nn.LeakyReLU(0.1)),
    "steep": (nn.LeakyReLU(1.5), nn.ReLU()),  # concave: it has no limits
    "sigmoid": (nn.Sigmoid(), nn.ReLU()),  # and so has this; the neurons after it are not affine
    "clamped": (nn.ReLU(), nn.ReLU6()),
}
Clause = tuple[int, ...]  # ±(number + 1) of its variables


def network(activations: str, seed: int) -> nn.Sequential:
    """Three layers, in float64."""
    first, second = ACTIVATIONS[activations]
    layers = [nn.Linear(INPUTS, HIDDEN), first, nn.Linear(HIDDEN, HIDDEN), second, nn.Linear(HIDDEN, OUTPUTS)]
    model, generator = nn.Sequential(*layers).double().eval(), Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.requires_grad_(False)


def problem_of(model: nn.Module, seed: int) -> InputProblem:
    """Two cases of two and three functions, each violated by a few percent of the inputs of a box."""
    lower, upper = torch.zeros(1, INPUTS).double(), torch.ones(1, INPUTS).double()
    outputs, generator = model(points_inside(lower[0], upper[0], 5_000)), Generator().manual_seed(seed)
    cases = []
    for count in (2, 3):
        functions = torch.randn(count, OUTPUTS, generator=generator, dtype=torch.float64)
        values = outputs @ functions.T
        offsets = -values.quantile(0.3, 0)
        cases.append((functions, offsets - (values + offsets).amax(1).quantile(0.05)))
    return InputProblem.of(checked_graph(model), lower, upper, cases, REAL)


def parts_of(problem: InputProblem) -> InputDomains:
    """The box in 2^N parts."""
    corners = torch.tensor(list(itertools.product((0.0, 0.5), repeat=INPUTS))).double()
    return InputSearch(problem, SETTINGS).first(corners, corners + 0.5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_no_input_that_violates_a_case_is_cut_off(activations: str, seed: int):
    model = network(activations, seed)
    problem = problem_of(model, seed)
    domains = parts_of(problem)
    found = bounded(problem, domains, SETTINGS, with_limits=True)
    lower, upper, cases = remaining(with_combinations(found.linear), domains.cases)
    affine = InputSearch(problem, SETTINGS).affine
    assert len(affine) == (activations not in ("steep", "sigmoid"))
    rest = narrowed(found.limits, cases, found.boxes, affine, (lower, upper))
    seen = 0
    for number in range(domains.total):
        x = points_inside(domains.lower[number], domains.upper[number], 3_000)
        values = (model(x) @ problem.functions.T + problem.offsets)[:, problem.cases].amax(2)
        violating = (values <= 0).any(1)
        seen += int(violating.sum())
        if not bool(violating.any()):
            continue
        x = x[violating]
        assert cases[number].any()
        assert not rest.empty[number]
        assert bool(((x >= rest.lower[number]) & (x <= rest.upper[number])).all())
        at_layers = (model[0](x), model[:3](x))
        for z, (least, most) in zip(at_layers, rest.boxes, strict=True):
            slack = 1e-12 * z.abs().max()  # the rounding of z, which the boxes need not hold
            assert bool(((z >= least[number] - slack) & (z <= most[number] + slack)).all())
    assert seen > 100
    before = sum(float((upper - lower).sum()) for lower, upper in found.boxes)
    after = sum(float((upper - lower).sum()) for lower, upper in rest.boxes)
    assert after < before if activations == "relu" else after <= before


def test_conditions_that_contradict_one_another_close_a_domain():
    """Two sums of the inputs have limits that each is possible alone, and CROWN's bounds after them cross."""
    count = 11
    sums, after, last = nn.Linear(count, 2), nn.Linear(2, 3), nn.Linear(3, 3)
    sums.weight.data, sums.bias.data = torch.stack([torch.ones(count), -torch.ones(count)]), torch.tensor([0.6, 0.45])
    after.weight.data, after.bias.data = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([1.0, 1, -0.1])
    last.weight.data, last.bias.data = torch.eye(3), torch.zeros(3)
    model = nn.Sequential(sums, nn.ReLU(), after, nn.ReLU(), last).double().eval().requires_grad_(False)
    ends = torch.tensor([[-1.3] + [-0.05] * 10]).double(), torch.tensor([[0.0] + [0.05] * 10]).double()
    case = torch.eye(3).double(), torch.tensor([-1.1, -1.1, -100.0]).double()
    assert InputSearch(InputProblem.of(checked_graph(model), *ends, [case], REAL), SETTINGS).run().proved


# --- clauses ---------------------------------------------------------------------------------------------


def clauses_of(variables: int, count: int, seed: int) -> list[Clause]:
    """Random clauses of three variables each."""
    generator = Generator().manual_seed(seed)
    chosen = [torch.randperm(variables, generator=generator)[:3] + 1 for _ in range(count)]
    signs = torch.randint(0, 2, (count, 3), generator=generator) * 2 - 1
    return [tuple((each * sign).tolist()) for each, sign in zip(chosen, signs, strict=True)]


def encoded(clauses: list[Clause], variables: int) -> InputProblem:
    """To prove: Σ relu(literals that are false − their number + 1) or Σ x − relu(2x − 1) is above zero.

    The first is zero where all clauses hold, the second where all variables are 0 or 1.
    """
    rows, biases = torch.zeros(len(clauses), variables), torch.zeros(len(clauses))
    for number, clause in enumerate(clauses):
        for literal in clause:
            rows[number, abs(literal) - 1] = -1.0 if literal > 0 else 1.0
        biases[number] = 1.0 - sum(literal < 0 for literal in clause)
    each = torch.eye(variables)
    first, last = nn.Linear(variables, len(clauses) + 2 * variables), nn.Linear(len(clauses) + 2 * variables, 2)
    first.weight.data, first.bias.data = (
        torch.cat([rows, each, 2 * each]),
        torch.cat([biases, each[0] * 0, -each.sum(0)]),
    )
    signs = torch.tensor([[1.0, 0, 0], [0, 1, -1]])
    last.weight.data = signs.repeat_interleave(torch.tensor([len(clauses), variables, variables]), 1)
    last.bias.data.zero_()
    model = nn.Sequential(first, nn.ReLU(), last).double().eval().requires_grad_(False)
    lower, upper = torch.zeros(1, variables).double(), torch.ones(1, variables).double()
    return InputProblem.of(checked_graph(model), lower, upper, [(torch.eye(2).double(), torch.zeros(2).double())], REAL)


def solutions(clauses: list[Clause], variables: int) -> Tensor:
    """All assignments (M, N) of 0 and 1 at which every clause holds."""
    each = torch.tensor(list(itertools.product((0.0, 1.0), repeat=variables))).double()
    holds = [[(each[:, abs(v) - 1] == (v > 0)) for v in clause] for clause in clauses]
    return each[torch.stack([torch.stack(literals).any(0) for literals in holds]).all(0)]


@pytest.mark.parametrize("seed", range(12))
def test_clauses_are_decided_and_no_solution_is_cut_off(seed: int):
    variables = 6
    clauses = clauses_of(variables, 20 + 2 * seed, seed)
    problem, known = encoded(clauses, variables), solutions(clauses, variables)
    search = InputSearch(problem, SETTINGS)
    outcome = search.run()
    assert outcome.proved == (len(known) == 0)
    if len(known) == 0:
        assert outcome.domains < 60
    else:  # each solution is left in a domain, though it is on the boundary of every condition
        inside = [
            ((known[:, None] >= part.lower) & (known[:, None] <= part.upper)).all(2).any(1) for part in search.waiting
        ]
        assert bool(torch.stack(inside).any(0).all())


def test_conditions_on_neurons_save_most_splits(monkeypatch: pytest.MonkeyPatch):
    variables = 20
    problem = encoded(clauses_of(variables, 160, 0), variables)
    found = InputSearch(problem, SETTINGS).run()
    monkeypatch.setattr(inputs, "affine_neurons", lambda *anything: [])
    alone = InputSearch(problem, SETTINGS).run()
    assert found.proved
    assert found.domains < alone.domains / 2
