"""Properties as a whole: strict inequalities, empty boxes, and very many cases, which are decided in groups."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import nn

from certtrain.attack import PGD
from certtrain.errors import PropertyError
from certtrain.interchange.vnnlib import parse_property
from certtrain.properties import decide as deciding
from certtrain.properties.cases import Case, Property
from certtrain.properties.decide import AT_ONCE, EXACT_METHODS, Decision, decide
from certtrain.properties.exact import PreparedNetwork
from certtrain.runtime.deadline import Deadline

HEAD = "(declare-const X_0 Real)(declare-const Y_0 Real)\n"
UNIT = "(assert (and (>= X_0 0) (<= X_0 1)))\n"


def identity() -> nn.Module:
    """y = relu(x)."""
    network = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.fill_(0.0)
    return network.eval()


def result(text: str, method: str = "complete") -> Decision:
    return decide(identity(), (1,), parse_property(HEAD + text), method=method, time_limit=20)


METHODS = ["crown-ibp", *EXACT_METHODS]


@pytest.mark.parametrize("method", METHODS)
def test_a_strict_inequality_needs_a_counterexample_that_satisfies_it(method: str) -> None:
    if method == "milp":
        pytest.importorskip("scipy", reason="milp needs the extra 'milp'")
    assert result(UNIT + "(assert (>= Y_0 1))", method).result == "sat"
    assert result(UNIT + "(assert (> Y_0 1))", method).result == "unknown"  # true, but a bound cannot be above zero
    assert result(UNIT + "(assert (> Y_0 1.25))", method).result == "unsat"
    assert result(UNIT + "(assert (< X_0 1))(assert (>= Y_0 1))", method).result == "unknown"
    found = result(UNIT + "(assert (< X_0 1))(assert (> Y_0 0.5))", method)
    assert found.result == "sat"
    assert found.counterexample is not None
    assert 0.5 < float(found.counterexample) < 1


def test_a_case_with_an_empty_box_holds() -> None:
    some = "(and (>= X_0 {}) (<= Y_0 {}))"
    found = result(UNIT + f"(assert (or {some.format(2, 5)} {some.format(0.5, 0.25)}))", "crown-ibp")
    assert (found.result, found.by) == ("unsat", "crown-ibp")
    none = result(UNIT + f"(assert (or {some.format(2, 5)} {some.format(3, 5)}))")
    assert (none.result, none.by, none.to_dict()["bound"]) == ("unsat", "crown-ibp", None)


class Made:
    """Cases that are made whenever they are read."""

    def __init__(self, make: Callable[[], Iterator[Case]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Case]:
        return self.make()


def many(bound: float, cases: int) -> Property:
    """The property that x is at most `bound`, as so many cases; only the last one is near to it."""
    lower, upper, one = torch.zeros(1).double(), torch.ones(1).double(), torch.ones(1, 1).double()
    far = Case(lower, upper, -one, torch.full((1,), 7.0).double())
    last = Case(lower, upper, -one, torch.full((1,), bound).double())
    return Property(1, 1, Made(lambda: itertools.chain(itertools.repeat(far, cases - 1), [last])))


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the groups that are decided."""
    sizes: list[int] = []
    before = deciding._decide_cases

    def counted(
        prepared: PreparedNetwork, cases: Sequence[Case], method: str, attack: PGD, deadline: Deadline
    ) -> deciding._Part:
        sizes.append(len(cases))
        return before(prepared, cases, method, attack, deadline)

    monkeypatch.setattr(deciding, "_decide_cases", counted)
    return sizes


def test_very_many_cases_are_decided_group_by_group(groups: list[int]) -> None:
    assert decide(identity(), (1,), many(1.5, 2 * AT_ONCE + 5)).result == "unsat"
    assert groups == [AT_ONCE, AT_ONCE, 5]
    found = decide(identity(), (1,), many(0.5, AT_ONCE + 1))
    assert (found.result, found.by) == ("sat", "attack")
    assert found.bound == pytest.approx(-0.5)
    assert groups[3:] == [AT_ONCE, 1]


def test_the_first_group_with_a_counterexample_is_the_last_one(groups: list[int]) -> None:
    asked = many(0.5, 3)
    everything = Property(1, 1, Made(lambda: itertools.chain(asked.cases, many(7.0, AT_ONCE).cases)))
    assert decide(identity(), (1,), everything).result == "sat"
    assert groups == [AT_ONCE]


def test_after_the_deadline_no_more_groups_are_made(groups: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "AT_ONCE", 50)
    endless = Property(1, 1, Made(lambda: itertools.chain.from_iterable(many(7.0, 2).cases for _ in itertools.count())))
    found = decide(identity(), (1,), endless, time_limit=0.5)
    assert found.result == "unknown"
    assert found.by is None
    assert found.bound == -torch.inf
    assert set(groups) == {50}


def test_a_file_with_very_many_cases_is_decided(groups: list[int]) -> None:
    either = "(assert (or" + "".join(f" (>= Y_0 {i}.5)" for i in range(2, 12_002)) + "{}))"
    asked = parse_property(HEAD + UNIT + either.format(""))
    assert decide(identity(), (1,), asked).result == "unsat"
    assert decide(identity(), (1,), parse_property(HEAD + UNIT + either.format(" (>= Y_0 0.9)"))).result == "sat"
    assert groups == [AT_ONCE, 2000, AT_ONCE, 2001]


def test_cases_that_can_be_read_only_once_are_refused() -> None:
    cases = many(0.5, 3).cases
    with pytest.raises(PropertyError, match="can be read only once"):
        Property(1, 1, iter(cases))
    with pytest.raises(PropertyError, match="can be read only once"):
        Property(1, 1, (case for case in cases))


@pytest.mark.parametrize("method", ["crown-ibp", "complete"])
@pytest.mark.parametrize("weights", [(1e-150, 1e-200), (1e-160, 1e-170)])
def test_coefficients_that_underflow_prove_nothing(method: str, weights: tuple[float, float]) -> None:
    """The least output is about −w₁ w₂ 10¹⁵⁰, and the product of the weights is below every float64."""
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).double().eval()
    largest = torch.full((1,), 1e150, dtype=torch.float64)
    least = weights[0] * 1e150 * weights[1]
    with torch.no_grad():
        for layer, weight, bias in zip(network, weights, (0.0, 1e-10 * least), strict=True):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    asked = Property(1, 1, (Case(-largest, largest, one, zero),))
    assert network(-largest) < 0
    assert decide(network, (1,), asked, method=method).result != "unsat"


@pytest.mark.parametrize("method", ["crown-ibp", "complete"])
def test_an_output_that_overflows_is_no_counterexample(method: str) -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).double().eval()
    with torch.no_grad():
        for layer, weight, bias in zip(network, (1e200, -1e200), (1e200, 0.0), strict=True):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    upper, one = torch.ones(1).double(), torch.ones(1, 1).double()
    lower = upper - 2**-49  # 16 numbers, so that the search comes to its end
    assert network(upper) == network(lower) == -torch.inf
    asked = Property(1, 1, (Case(lower, upper, one, torch.zeros(1).double()),))
    assert decide(network, (1,), asked, method=method).result == "unknown"
