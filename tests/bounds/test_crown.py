"""CROWN and α-CROWN: their order up to the true minimum, in parts, by windows, and with rounding errors."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from certtrain import certify
from certtrain.bounds import windows
from certtrain.bounds.box import Box, input_box
from certtrain.bounds.chunks import dense, in_parts
from certtrain.bounds.crown import tighten_by_crown
from certtrain.bounds.graph import Add
from certtrain.bounds.interval import LayerRecord
from certtrain.bounds.linear import Prefix, backsubstitute
from certtrain.bounds.methods import METHODS, up_to
from certtrain.bounds.relaxation import free_lines
from certtrain.bounds.rounding import ARITHMETICS
from certtrain.bounds.settings import DEFAULT, Settings
from certtrain.bounds.shape_layers import Concat
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import trace_bounds
from certtrain.errors import MethodError
from helpers.layer_cases import ALL as LAYERS
from helpers.layer_cases import ready
from helpers.networks import case
from helpers.sampling import points_inside

QUICK = Settings(iterations=15, neurons=50)
EXPENSIVE = ("crown", "alpha-crown")


def batch(name: str) -> Tensor:
    shape = LAYERS[name][1]
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def margins(method: str, model: nn.Module, x: Tensor, labels: Tensor, eps: float, settings: Settings) -> Tensor:
    return METHODS[method](checked_graph(model), input_box(x, eps, None), settings).margins(labels)


# --- every layer between two others ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, (layer, _) in LAYERS.items() if not isinstance(layer, (Add, Concat))])
@pytest.mark.parametrize("method", EXPENSIVE)
def test_samples_stay_inside_behind_every_layer(name: str, method: str):
    x, layer = batch(name), ready(LAYERS[name][0])
    torch.manual_seed(0)
    width = layer(x.clone()).flatten(1).shape[1]
    first: nn.Module = nn.Conv2d(x.shape[1], x.shape[1], 1) if x.dim() == 4 else nn.Linear(x.shape[-1], x.shape[-1])
    rest = (nn.Flatten(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 3))
    model = nn.Sequential(first, nn.LeakyReLU(0.1), layer, *rest).double().eval()
    lower, upper = METHODS[method](checked_graph(model), input_box(x, 0.3, None), QUICK).ends()
    with torch.no_grad():
        for point in points_inside(x - 0.3, x + 0.3, count=100):
            values = model(point)
            assert bool((values >= lower - 1e-12).all())
            assert bool((values <= upper + 1e-12).all())


# --- up to the true minimum ------------------------------------------------------------------------------


def rectifying(slope: float) -> nn.Sequential:
    act: Callable[[], nn.Module] = nn.ReLU if slope == 0 else lambda: nn.LeakyReLU(slope)
    return nn.Sequential(nn.Linear(2, 5), act(), nn.Linear(5, 4), act(), nn.Linear(4, 3)).double()


def true_margins(model: nn.Sequential, x: Tensor, label: int, eps: float) -> Tensor:
    """The least logit[y] − logit[j] over the square around `x` (2,): on the corners of its linear pieces.

    Each layer's lines cut the pieces, convex polygons of which the corners are
    kept in order: beside each corner the values that the layers give there.
    """
    square = x + eps * torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=x.dtype)
    pieces = [(square, square)]
    for layer in model:
        if isinstance(layer, nn.Linear):
            pieces = [(corners, layer(values)) for corners, values in pieces]
            continue
        for unit in range(pieces[0][1].shape[1]):
            pieces = [half for piece in pieces for half in halves(*piece, unit)]
        pieces = [(corners, layer(values)) for corners, values in pieces]
    logits = torch.cat([values for _, values in pieces])
    return (logits[:, label : label + 1] - logits).amin(0)


def halves(corners: Tensor, values: Tensor, unit: int) -> list[tuple[Tensor, Tensor]]:
    """A piece cut where the unit is zero."""
    found: list[tuple[Tensor, Tensor]] = []
    for sign in (1, -1):
        rows = torch.cat([corners, values], 1)
        side, kept = sign * values[:, unit], []
        for (a, here), (b, there) in pairwise([*zip(rows, side, strict=True), (rows[0], side[0])]):
            kept += [a] if here >= 0 else []
            kept += [torch.lerp(a, b, here / (here - there))] if here * there < 0 else []
        if kept:
            whole = torch.stack(kept)
            found.append((whole[:, :2], whole[:, 2:]))
    return found


@pytest.mark.parametrize("slope", [0.0, 0.2, 2.0])
@pytest.mark.parametrize("seed", range(8))
def test_each_method_is_at_least_as_tight_as_the_one_before_and_none_passes_the_minimum(seed: int, slope: float):
    torch.manual_seed(seed)
    model, eps = rectifying(slope), (0.05, 0.3, 1.0)[seed % 3]
    x, labels, graph = torch.rand(3, 2, dtype=torch.float64), torch.tensor([0, 1, 2]), checked_graph(model)
    found = [up_to(method)(graph, input_box(x, eps, None), QUICK).margins(labels) for method in METHODS]
    with torch.no_grad():
        least = torch.stack([true_margins(model, p, int(y), eps) for p, y in zip(x, labels, strict=True)])
        for point in points_inside(x - eps, x + eps, count=50):
            logits = model(point)
            assert bool((logits.gather(1, labels.unsqueeze(1)) - logits >= least - 1e-12).all())
    for looser, tighter in pairwise([*found, least]):
        assert bool((looser <= tighter + 1e-12).all())
    assert bool((margins("crown", model, x, labels, eps, QUICK) <= found[-1] + 1e-12).all())


def test_a_search_closes_much_of_the_gap():
    model, x, labels = case("mlp")
    fixed, searched = (margins(method, model, x, labels, 8 / 255, QUICK) for method in EXPENSIVE)
    assert (searched - fixed).max() > 0.01


# --- slopes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.7), nn.LeakyReLU(1.7)])
def test_lines_of_any_slope_lie_on_their_side_without_any_rounding(layer: nn.Module):
    ends = torch.tensor([[-3.0, 1.0], [-0.1, 0.3], [-1e-8, 7.0], [1.0, 2.0], [-2.0, -1.0]], dtype=torch.float64)
    box = Box(ends.mean(1, keepdim=True), (ends[:, 1:] - ends[:, :1]) / 2)
    slopes = free_lines(layer, box)
    assert slopes is not None
    for share in torch.linspace(0, 1, 101, dtype=torch.float64):
        lines = slopes.at(share.expand(5, 1, 1).clamp(slopes.least, slopes.most))
        for x in (box.lower.unsqueeze(1), box.upper.unsqueeze(1)):
            if slopes.slope <= 1:
                assert bool((lines.lower_slope * x <= layer(x)).all())
            else:
                assert bool((lines.upper_slope * x >= layer(x)).all())


def test_a_layer_without_unstable_neurons_has_no_choice_of_lines():
    box = Box(torch.tensor([[2.0, -2.0]]), torch.tensor([[1.0, 1.0]]))
    assert free_lines(nn.ReLU(), box) is None
    assert free_lines(nn.Hardtanh(), Box(torch.zeros(1, 1), torch.ones(1, 1))) is None
    assert free_lines(nn.Tanh(), Box(torch.ones(1, 1), torch.zeros(1, 1))) is None
    assert free_lines(nn.Flatten(), Box(torch.zeros(1, 1), torch.ones(1, 1))) is None


# --- in parts --------------------------------------------------------------------------------------------


# Bytes for some twenty functions at once.
SMALL = {"cnn built": 150_000, "wide-resnet built": 1_000_000, "mlp": 600_000}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("method", ["crown-ibp", *EXPENSIVE])
def test_parts_give_the_bounds_of_the_whole(name: str, method: str):
    model, x, labels = case(name)
    graph, search, memory = checked_graph(model), {"iterations": 3, "neurons": 8}, SMALL[name]
    whole = METHODS[method](graph, input_box(x, 0.03, None), Settings(**search))
    parts = METHODS[method](graph, input_box(x, 0.03, None), Settings(**search, memory=memory))
    with torch.no_grad():
        torch.testing.assert_close(parts.margins(labels), whole.margins(labels), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rows", "largest"), [(0, 1), (1, 1), (2, 2), (5, 4), (7, 6), (100, 12)])
def test_no_part_has_more_rows_than_asked_for(rows: int, largest: int):
    functions, seen = torch.rand(3, 4, 2), []
    start = Box(torch.zeros(3, 2), torch.zeros(3, 2))

    def bound(prefix: Prefix, part: Tensor) -> Tensor:
        assert len(part) == len(prefix.start.radius)
        seen.append(part.shape[0] * part.shape[1])
        return part.sum(2)

    found = in_parts(bound, Prefix([], start), dense(functions), (3, 4), rows)
    assert torch.equal(found, functions.sum(2))
    assert max(seen) <= max(rows, 1)
    assert max(seen) <= largest


@pytest.mark.parametrize("name", ["cnn built", "cnn7 built", "wide-resnet built", "residual_bn"])
def test_windows_give_the_bounds_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch):
    model, x, _ = case(name)
    graph, settings, counts = checked_graph(model), Settings(dense=0), []
    receptive_field = windows.receptive_field
    monkeypatch.setattr(windows, "VALUES_PER_WINDOW", 1)
    monkeypatch.setattr(windows, "receptive_field", lambda *given: counts.append(1) or receptive_field(*given))
    apart = trace_bounds(graph, input_box(x[:2], 0.1, None), tighten=tighten_by_crown(settings))
    assert len(counts) > 3
    monkeypatch.setattr(windows, "MOST_WINDOWS", 1)
    whole = trace_bounds(graph, input_box(x[:2], 0.1, None), tighten=tighten_by_crown(settings))
    for mine, other in zip(apart.records, whole.records, strict=True):
        if mine.box is not None and other.box is not None:
            torch.testing.assert_close(mine.box.lower, other.box.lower, rtol=0, atol=1e-12)
            torch.testing.assert_close(mine.box.upper, other.box.upper, rtol=0, atol=1e-12)


@pytest.mark.parametrize("convolution", [
    nn.Conv2d(4, 4, (3, 2), stride=(2, 3), padding=(0, 2), groups=2),
    nn.Conv2d(4, 2, 3, padding="same", dilation=2),
    nn.Conv2d(4, 2, 1, stride=3),
    nn.Conv2d(4, 2, 5, padding="valid", bias=False),
])  # fmt: skip
def test_windows_of_every_kind_of_convolution(convolution: nn.Conv2d, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), convolution, nn.ReLU(), nn.Flatten()).double()
    x = torch.rand(2, 1, 13, 11, dtype=torch.float64)
    monkeypatch.setattr(windows, "VALUES_PER_WINDOW", 2)
    apart = METHODS["crown"](checked_graph(model), input_box(x, 0.3, None), Settings(dense=0)).ends()
    monkeypatch.setattr(windows, "MOST_WINDOWS", 1)
    whole = METHODS["crown"](checked_graph(model), input_box(x, 0.3, None), Settings(dense=0)).ends()
    for mine, other in zip(apart, whole, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


# --- settings --------------------------------------------------------------------------------------------


def test_stopping_early_changes_no_verdict():
    torch.manual_seed(0)
    model, x = rectifying(0.0), torch.rand(40, 2, dtype=torch.float64)
    labels, graph = model(x).argmax(1), checked_graph(model)
    for eps in (0.02, 0.1, 0.3):
        long, short = (
            METHODS["alpha-crown"](graph, input_box(x, eps, None), Settings(early_stop=stop)).margins(labels)
            for stop in (False, True)
        )
        own = nn.functional.one_hot(labels, 3).bool()
        verdicts = [((found > 0) | own).all(1) for found in (long, short)]
        assert torch.equal(*verdicts)
        assert bool((short <= long + 1e-9).all())


def test_no_iterations_leave_crowns_slopes():
    model, x, labels = case("cnn built")
    fixed = METHODS["crown"](checked_graph(model), input_box(x, 0.02, None)).margins(labels)
    searched = METHODS["alpha-crown"](checked_graph(model), input_box(x, 0.02, None), Settings(iterations=0, neurons=0))
    assert bool((searched.margins(labels) >= fixed).all())


@pytest.mark.parametrize("wrong", [{"memory": 0}, {"iterations": -1}, {"learning_rate": 0.0}, {"decay": 1.5}])
def test_wrong_settings_are_an_error(wrong: dict[str, float]):
    with pytest.raises(MethodError, match=next(iter(wrong))):
        Settings(**wrong)


def test_expensive_methods_leave_no_gradients_behind():
    model, x, labels = case("cnn built")
    for method in EXPENSIVE:
        assert not margins(method, model, x, labels, 0.02, QUICK).requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_certify_takes_the_tightest_of_all_methods_up_to_the_one_asked_for(method: str):
    torch.manual_seed(1)
    model, x, labels = rectifying(0.0), torch.rand(20, 2, dtype=torch.float64), torch.zeros(20, dtype=torch.int64)
    certified = [certify(model, x, labels, 0.2, method=name) for name in list(METHODS)]
    number = list(METHODS).index(method)
    for cheaper in certified[:number]:
        assert bool((certified[number].certified >= cheaper.certified).all())


REAL = ARITHMETICS["real"]


# --- what rounding takes off -----------------------------------------------------------------------------


def test_a_layers_rounding_error_is_subtracted():
    layer = nn.Linear(2, 2, bias=False).double()
    layer.load_state_dict({"weight": torch.eye(2)})
    start = input_box(torch.tensor([[0.25, 0.75]], dtype=torch.float64), 0.25, None)
    graph = checked_graph(nn.Sequential(layer))
    functions = torch.tensor([[[1.0, -2.0]]], dtype=torch.float64)
    record = LayerRecord(graph.calls[0], (start.radius.shape,), functions.shape[::2], None, None)
    exact = backsubstitute(Prefix([record], start), functions)
    assert exact.item() == -2.0
    rounding_error = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    rounded = backsubstitute(Prefix([record._replace(rounding_error=rounding_error)], start), functions)
    assert rounded.item() == pytest.approx(-3.0, abs=1e-4)
    assert rounded <= -3.0
    own = backsubstitute(Prefix([record], start), functions, rounding=REAL)
    assert -2.0 - 1e-10 < own.item() < -2.0


@pytest.mark.parametrize("method", ["crown-ibp", *EXPENSIVE])
def test_bounds_that_hold_for_their_own_rounding_are_a_little_looser(method: str):
    model, x, labels = case("cnn built")
    graph = checked_graph(model)
    exact = METHODS[method](graph, input_box(x, 0.02, None), QUICK).margins(labels)
    box, settings = input_box(x, 0.02, None), Settings(iterations=15, neurons=50, rounding=REAL)
    sound = METHODS[method](graph, box, settings)
    loss = exact - sound.margins(labels)
    others = nn.functional.one_hot(labels, loss.shape[1]) == 0
    if method != "alpha-crown":  # whose best step may be another one
        assert bool((loss[others] > 0).all())
    assert loss.abs().max() < 1e-9


def test_the_default_is_real_arithmetic():
    assert DEFAULT.rounding is None
