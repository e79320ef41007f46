"""The MILP against exhaustive enumeration of activation patterns, against bounds from below and attacks from above."""

import importlib
import os
from importlib.util import find_spec
from itertools import pairwise, product
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from certtrain.attack import PGD
from certtrain.bounds.activations.clamps import Clamp, limits_of
from certtrain.bounds.graph import Add, Normalize
from certtrain.bounds.shape_layers import Concat, Pad, Permute, Reshape, Slice
from certtrain.bounds.supported import checked_graph
from certtrain.errors import MissingExtra, UnsupportedLayer
from certtrain.properties import milp
from certtrain.properties.cases import Case, Property, robustness
from certtrain.properties.decide import case_bounds, decide
from certtrain.properties.exact import PreparedNetwork
from certtrain.properties.milp import TOLERANCE, minimum
from certtrain.runtime.deadline import Deadline

needs_scipy = pytest.mark.skipif(find_spec("scipy") is None, reason='SciPy is not installed: "certtrain[milp]"')


def mlp(sizes: tuple[int, ...], seed: int, slope: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for given, made in pairwise(sizes):
        layers += [nn.Linear(given, made), nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double().eval().requires_grad_(False)


def case(seed: int, inputs: int, outputs: int, rows: int = 1, eps: float = 0.4) -> Case:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(inputs, generator=generator, dtype=torch.float64)
    functions = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    offsets = 0.2 * torch.randn(rows, generator=generator, dtype=torch.float64)
    return Case(centre - eps, centre + eps, functions, offsets)


def enumerated(net: nn.Sequential, asked: Case, slope: float) -> float:
    """The least value over the box of the largest function: an LP for each pattern of all hidden units."""
    from scipy.optimize import linprog

    linears = [layer for layer in net if isinstance(layer, nn.Linear)]
    hidden = sum(layer.out_features for layer in linears[:-1])
    best = float("inf")
    for pattern in product((True, False), repeat=hidden):
        matrix, constant = torch.eye(len(asked.lower), dtype=torch.float64), torch.zeros_like(asked.lower)
        above, most, place = [], [], 0
        for layer in linears:
            matrix, constant = layer.weight @ matrix, layer.weight @ constant + layer.bias
            if layer is linears[-1]:
                break
            signs = torch.tensor(pattern[place : place + len(constant)])
            place += len(constant)
            sign = 2.0 * signs.double() - 1.0
            above.append(-sign[:, None] * matrix)
            most.append(sign * constant)
            scale = slope + (1.0 - slope) * signs.double()
            matrix, constant = scale[:, None] * matrix, scale * constant
        functions, offsets = asked.functions @ matrix, asked.functions @ constant + asked.offsets
        rows = torch.cat([*above, functions])
        last = torch.zeros(len(rows), 1, dtype=torch.float64)
        last[-len(functions) :] = -1.0
        found = linprog(
            [0.0] * len(asked.lower) + [1.0],
            A_ub=torch.cat([rows, last], 1).detach().numpy(),
            b_ub=torch.cat([*most, -offsets]).detach().numpy(),
            bounds=[*zip(asked.lower.tolist(), asked.upper.tolist(), strict=True), (None, None)],
        )
        if found.status == 0:
            best = min(best, float(found.fun))
    return best


def check(seed: int, sizes: tuple[int, ...], slope: float, rows: int) -> None:
    net, asked = mlp(sizes, seed, slope), case(seed, sizes[0], sizes[-1], rows)
    least = minimum(net, sizes[:1], asked)
    true = enumerated(net, asked, slope)
    assert least.proved <= true + 1e-9
    assert least.proved >= true - 1e-3
    assert least.reached == pytest.approx(true, abs=1e-5)
    assert least.reached >= true - 1e-9
    assert least.point is not None
    assert bool(((least.point >= asked.lower) & (least.point <= asked.upper)).all())
    (bound,) = case_bounds(PreparedNetwork(net, net, checked_graph(net), sizes[:1]), [asked])
    assert bound <= true + 1e-9
    inside = asked.lower + (asked.upper - asked.lower) * torch.rand(200, sizes[0], dtype=torch.float64)
    assert float(asked.values(net(inside)).amax(1).min()) >= true - 1e-9


@needs_scipy
@pytest.mark.parametrize("seed", range(12))
def test_the_minimum_is_that_of_all_activation_patterns(seed: int) -> None:
    check(seed, (2, 3, 2, 3), 0.0 if seed % 3 else 0.3, 1 + seed % 2)


@pytest.mark.slow
@needs_scipy
@pytest.mark.parametrize("first", range(100, 196, 48))  # each has all sizes, slopes and rows
def test_the_minimum_of_many_networks(first: int) -> None:
    for seed in range(first, first + 48):
        sizes = ((2, 3, 2, 3), (3, 4, 2), (1, 2, 2, 2), (2, 5, 2))[seed % 4]
        check(seed, sizes, (0.0, 0.0, 0.2, 1.5)[seed // 4 % 4], 1 + seed % 3)


class Everything(nn.Module):
    """Every layer that the MILP takes."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize, self.conv = Normalize((0.4, 0.5), (0.2, 0.3)), nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.norm, self.relu, self.pool = nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2)
        self.add, self.leaky, self.mean = Add(), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1)
        self.flatten, self.drop, self.same = nn.Flatten(), nn.Dropout(), nn.Identity()
        self.pad, self.slice, self.join, self.order = (
            Pad(2, 1, 0, 0.5),
            Slice(3, 0, 3, 2),
            Concat(1),
            Permute((3, 1, 2)),
        )
        self.shape = Reshape((4, 5, 2))
        self.linear, self.last_norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalize(x)
        x = self.add(self.relu(self.norm(self.conv(x))), x)
        x = self.join(self.slice(self.pad(x)), self.slice(self.pad(torch.relu(x))))  # (4, 5, 2)
        x = self.shape(self.order(x))
        x = self.flatten(self.mean(self.leaky(self.pool(x))))
        out: Tensor = self.head(torch.relu(self.last_norm(self.linear(self.same(self.drop(x))))))
        return out


@needs_scipy
@pytest.mark.parametrize("seed", range(4))
def test_every_layer_is_encoded_as_what_it_computes(seed: int) -> None:
    torch.manual_seed(seed)
    net = Everything().double()
    net.train()(torch.rand(8, 2, 4, 4, dtype=torch.float64))
    net.eval().requires_grad_(False)
    for eps in (0.0, 0.02):
        asked = case(seed, 32, 3, rows=2, eps=eps)
        least = minimum(net, (2, 4, 4), asked)
        # The solver's own value and the network's at its point are the same, so every layer is encoded right.
        assert least.reached - least.proved <= 1e-3
        assert least.reached >= least.proved
        inside = asked.lower + (asked.upper - asked.lower) * torch.rand(300, 32, dtype=torch.float64)
        assert float(asked.values(net(inside.view(-1, 2, 4, 4))).amax(1).min()) >= least.proved


@needs_scipy
def test_a_stable_network_needs_no_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.optimize

    monkeypatch.setattr(scipy.optimize, "milp", None)
    net = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0, -3.0]]))
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    least = minimum(net, (2,), Case(torch.zeros(2).double(), torch.ones(2).double(), one, zero))
    assert least.reached == -3.0
    assert least.proved == pytest.approx(-3.0 - 5 * TOLERANCE)
    assert least.unstable == 0


@needs_scipy
def test_it_decides_what_bounds_leave_open_and_never_contradicts_them() -> None:
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
        x = torch.rand(1, 2, 3)
        asked = robustness(x, int(net(x[None]).argmax()), 0.12, 3)
        cheap, exact = (decide(net.eval(), (1, 2, 3), asked, method=method) for method in ("crown-ibp", "milp"))
        assert cheap.result in ("unknown", exact.result)
        assert exact.result != "unknown"
        for found in (cheap, exact):
            if found.counterexample is not None:
                outputs = net(found.counterexample.float().view(1, 1, 2, 3))
                assert any(bool(part.violated_by(outputs)) for part in asked.cases)
                assert bool((found.counterexample >= asked.cases[0].lower).all())
                assert bool((found.counterexample <= asked.cases[0].upper).all())
        seen.add((cheap.result, exact.by))
    assert {("unsat", "crown-ibp"), ("sat", "attack"), ("unknown", "milp")} <= seen


@needs_scipy
def test_a_margin_of_zero_is_not_decided_by_the_solver() -> None:
    """|x| − 0 over [−1, 1] is at least zero, and zero at one point alone: no strict margin, and hard to hit."""
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
    ends = torch.tensor([1.0], dtype=torch.float64)
    for offset, allowed in ((1e-7, {"unknown", "unsat"}), (1e-3, {"unsat"}), (-1e-3, {"sat"})):
        asked = Case(-ends, 0.7 * ends, ends.view(1, 1), torch.tensor([offset], dtype=torch.float64))
        found = decide(net.eval(), (1,), Property(1, 1, (asked,)), method="milp", attack=PGD(5, 1))
        assert found.result in allowed
        assert abs(offset) > 1e-6 or found.by != "milp"  # intervals may prove it, exactly


@needs_scipy
def test_what_it_does_not_take_is_an_error() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    with pytest.raises(UnsupportedLayer, match=r"'1' is a Tanh; milp takes .*Linear"):
        minimum(net, (2,), case(0, 2, 2))
    with pytest.raises(UnsupportedLayer, match="more than 2,000 ReLUs are unstable"):
        minimum(mlp((2, 4000, 2), 0), (2,), case(0, 2, 2, eps=100.0))


@needs_scipy
def test_a_time_limit_is_kept_and_claims_nothing() -> None:
    asked = case(0, 20, 3, eps=1.0)
    least = minimum(mlp((20, 60, 60, 3), 0), (20,), asked, deadline=Deadline.after(1.0))
    assert least.seconds < 30
    assert least.proved < least.reached


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtra, match=r'pip install "certtrain\[milp\]"'):
        minimum(mlp((2, 2, 2), 0), (2,), case(0, 2, 2))


def test_what_the_solver_prints_by_itself_is_not_printed(capfd: pytest.CaptureFixture[str]):
    with milp._quiet():
        os.write(1, b"HighsMipSolverData")
    os.write(1, b"and this is")
    assert capfd.readouterr().out == "and this is"


@needs_scipy
@pytest.mark.parametrize("weight", [1e200, torch.inf, torch.nan])
def test_bounds_that_are_not_finite_claim_nothing(weight: float) -> None:
    """NaN is neither below nor above zero: no unit may be taken for a stable one by it."""
    net = mlp((2, 3, 3, 2), 0)
    with torch.no_grad():
        net[0].weight[0, 0] = weight
        net[2].weight[0, 0] = weight
    found = minimum(net, (2,), case(0, 2, 2))
    assert (found.proved, found.reached, found.point) == (-torch.inf, torch.inf, None)


def shift(size: int, sign: float, number: float) -> nn.Linear:
    """sign · x + number."""
    layer = nn.Linear(size, size)
    with torch.no_grad():
        layer.weight.copy_(sign * torch.eye(size))
        layer.bias.fill_(number)
    return layer


def as_relus(layer: nn.Module, size: int) -> list[nn.Module]:
    """max(x, a) is a + relu(x − a), and min(x, b) is b − relu(b − x)."""
    least, most = limits_of(layer)
    lower = [] if least is None else [shift(size, 1.0, -least), nn.ReLU(), shift(size, 1.0, least)]
    upper = [] if most is None else [shift(size, -1.0, most), nn.ReLU(), shift(size, -1.0, most)]
    return [*lower, *upper]


@needs_scipy
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "layer", [nn.Hardtanh(-0.2, 0.3), nn.ReLU6(), Clamp(0.1, 0.4), Clamp(min=-0.1), Clamp(max=0.2)], ids=str
)
def test_limits_are_as_many_relus(layer: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    first, last, asked = nn.Linear(3, 4), nn.Linear(4, 2), case(seed, 3, 2, 2)
    if isinstance(layer, nn.ReLU6):
        first.weight.data *= 15
    networks = [nn.Sequential(first, *layers, last) for layers in ([layer], as_relus(layer, 4))]
    found = [minimum(net.double().eval().requires_grad_(False), (3,), asked) for net in networks]
    assert found[0].reached == pytest.approx(found[1].reached, abs=1e-5)
    assert found[0].proved == pytest.approx(found[1].proved, abs=1e-3)


@pytest.mark.parametrize("layer", [nn.GELU(), nn.SiLU(), nn.Softplus(), nn.ELU(), nn.Sigmoid()], ids=str)
def test_a_curve_is_refused_by_name(layer: nn.Module) -> None:
    network = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2)).double().eval()
    with pytest.raises(UnsupportedLayer, match=f"'1'.*{type(layer).__name__}"):
        minimum(network, (3,), case(0, 3, 2, 2))
