"""The activations where they are difficult: at bends, inflections and thresholds, in tails, and over all magnitudes."""

import copy
from dataclasses import fields, replace
from typing import Any

import numpy
import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain import certify
from certtrain.bounds.activations import ACTIVATIONS, by_layer
from certtrain.bounds.activations.clamps import Clamp
from certtrain.bounds.activations.record import BASIC, Accuracy, Activation
from certtrain.bounds.box import Box
from certtrain.bounds.interval import INTERVAL_RULES
from certtrain.bounds.lines import Lines
from certtrain.bounds.methods import METHODS
from certtrain.bounds.relaxation import free_lines, relaxed
from certtrain.bounds.rounded import LayerStep, rounded
from certtrain.bounds.rounding import ARITHMETICS
from certtrain.errors import UnsupportedLayer
from helpers import exact
from helpers.activation_cases import ACTIVATED, CASES

EACH = pytest.mark.parametrize("name", CASES)
NEW = [name for name, case in CASES.items() if not isinstance(case.layer, (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh))]
# Where something happens to one of them: minima, inflections, bends, thresholds with and without their margin, limits,
# where exponentials and erf end in float32 and float64, and where a tail's tangent is no longer searched for.
PLACES = [0.0, -0.7517915246935645, 2**0.5, -1.2784645427610738, 2.399357280515468, 20.0, 20 * (1 - 2**-6), 7.5, 1.0]
PLACES += [0.25, -0.5, 6.0, -5.5, -8.3, -13.0, -38.6, 40.0, -88.8, -104.0, -745.2, 1e4, -1e8, 1e30, -1e35]
WIDTHS = [0.0, 1e-30, 1e-12, 1e-7, 9e-4, 1.1e-3, 0.1, 2.0, 60.0, 1e5, 1e33]


def layer_of(name: str) -> nn.Module:
    return copy.deepcopy(CASES[name].layer)


def difficult_boxes(seed: int = 0) -> Box:
    """Boxes around all places, of either sign, of all widths; some with an end just there, others with any middle."""
    generator = Generator().manual_seed(seed)
    places, widths = torch.tensor(PLACES, dtype=torch.float64), torch.tensor(WIDTHS, dtype=torch.float64)
    centres, radii = (part.flatten() for part in torch.meshgrid(torch.cat([places, -places]), widths, indexing="ij"))
    moves = torch.rand(4, len(centres), generator=generator, dtype=torch.float64) * 2 - 1
    moves[0], moves[1], moves[2] = 0.0, 1.0, -1.0
    return Box((centres + moves * radii).flatten(), radii.repeat(4))


def shares(count: int, seed: int = 1) -> Tensor:
    """Places inside an interval: both ends, the middle, random ones, and some close to the ends."""
    inner = torch.rand(count, generator=Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64), inner, inner**8, 1 - inner**8])


def inside(box: Box, count: int = 40) -> Tensor:
    """Points (P, N) of the boxes."""
    return torch.lerp(box.lower, box.upper, shares(count).unsqueeze(1)).clamp(box.lower, box.upper)


# --- in float64 ------------------------------------------------------------------------------------------


@EACH
def test_no_value_leaves_a_difficult_box(name: str):
    layer, box = layer_of(name).double(), difficult_boxes()
    found, points = INTERVAL_RULES[type(layer)](layer, box), inside(box)
    values, slack = layer(points.clone()), 1e-14 * (1 + torch.maximum(box.lower.abs(), box.upper.abs()))
    assert bool((found.radius >= 0).all())
    assert bool((values >= found.lower - slack).all())
    assert bool((values <= found.upper + slack).all())


@EACH
def test_difficult_lines_lie_on_their_sides(name: str):
    layer, box = layer_of(name).double(), difficult_boxes()
    lines, points = relaxed(layer, box), inside(box)
    values = layer(points.clone())
    size = torch.maximum(box.lower.abs(), box.upper.abs())
    slack = 1e-13 * (1 + size) * (1 + torch.maximum(lines.lower_slope.abs(), lines.upper_slope.abs()))
    below = lines.lower_slope * points + (0.0 if lines.lower_offset is None else lines.lower_offset)
    above = lines.upper_slope * points + (0.0 if lines.upper_offset is None else lines.upper_offset)
    assert bool((below <= values + slack).all())
    assert bool((above >= values - slack).all())


@EACH
def test_difficult_lines_of_any_choice_lie_on_their_sides(name: str):
    layer, box = layer_of(name).double(), difficult_boxes()
    free = free_lines(layer, Box(box.centre.unsqueeze(0), box.radius.unsqueeze(0)))
    assert free is not None
    some = torch.rand(6, *free.first.shape[2:], generator=Generator().manual_seed(2), dtype=torch.float64)
    alphas = torch.cat([free.first, free.least, free.most, some.unsqueeze(0)], 1).clamp(free.least, free.most)
    lines, points = free.at(alphas), inside(box).unsqueeze(1)
    values = layer(points.clone())
    size = torch.maximum(box.lower.abs(), box.upper.abs())
    steepest = max(1.0, float(lines.lower_slope.abs().max()), float(lines.upper_slope.abs().max()))
    slack = 1e-13 * (1 + size) * (1 + steepest)
    below, above = (line[0] for line in heights_of(lines, points.unsqueeze(0)))
    assert bool((below <= values + slack).all())
    assert bool((above >= values - slack).all())


def heights_of(lines: Lines, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the lower and the upper lines at x."""
    lower, upper = (0.0 if offset is None else offset for offset in (lines.lower_offset, lines.upper_offset))
    return lines.lower_slope * x + lower, lines.upper_slope * x + upper


@pytest.mark.parametrize("name", [name for name in CASES if "low threshold" not in name])
def test_bends_are_all_places_at_which_lines_are_not_exact(name: str):
    layer, box = layer_of(name).double(), difficult_boxes()
    lines, points = relaxed(layer, box), inside(box)
    straight = ~ACTIVATIONS[type(layer)].unstable(layer, box) & (box.radius <= 1e5)
    values, slack = layer(points.clone()), 1e-6 * (1 + points.abs())
    for slope, offset in ((lines.lower_slope, lines.lower_offset), (lines.upper_slope, lines.upper_offset)):
        line = slope * points + (0.0 if offset is None else offset)
        assert bool(((line - values).abs() <= slack)[:, straight].all())


def best_area(layer: nn.Module, low: float, high: float, sign: float) -> float:
    """The least mean distance of a line above (1) or below (−1) the curve, over its whole hull, from a fine grid."""
    x = torch.linspace(low, high, 20001, dtype=torch.float64)
    y, middle = sign * layer(x.clone()), (low + high) / 2
    first, last = -50.0, 50.0  # ternary search: the height at the middle is convex in the slope
    for _ in range(100):
        left, right = first + (last - first) / 3, last - (last - first) / 3
        if float((y - left * (x - middle)).max()) < float((y - right * (x - middle)).max()):
            last = right
        else:
            first = left
    return float((y - first * (x - middle)).max() - y.mean())


CURVES = [name for name in NEW if "low threshold" not in name]  # whose lines must span the jump
INTERVALS = [(-0.5, 1.0), (-1.0, 3.0), (-3.0, 1.0), (-6.0, 0.5), (-2.5, 2.6), (-8.0, 9.0), (1.0, 8.0), (-7.0, -1.0)]
INTERVALS += [(-3.0, -2.4), (2.5, 6.0), (-0.2, 12.0), (-20.0, -0.3), (-1.5, -1.2), (-2.0, 6.5), (0.1, 0.2)]


@pytest.mark.parametrize("ends", INTERVALS, ids=str)
@pytest.mark.parametrize("name", CURVES)
def test_lines_leave_no_more_area_than_the_best_ones(name: str, ends: tuple[float, float]):
    layer, (low, high) = layer_of(name).double(), (torch.tensor([end], dtype=torch.float64) for end in ends)
    lines, x = (
        relaxed(layer, Box((low + high) / 2, (high - low) / 2)),
        torch.linspace(*ends, 20001, dtype=torch.float64),
    )
    assert lines.lower_offset is not None
    assert lines.upper_offset is not None
    above = float((lines.upper_slope * x + lines.upper_offset - layer(x.clone())).mean())
    below = float((layer(x.clone()) - lines.lower_slope * x - lines.lower_offset).mean())
    slack = 5e-5 * (ends[1] - ends[0])  # of the grid, which steps over bends
    assert above <= best_area(layer, *ends, 1.0) + slack
    assert below <= best_area(layer, *ends, -1.0) + slack


def convex_hull(x: Tensor, y: Tensor) -> Tensor:
    """The heights at x of the largest convex function below the points (x, y), x in order."""
    corners: list[int] = []
    for place in range(len(x)):
        while len(corners) > 1 and _above(x, y, corners[-2], corners[-1], place):
            corners.pop()
        corners.append(place)
    return torch.from_numpy(numpy.interp(x.numpy(), x[corners].numpy(), y[corners].numpy()))


def _above(x: Tensor, y: Tensor, left: int, middle: int, right: int) -> bool:
    """Whether the point in the middle is not below the chord of the others."""
    return bool((y[middle] - y[left]) * (x[right] - x[left]) >= (y[right] - y[left]) * (x[middle] - x[left]))


# But for ELU above alpha = 1, whose upper line turns about the kink: there it is the one of least area.
@pytest.mark.parametrize("name", ["sigmoid", "tanh", *(name for name in CURVES if name != "elu, steep")])
def test_lines_of_all_choices_reach_the_convex_hull(name: str):
    """Everywhere, some choice of the lower line is as high as the hull, and of the upper line as low."""
    layer, ends = layer_of(name).double(), torch.tensor(INTERVALS, dtype=torch.float64)
    free = free_lines(layer, Box(ends.mean(1, keepdim=True), (ends[:, 1:] - ends[:, :1]) / 2))
    assert free is not None
    alphas = torch.linspace(0, 1, 401, dtype=torch.float64).view(1, -1, *[1] * (free.first.dim() - 2))
    alphas = torch.cat([alphas.expand(len(ends), -1, *free.first.shape[2:]), free.first], 1)
    lines = free.at(alphas.clamp(free.least, free.most))
    for row, (low, high) in enumerate(INTERVALS):
        x = torch.linspace(low, high, 501, dtype=torch.float64)
        y = layer(x.clone())
        below, above = _best(lines, row, x)
        slack = 2e-3 * float(y.max() - y.min()) + 2 * float(x[1] - x[0])  # bends lie between points of the grid
        assert bool((below >= convex_hull(x, y) - slack).all()), (low, high)
        assert bool((above <= -convex_hull(x, -y) + slack).all()), (low, high)


def _best(lines: Lines, row: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The highest lower line and the lowest upper line of one interval at each x."""
    parts = (part if part is None or part.shape[0] == 1 else part[row : row + 1] for part in lines)
    below, above = heights_of(Lines(*parts), x)
    return below.flatten(0, -2).amax(0), above.flatten(0, -2).amin(0)


def heights(layer: nn.Module, ends: Tensor) -> Tensor:
    """Of the box of the results the ends, and of the lines the heights at a third of the interval (B, 4)."""
    low, high = ends.unbind(1)
    given = Box((low + high) / 2, (high - low) / 2)
    box, lines, place = INTERVAL_RULES[type(layer)](layer, given), relaxed(layer, given), torch.lerp(low, high, 1 / 3)
    assert lines.lower_offset is not None
    assert lines.upper_offset is not None
    below, above = lines.lower_slope * place + lines.lower_offset, lines.upper_slope * place + lines.upper_offset
    return torch.stack([box.lower, box.upper, below, above], 1)


@pytest.mark.parametrize("name", ["gelu", "silu", "softplus", "elu", "elu, steep", "elu, flat", "clamp from above"])
def test_boxes_and_lines_have_the_gradients_of_their_ends(name: str):
    """As differences have them, but for the errors of tables: a line that touches the curve turns about that point."""
    layer, ends = layer_of(name).double(), torch.tensor(INTERVALS, dtype=torch.float64)
    steps = 1e-5 * torch.eye(2, dtype=torch.float64)
    expected = torch.stack([heights(layer, ends + step) - heights(layer, ends - step) for step in steps], 2) / 2e-5
    leaf = ends.clone().requires_grad_()
    found = [torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0] for column in heights(layer, leaf).unbind(1)]
    torch.testing.assert_close(torch.stack(found, 1), expected, rtol=0, atol=1e-3)


# --- in each arithmetic ----------------------------------------------------------------------------------


def computed_in(arithmetic: str, layer: nn.Module, points: Tensor) -> tuple[Tensor, Tensor]:
    """The points as that arithmetic has them, and what the layer makes of them there, in float64."""
    dtype = {"real": torch.float64, "bf16": torch.bfloat16}.get(arithmetic, torch.float32)
    given = points.to(dtype)
    return given.double(), layer.to(dtype)(given.clone()).double()


@torch.no_grad()
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("contiguous", [True, False])
@EACH
def test_what_is_computed_at_difficult_points_is_within_box_and_rounding_error(
    name: str, contiguous: bool, arithmetic: str
):
    layer, box = layer_of(name), difficult_boxes()
    points, computed = computed_in(arithmetic, layer, inside(box, 4) if contiguous else inside(box, 4).T)
    points, computed = (points, computed) if contiguous else (points.T, computed.T)
    # The box that holds what the arithmetic makes of its points.
    low, high = points.amin(0), points.amax(0)
    radius = (high - low) / 2 + 2.0**-50 * (low.abs() + high.abs())
    step = LayerStep(layer.double(), INTERVAL_RULES[type(layer)], (Box(((low + high) / 2)[None], radius[None]),), None)
    found, bound = rounded(ARITHMETICS[arithmetic], step, with_error=True)
    assert bound is not None
    assert bool(found.radius.isfinite().all())
    values = computed.nan_to_num(0.0, 0.0, 0.0)
    assert bool((values >= found.lower[0]).all())
    assert bool((values <= found.upper[0]).all())
    chosen = torch.randperm(points.numel(), generator=Generator().manual_seed(3))[:1500]
    allowed = bound[0].expand_as(points).flatten()[chosen].tolist()
    for x, y, most in zip(points.flatten()[chosen].tolist(), values.flatten()[chosen].tolist(), allowed, strict=True):
        error = abs(exact.Fraction(y) - ACTIVATED[type(layer)].exactly(layer, exact.Fraction(x)))
        assert error <= exact.Fraction(most), (x, y)


@torch.no_grad()
@EACH
def test_a_box_of_huge_numbers_is_bounded_or_is_not_a_number(name: str):
    """Where float32 might overflow nothing is claimed; no bound is finite and wrong."""
    layer = layer_of(name)
    points = torch.tensor([[-3e38, 3e38, -1e38, 2e38], [3e38, 3e38, 1.0, -2e38]])
    low, high = points.double().amin(0), points.double().amax(0)
    box = Box(((low + high) / 2)[None], ((high - low) / 2 + 2.0**-50 * (low.abs() + high.abs()))[None])
    step = LayerStep(copy.deepcopy(layer).double(), INTERVAL_RULES[type(layer)], (box,), None)
    found, bound = rounded(ARITHMETICS["float32"], step, with_error=True)
    assert bound is not None
    values, held = layer(points.clone()).double(), found.radius[0].isfinite()
    assert bool(((values >= found.lower[0]) & (values <= found.upper[0]))[:, held].all())
    assert not isinstance(layer, (nn.GELU, nn.SiLU, nn.ELU, nn.Softplus)) or not bool(held.any())


@pytest.mark.parametrize("method", METHODS)
def test_a_tail_in_which_float32_errs_is_certified_for_real_arithmetic_alone(method: str):
    """Where 1 + erf cancels GELU comes in steps: what is left is multiplied until the class hangs on it."""
    first, last = nn.Linear(1, 1), nn.Linear(1, 2)
    with torch.no_grad():
        for tensor, values in zip((*first.parameters(), *last.parameters()), TAIL, strict=True):
            tensor.copy_(torch.tensor(values).view_as(tensor))
    model = nn.Sequential(first, nn.GELU(), last).eval()
    x, label = torch.tensor([[0.516]]), torch.tensor([0])
    verdicts = [certify(model, x, label, 0.0155, method=method, arithmetic=a).verdicts[0] for a in ARITHMETICS]
    assert verdicts[0] == "certified"
    assert set(verdicts[1:]) <= {"open", "misclassified"}
    with torch.no_grad():
        assert bool((model(torch.linspace(0.501, 0.531, 601).view(-1, 1)).argmax(1) != 0).any())


TAIL = ([1.0], [-5.7], [-1e7, 0.0], [0.0, 5.0])  # weight and bias of both linear layers


# --- what has no rule ------------------------------------------------------------------------------------

REFUSED: list[tuple[nn.Module, str]] = [
    (nn.GELU("tanh"), "layer 'gelu' is a GELU with approximate='tanh', which is another function; only the exact one"),
    (nn.ELU(-0.5), "layer 'elu' is an ELU with alpha = -0.5; it has a rule for finite numbers above zero"),
    (nn.ELU(0.0), "alpha = 0; it has a rule"),
    (nn.ELU(float("inf")), "alpha = inf; it has a rule"),
    (nn.Softplus(-1.0), "layer 'softplus' is a Softplus with beta = -1; it has a rule for finite numbers above zero"),
    (nn.Softplus(0.0), "beta = 0"),
    (nn.Softplus(1.0, 100.0), "a threshold of 100; it has a rule for those between -80 and 80"),
    (nn.Softplus(1.0, float("nan")), "a threshold of nan"),
    (
        nn.Hardtanh(-1.0, float("inf")),
        "'hardtanh' clamps to -1.0 and inf; use finite numbers that float32 can hold",
    ),
    (nn.Hardtanh(-1e39, 1.0), r"clamps to -1e\+39 and 1.0"),
    (Clamp(), "layer 'clamp' clamps to None and None"),
    (Clamp(2.0, 1.0), "clamps to 2 and 1, of which the first is above the second"),
    (Clamp(max=float("nan")), "clamps to None and nan"),
    (nn.LeakyReLU(-0.1), "has a negative slope, so it is not monotone"),
]


@pytest.mark.parametrize(("layer", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_an_activation_without_a_rule_is_refused_by_name(layer: nn.Module, message: str):
    with pytest.raises(UnsupportedLayer, match=message):
        certify(layer, torch.rand(1, 2), torch.tensor([0]), 0.1)


def test_a_relu6_whose_limits_were_changed_is_refused():
    layer = nn.ReLU6()
    layer.max_val = 4.0
    with pytest.raises(UnsupportedLayer, match=r"'relu6' is a ReLU6 with the limits \(0.0, 4.0\); use nn.Hardtanh"):
        certify(layer, torch.rand(1, 2), torch.tensor([0]), 0.1)


# --- the records -----------------------------------------------------------------------------------------

RECORDS = tuple(ACTIVATIONS.values())


def test_every_record_has_a_case_and_an_exact_function():
    assert {type(case.layer) for case in CASES.values()} == ACTIVATIONS.keys() == ACTIVATED.keys()


@pytest.mark.parametrize("part", [field.name for field in fields(Activation)])
def test_a_part_that_is_missing_is_an_error(part: str):
    whole = {field.name: getattr(RECORDS[0], field.name) for field in fields(Activation)}
    assert Activation(**whole) == RECORDS[0]
    with pytest.raises(TypeError, match=f"'{part}'"):
        Activation(**{name: value for name, value in whole.items() if name != part})


def changed(kind: type[nn.Module], **parts: Any) -> tuple[Activation, ...]:
    return tuple(replace(record, **parts) if record.layer is kind else record for record in RECORDS)


WRONG: dict[str, tuple[tuple[Activation, ...], str]] = {
    "a missing record": (RECORDS[1:], "ReLUSection is the section of no activation"),
    "a section of another": (changed(nn.GELU, section=ACTIVATIONS[nn.ReLU].section), "GELU and its section ReLUSec"),
    "two of one layer": ((*RECORDS, RECORDS[0]), "two activations have <class 'torch.nn.modules.activation.ReLU'>"),
    "one function twice": (changed(nn.SiLU, functions=ACTIVATIONS[nn.GELU].functions), "two activations have <built"),
    "an accuracy that is not stated": (changed(nn.GELU, accuracy=Accuracy(16, None)), "16 units .* states None"),
    "a statement of other units": (
        changed(nn.GELU, accuracy=Accuracy(4, "GELU is within 16 units of its input")), "accuracy of 4 units"
    ),
    "no accuracy": (changed(nn.Sigmoid, accuracy=BASIC), "Sigmoid is no piecewise linear function, so it needs an acc"),
    "no lines": (changed(nn.Sigmoid, lines=None, free_lines=None), "Sigmoid has no lines and no free_lines"),
    "a statement of none": (changed(nn.ReLU, accuracy=Accuracy(0, "ReLU is exact")), "accuracy of 0 units"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_records_that_do_not_agree_are_an_error(name: str):
    records, message = WRONG[name]
    with pytest.raises(TypeError, match=message):
        by_layer(records)
    assert by_layer(RECORDS) == ACTIVATIONS


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_certificate_states_the_accuracy_that_its_activations_rest_on(kind: type[nn.Module]):
    record = ACTIVATIONS[kind]
    layer = next(case.layer for case in CASES.values() if type(case.layer) is kind)
    found = certify(nn.Sequential(nn.Linear(2, 2), layer), torch.rand(1, 2), torch.tensor([0]), 0.01).assumptions
    others = {other.accuracy.statement for other in RECORDS} - {record.accuracy.statement}
    assert not others & set(found)
    assert record.accuracy == BASIC or found.count(record.accuracy.statement) == 1


@torch.no_grad()
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_an_activation_is_only_as_accurate_as_its_record_states(kind: type[nn.Module]):
    """What computes more than sums and products leaves the bounds of a record that states no accuracy."""
    layer = next(case.layer for case in CASES.values() if type(case.layer) is kind)
    points = torch.randn(1000, 1, generator=Generator().manual_seed(0))
    computed = copy.deepcopy(layer)(points.clone()).double()
    found = [[float(ACTIVATED[kind].exactly(layer, exact.Fraction(x)))] for x in points.flatten().tolist()]
    exactly = torch.tensor(found, dtype=torch.float64)
    box = Box(points.double(), torch.zeros_like(points.double()))
    error = ACTIVATIONS[kind].error(ARITHMETICS["float32"], layer, 0)
    size = exactly.abs() * error.network_error
    size = size if error.absolute is None else size + error.absolute(box, box)
    exceeds = bool(((computed - exactly).abs() > size + 1e-30).any())
    assert exceeds == (ACTIVATIONS[kind].accuracy.units > 0)
