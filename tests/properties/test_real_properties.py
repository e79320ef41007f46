"""Properties are decided in real arithmetic: what float64 rounds on the way is taken off every bound."""

import itertools
from fractions import Fraction

import pytest
import torch
from torch import nn

from certtrain.properties.cases import Case, Property
from certtrain.properties.decide import decide


def test_a_large_constant_that_absorbs_the_input_proves_nothing():
    """Real arithmetic gives 3.0 at the lower corner, where float64 loses what is added to 2**53."""
    network = nn.Sequential(nn.Linear(12, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0] * 12, [0.0] * 12]))
        network[0].bias.fill_(2.0**53)
        network[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        network[2].bias.zero_()
    one, offset = torch.ones(1, 1, dtype=torch.float64), torch.tensor([-3.3], dtype=torch.float64)
    lower, upper = torch.full((12,), 0.25, dtype=torch.float64), torch.full((12,), 0.26, dtype=torch.float64)
    narrow = lower.clone()
    narrow[0] += 2**-50  # 16 numbers, so that the search comes to its end
    for method, end, limit in (("crown-ibp", upper, None), ("complete", upper, 1.0), ("complete", narrow, None)):
        case = Case(lower, end, one, offset)
        assert decide(network, (12,), Property(12, 1, (case,)), method=method, time_limit=limit).result != "unsat"


@pytest.mark.parametrize("seed", range(40))
def test_an_exact_tie_at_a_corner_is_not_proved_away(seed: int):
    """The least value of a linear function is at a corner; a threshold just there is reached in exact arithmetic."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(8, 1)).double().eval()
    weights, bias = network[0].weight[0].tolist(), network[0].bias.item()
    low, high = torch.rand(8, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    lower, upper = torch.minimum(low, high), torch.maximum(low, high)
    ends = zip(lower.tolist(), upper.tolist(), strict=True)
    each = zip(weights, ends, strict=True)
    least = Fraction(bias) + sum(min(Fraction(w) * Fraction(end) for end in pair) for w, pair in each)
    for offset in itertools.islice(_floats_around(least), 5):
        case = Case(
            lower, upper, torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([-offset], dtype=torch.float64)
        )
        result = decide(network, (8,), Property(8, 1, (case,))).result
        assert result != "unsat" or least > Fraction(offset)


def _floats_around(value: Fraction):
    near = torch.tensor(float(value), dtype=torch.float64)
    for step in range(-2, 3):
        shifted = near.clone()
        for _ in range(abs(step)):
            shifted = shifted.nextafter(torch.tensor(float("inf") * (1 if step > 0 else -1), dtype=torch.float64))
        yield float(shifted)
