"""Bounds of computed networks, against exact rational arithmetic and against what torch computes."""

import copy
import math
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain import certify
from certtrain.bounds import interval, rounded
from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.box import Box, box_between, input_box
from certtrain.bounds.graph import Add, LayerGraph
from certtrain.bounds.interval import INTERVAL_RULES, interval_pass
from certtrain.bounds.methods import METHODS, Bounds, Settings, method_named
from certtrain.bounds.rounded import LayerStep
from certtrain.bounds.rounding import ARITHMETICS, LAYER_LIMIT, UNIT64, arithmetic_named, gamma, interval_error
from certtrain.bounds.shape_layers import Concat
from certtrain.bounds.statistics import BatchNorm, running_statistics
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import NONLINEAR, trace_bounds
from certtrain.branching.boxes import tightened_prefix
from certtrain.errors import MethodError, UnsupportedLayer
from helpers import exact
from helpers.activation_cases import CASES
from helpers.layer_cases import ALL, ready
from helpers.networks import BUILT, LABELS, case
from helpers.sampling import points_inside

EVERY_METHOD = pytest.mark.parametrize("method", METHODS)
# A search of a few steps rounds as a long one does; the expensive methods take the small networks.
QUICK = Settings(dense=0, iterations=5, neurons=8)
EXPENSIVE = ("crown", "alpha-crown")
EACH = [
    (name, method)
    for method in METHODS
    for name in BUILT
    if method not in EXPENSIVE or name.startswith(("mlp", "cnn "))
]
EACH_NET_AND_METHOD = pytest.mark.parametrize(("name", "method"), EACH)
FLOAT32 = ARITHMETICS["float32"]


def bounds(model: nn.Module, x: Tensor, eps: float, arithmetic: str, method: str = "ibp") -> Bounds:
    graph, rounding = checked_graph(copy.deepcopy(model).double()), arithmetic_named(arithmetic)
    with torch.no_grad():
        box = input_box(x.double(), eps)
        return method_named(method)(graph, box, replace(QUICK, rounding=rounding))


def pixels(box_centre: Tensor, eps: float, count: int) -> Tensor:
    """Corners and points (count, B, …) in float32 that lie in the boxes exactly."""
    lower, upper = (box_centre.double() - eps).clamp(0, 1), (box_centre.double() + eps).clamp(0, 1)
    points = points_inside(lower, upper, count).float()
    outside = (points.double() < lower) | (points.double() > upper)
    return torch.where(outside, box_centre, points)


# --- the arithmetics -------------------------------------------------------------------------------------


def test_an_unknown_arithmetic_is_a_named_error():
    with pytest.raises(MethodError, match="'fp8' is not known; choose from: real, float32, tf32, bf16"):
        arithmetic_named("fp8")


def test_every_layer_with_a_rule_for_intervals_has_its_rounding():
    tables = [set(rounded.AFFINE_ERRORS), set(rounded.POINTWISE_ERRORS), set(rounded.RESHAPING)]
    assert set().union(*tables) == set(interval.INTERVAL_RULES)
    assert sum(map(len, tables)) == len(interval.INTERVAL_RULES)


@pytest.mark.parametrize("length", [1, 7, 1000, 2**20])
@pytest.mark.parametrize("unit", [2.0**-53, 2.0**-24, 2.0**-22])
def test_gamma_is_no_less_than_the_formula(length: int, unit: float):
    exactly = (
        Fraction(length) * Fraction(unit) / (1 - Fraction(length) * Fraction(unit)) if length * unit < 0.5 else None
    )
    assert exactly is None or exactly <= Fraction(gamma(length, unit)) <= exactly * Fraction(1000001, 1000000)
    assert exactly is not None or math.isnan(gamma(length, unit))


@pytest.mark.parametrize("network_error", [0.0, 1e-7, 1e-2, 1.0])
@pytest.mark.parametrize("length", [0, 100, 10**6])
def test_the_float64_bounds_hold_their_own_rounding(network_error: float, length: int):
    kappa, own = Fraction(interval_error(network_error, length)), Fraction(gamma(length + 8, UNIT64))
    assert (1 - own) * kappa >= Fraction(network_error) + 2 * own  # see `interval_error`
    assert kappa <= Fraction(network_error) * Fraction(1000001, 1000000) + 4 * Fraction(gamma(length + 64, UNIT64))


# --- inputs that are zero in the whole box ---------------------------------------------------------------


def half_zero(examples: int, features: int) -> Tensor:
    """Inputs (B, F) of which the first example has a tenth, the others half that are not zero."""
    x = torch.randn(examples, features, generator=Generator().manual_seed(3))
    x[:, features // 2 :] = 0
    x[0, features // 10 :] = 0
    return x


@torch.no_grad()
def test_only_inputs_that_are_not_zero_count_in_a_sum():
    layer, x = nn.Linear(1000, 3).double(), half_zero(4, 1000).double()
    box = Box(x, 0.1 * (x != 0).double())
    step = LayerStep(layer, INTERVAL_RULES[nn.Linear], (box,), None)
    terms = rounded.AFFINE_ERRORS[nn.Linear](FLOAT32, step)
    assert terms.length == 1000
    expected = [[FLOAT32.products(100)], *[[FLOAT32.products(500)]] * 3]
    assert torch.equal(torch.as_tensor(terms.network_error), torch.tensor(expected, dtype=torch.float64))
    for name in ("tf32", "bf16"):  # there a sum of products may be cut where zeros are added
        assert rounded.AFFINE_ERRORS[nn.Linear](ARITHMETICS[name], step).network_error == ARITHMETICS[name].products(
            1000
        )


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "padding": (2, 1)},
    {"groups": 3},
    {"kernel_size": 3, "padding": "same"},
]


@torch.no_grad()
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_convolution_counts_the_inputs_of_its_fullest_window(options: dict[str, Any]):
    layer = nn.Conv2d(6, 3, **({"kernel_size": (3, 2)} | options)).double()
    x = torch.randn(3, 6, 7, 7, generator=Generator().manual_seed(4)).double()
    x *= torch.tensor([0.0, 0.1, 0.6]).view(3, 1, 1, 1) > torch.rand(x.shape, generator=Generator().manual_seed(5))
    step = LayerStep(layer, INTERVAL_RULES[nn.Conv2d], (Box(x, 0.1 * (x != 0).double()),), None)
    found = torch.as_tensor(rounded.AFFINE_ERRORS[nn.Conv2d](FLOAT32, step).network_error).flatten().tolist()
    ones = copy.deepcopy(layer)
    nn.init.ones_(ones.weight)
    nn.init.zeros_(ones.bias)
    counts = ones((x != 0).double()).flatten(1).amax(1).round().int().tolist()  # of the fullest window of any group
    least = [FLOAT32.products(count) for count in counts]
    assert all(error >= own for error, own in zip(found, least, strict=True))
    assert found[2] <= FLOAT32.products(layer.weight[0].numel())
    if "groups" not in options:
        assert found == least
    assert found[0] == FLOAT32.products(0)


@torch.no_grad()
@pytest.mark.parametrize("rows", [None, 3])
def test_an_example_has_the_same_box_alone_as_in_a_batch(rows: int | None):
    layer, x = nn.Linear(1000, 3).double(), half_zero(4, 1000).double()
    x = x if rows is None else x.unsqueeze(1).expand(-1, rows, -1)
    box = Box(x, 0.1 * (x != 0).double())
    step = LayerStep(layer, INTERVAL_RULES[nn.Linear], (box,), None)
    together, errors = rounded.rounded(FLOAT32, step, with_error=True)
    for example in range(4):
        own = step._replace(inputs=(Box(box.centre[example : example + 1], box.radius[example : example + 1]),))
        alone, error = rounded.rounded(FLOAT32, own, with_error=True)
        torch.testing.assert_close(alone.radius, together.radius[example : example + 1], rtol=1e-12, atol=0)
        assert errors is not None
        torch.testing.assert_close(error, errors[example : example + 1], rtol=1e-12, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("order", ["one after another", "in pairs", "zeros first"])
def test_a_float32_sum_with_zeros_in_any_order_is_within_the_error_of_its_other_terms(order: str):
    generator = np.random.default_rng(5)
    for count in (1, 2, 5, 40):
        terms = np.zeros(200, np.float32)
        terms[generator.permutation(200)[:count]] = generator.normal(size=count) * 10.0 ** generator.integers(
            -3, 4, count
        )
        if order == "zeros first":
            terms = np.sort(np.abs(terms)) * np.sign(generator.normal(size=200))
        terms = terms.astype(np.float32)
        computed = in_pairs(terms) if order == "in pairs" else np.add.accumulate(terms, dtype=np.float32)[-1]
        exactly, sizes = sum(map(Fraction, map(float, terms))), sum(abs(Fraction(float(term))) for term in terms)
        assert abs(Fraction(float(computed)) - exactly) <= Fraction(gamma(count - 1, 2.0**-24)) * sizes


def in_pairs(terms: np.ndarray) -> np.float32:
    while len(terms) > 1:
        terms = np.concatenate([terms[:-1:2] + terms[1::2], terms[len(terms) // 2 * 2 :]])
    return terms[0]


# --- one layer, exactly ----------------------------------------------------------------------------------

# Where the inputs lie, so that small differences of large numbers are met, and numbers that underflow.
PLACES = [(0.0, 1.0), (1000.0, 1e-2), (1e6, 1.0), (0.0, 1e-38)]
COUNT = 8
EXACTLY = [name for name in ALL if name != "maximum, ceil"]


def layer_case(name: str, place: float, width: float) -> tuple[nn.Module, list[Tensor], LayerStep]:
    """A float32 layer, points (COUNT, …) for each input, and its float64 step on the box that holds all points."""
    layer, shape = ALL[name]
    layer = ready(copy.deepcopy(layer)).float()
    generator = Generator().manual_seed(2)
    shapes = (2 if isinstance(layer, (Add, Concat)) else 1, COUNT, *shape)
    points = list(
        place * torch.randn(shape, generator=generator).sign() + width * torch.randn(shapes, generator=generator)
    )
    double = copy.deepcopy(layer).double()
    boxes = tuple(box_around(values.double()) for values in points)
    statistics = running_statistics(double) if isinstance(double, BatchNorm) else None
    return layer, points, LayerStep(double, INTERVAL_RULES[type(double)], boxes, statistics)


@cache
def exact_results(name: str, place: float, width: float) -> np.ndarray:
    """What the layer of that case gives for its points (COUNT, …), exactly."""
    layer, points, _ = layer_case(name, place, width)
    with torch.no_grad():
        return np.stack(
            [exact.result(layer, *(exact.exact(point) for point in each)) for each in zip(*points, strict=True)]
        )


def box_around(points: Tensor) -> Box:
    lower, upper = points.amin(0, keepdim=True), points.amax(0, keepdim=True)
    return Box((lower + upper) / 2, (upper - lower) / 2 + 4 * UNIT64 * (lower.abs() + upper.abs()))


@torch.no_grad()
@pytest.mark.parametrize("name", EXACTLY)
@pytest.mark.parametrize(("place", "width"), PLACES)
def test_a_computed_layer_is_within_its_rounding_error_of_the_exact_one(name: str, place: float, width: float):
    layer, points, step = layer_case(name, place, width)
    box, bound = rounded.rounded(FLOAT32, step, with_error=True)
    assert bound is not None
    assert bound.shape == box.radius.shape
    computed = layer(*(values.clone() for values in points))
    errors = abs(exact.exact(computed) - exact_results(name, place, width))
    assert bool((errors <= exact.exact(bound)).all())
    # A bound that is no bound at all would pass. The lines of an S-shaped curve, or those through a limit, have terms
    # that do not fall with x, and of ELU alpha is what the error is relative to.
    typical = box.centre.abs().max() + box.radius.max() + abs(place)
    least = 1e-6 * layer.alpha if isinstance(layer, nn.ELU) else 1e-9 if type(layer) in ACTIVATIONS else 1e-30
    assert bound.max() <= max(5e-5 * typical, least)
    if name.startswith(("linear", "convolution", "batch norm", "sum")) and width != 1e-38:
        assert errors.max() > 0


@torch.no_grad()
@pytest.mark.parametrize("arithmetic", ["real", "float32"])
@pytest.mark.parametrize("with_error", [False, True])
@pytest.mark.parametrize("name", EXACTLY)
@pytest.mark.parametrize(("place", "width"), PLACES)
def test_a_layers_box_holds_what_is_computed(name: str, place: float, width: float, with_error: bool, arithmetic: str):
    layer, points, step = layer_case(name, place, width)
    box, bound = rounded.rounded(ARITHMETICS[arithmetic], step, with_error=with_error)
    assert (bound is not None) == with_error
    centre, radius = exact.exact(box.centre), exact.exact(box.radius)
    real = arithmetic == "real"
    values = exact_results(name, place, width) if real else exact.exact(layer(*(each.clone() for each in points)))
    assert bool((abs(values - centre) <= radius).all())


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        *(name for name, case in CASES.items() if case.rounded),
        *("sum", "average", "batch norm of images", "padding by a number"),
    ],
)
def test_a_result_stored_in_bfloat16_is_within_its_rounding_error(name: str):
    layer, points, step = layer_case(name, 0.0, 1.0)
    points = [values.bfloat16() for values in points]
    step = step._replace(inputs=tuple(box_around(values.double()) for values in points))
    computed = layer(*points)
    assert computed.dtype == torch.bfloat16
    errors_by_arithmetic = [rounded.rounded(ARITHMETICS[a], step, with_error=True)[1] for a in ("bf16", "float32")]
    wrong = 0
    for number in range(COUNT):
        error = abs(exact.exact(computed[number]) - exact.result(layer, *(exact.exact(v[number]) for v in points)))
        assert bool((error <= exact.exact(errors_by_arithmetic[0][0])).all())
        wrong += int((error > exact.exact(errors_by_arithmetic[1][0])).sum())
    assert wrong > 0


@torch.no_grad()
def test_without_an_allowance_for_rounding_the_box_of_a_layer_is_left():
    """The test above can fail: at a box without width the plain rule misses what float32 and what no one rounds."""
    layer, points, step = layer_case("batch norm", 1e6, 1.0)
    box = Box(points[0].double(), torch.zeros_like(points[0].double()))
    plain, computed = step.apply(box).centre, layer(points[0])
    exactly = np.stack([exact.result(layer, exact.exact(point)) for point in points[0]])
    assert bool((exact.exact(plain) != exactly).any())
    assert bool((computed.double() != plain).any())


# --- whole networks, exactly -----------------------------------------------------------------------------


class Residual(nn.Module):
    """Every kind of layer that has an exact rational result, one residual sum among them."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.LeakyReLU(0.1))
        self.second = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False), nn.ReLU())
        self.third = nn.Sequential(nn.AvgPool2d(2), nn.MaxPool2d(2, stride=1), nn.Flatten(), nn.Linear(2, 3), nn.ReLU())
        self.last = nn.Linear(3, 3)
        generator = Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.normal_(generator=generator)
            for tensor in self.buffers():
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 2.0, generator=generator)
            self.first[0].bias += offset
            self.first[1].running_mean += offset
            self.last.bias += offset

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.third(self.second(x) + x))


def all_margins(model: nn.Module, x: Tensor, eps: float, arithmetic: str, method: str) -> list[Tensor]:
    """For each of the three classes."""
    found = bounds(model, x, eps, arithmetic, method)
    return [found.margins(torch.full((len(x),), label)) for label in range(3)]


OFFSETS = [0.0, 1e6, 1e15]  # what hides the network's own values, in float32 or even in float64


def residual(offset: float) -> tuple[nn.Module, LayerGraph, Tensor]:
    model = Residual(offset).eval()
    return (
        model,
        checked_graph(copy.deepcopy(model).double()),
        torch.rand(2, 1, 4, 4, generator=Generator().manual_seed(3)),
    )


@torch.no_grad()
@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e15])
@pytest.mark.parametrize("pass_of", ["intervals", "trace", "tree"])
def test_a_pass_with_rounding_starts_from_a_box_that_contains_the_exact_one(pass_of: str, scale: float):
    # Ends whose middle float64 cannot hold: the rounded box misses one of them in about half of the rows.
    ends = torch.rand(200, 3, 2, dtype=torch.float64, generator=Generator().manual_seed(5)).mul(scale).sort(-1).values
    lower, upper = ends[..., 0], ends[..., 1]
    graph, box, real = checked_graph(nn.Linear(3, 2).double()), box_between(lower, upper), ARITHMETICS["real"]
    start = {
        "intervals": lambda: interval_pass(graph, box, rounding=real).start,
        "trace": lambda: trace_bounds(graph, box, rounding=real).start,
        "tree": lambda: tightened_prefix(graph, box, Settings(rounding=real)).start,
    }[pass_of]()
    assert contains(start, lower, upper)
    assert scale == 1e-300 or not contains(box, lower, upper)


def contains(box: Box, lower: Tensor, upper: Tensor) -> bool:
    """Whether the box holds both ends, in exact arithmetic."""
    centre, radius = exact.exact(box.centre), exact.exact(box.radius)
    return bool(((centre - radius <= exact.exact(lower)) & (exact.exact(upper) <= centre + radius)).all())


@torch.no_grad()
@pytest.mark.parametrize("with_error", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_the_real_boxes_hold_the_exact_ones(offset: float, eps: float, with_error: bool):
    _, graph, x = residual(offset)
    start = input_box(x.double(), eps)
    watch = NONLINEAR if with_error else ()
    plain, found = (
        [*(record.box for record in passed.records if record.box is not None), passed.output]
        for passed in (
            interval_pass(graph, start, boxes_at=NONLINEAR),
            interval_pass(graph, start, boxes_at=watch, rounding=ARITHMETICS["real"]),
        )
    )
    kept = [call.inputs[0] for call in graph.calls if isinstance(call.layer, watch)] + [len(graph.calls)]
    for example in range(len(x)):
        low, high = (np.clip(exact.exact(x[example]) + sign * Fraction(eps), 0, 1) for sign in (-1, 1))
        exactly = exact.boxes(graph, low, high)
        for box, value in zip(found, kept, strict=True):
            centre, radius = exact.exact(box.centre[example]), exact.exact(box.radius[example])
            assert bool((centre - radius <= exactly[value][0]).all())
            assert bool((exactly[value][1] <= centre + radius).all())
    assert found[-1].radius.max() < plain[-1].radius.max() + 1e-9 * (1 + offset)


@cache
def exact_logits(offset: float, eps: float) -> list[np.ndarray]:
    """Of that network at each of the points."""
    _, graph, x = residual(offset)
    return [exact_rows(graph, point) for point in pixels(x, eps, 6 if eps else 1)]


def exact_rows(graph: LayerGraph, point: Tensor) -> np.ndarray:
    """The logits (B, classes) of a point for each example, exactly."""
    return np.stack([exact.network(graph, exact.exact(example)) for example in point])


@torch.no_grad()
@EVERY_METHOD
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_exact_margins_at_points_stay_above_the_real_bounds(offset: float, eps: float, method: str):
    model, _, x = residual(offset)
    found = [exact.exact(margins) for margins in all_margins(model, x, eps, "real", method)]
    for logits in exact_logits(offset, eps):
        for label, margins in enumerate(found):
            assert bool((logits[:, [label]] - logits >= margins).all())


@torch.no_grad()
@EVERY_METHOD
@pytest.mark.parametrize("arithmetic", ["real", "float32"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_curves_stay_inside_as_well(eps: float, scale: float, arithmetic: str, method: str):
    model = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model = ready(model).float()
    model[0].weight *= scale
    x, graph = torch.rand(2, 3, generator=Generator().manual_seed(3)), checked_graph(copy.deepcopy(model).double())
    found = [exact.exact(margins) for margins in all_margins(model, x, eps, arithmetic, method)]
    for point in pixels(x, eps, 6 if eps else 1):
        real = arithmetic == "real"
        logits = exact_rows(graph, point) if real else exact.exact(model(point))
        for label, margins in enumerate(found):
            assert bool((logits[:, [label]] - logits >= margins).all())


@torch.no_grad()
@EVERY_METHOD
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_float32_margins_stay_above_the_float32_bounds(offset: float, eps: float, method: str):
    model, _, x = residual(offset)
    found = all_margins(model, x, eps, "float32", method)
    logits = torch.stack([model(point) for point in pixels(x, eps, 100 if eps else 1)]).double()
    for label, margins in enumerate(found):
        assert bool((logits[..., [label]] - logits >= margins).all())


@torch.no_grad()
@EVERY_METHOD
def test_what_float32_computes_leaves_the_real_bounds(method: str):
    """So the rounding of float32 is felt here, and its tests can fail."""
    model, _, x = residual(1e6)
    logits, found = model(x).double(), all_margins(model, x, 0.0, "real", method)
    assert any(bool((logits[:, [label]] - logits < margins).any()) for label, margins in enumerate(found))


# --- networks whose float32 inference errs inside a box that real arithmetic certifies -------------------

CENTRE, WIDTH, THRESHOLD = 0.45, 0.1, 0.33


def set_to(layer: nn.Module, **values: list[float]) -> nn.Module:
    with torch.no_grad():
        for name, value in values.items():
            tensor = layer.get_parameter(name) if name in ("weight", "bias") else layer.get_buffer(name)
            tensor.copy_(torch.tensor(value).view_as(tensor))
    return layer


def two_layers(weight: float, units: int, large: float, first: nn.Module | None = None) -> nn.Module:
    """Logits x and 0.33: x is hidden under `large` in the first layer's units, and found again in the second one.

    Where x moves by less than float32's step beside `large`, it is lost: the steps are a quarter of x here.
    """
    first = first or set_to(nn.Linear(1, units), weight=[weight] * units, bias=[large] * units)
    out = [1 / (weight * units)] * units
    last = set_to(nn.Linear(units, 2), weight=out + [0.0] * units, bias=[-large / weight, THRESHOLD])
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), last).eval()


def normalised() -> nn.Module:
    norm = set_to(nn.BatchNorm1d(1, eps=0.0), weight=[1.0], bias=[0.0], running_mean=[-(2.0**21)], running_var=[1.0])
    return nn.Sequential(set_to(nn.Linear(1, 1), weight=[1.0], bias=[0.0]), norm)


ERRING = {
    "absorbed": two_layers(1.0, 1, 2.0**21),
    "absorbed under an odd number": two_layers(1.0, 1, 2.0**21 + 2),
    "times four": two_layers(4.0, 1, 2.0**23),
    "times a thousand": two_layers(1024.0, 1, 2.0**31),
    "a quarter": two_layers(0.25, 1, 2.0**19),
    "falling": two_layers(-1.0, 1, 2.0**22),
    "a mean of two": two_layers(1.0, 2, 2.0**21),
    "a mean of four": two_layers(1.0, 4, 2.0**21),
    "a sum of sixteen": two_layers(0.0625, 16, 2.0**17),
    "convolution": two_layers(1.0, 1, 2.0**21, set_to(nn.Conv2d(1, 1, 1), weight=[1.0], bias=[2.0**21])),
    "batch norm": two_layers(1.0, 1, 2.0**21, normalised()),
}


@EVERY_METHOD
@pytest.mark.parametrize("name", ERRING)
def test_a_box_in_which_float32_inference_errs_is_certified_for_real_arithmetic_alone(name: str, method: str):
    model = ERRING[name]
    shape = (1, 1, 1, 1) if name == "convolution" else (1, 1)
    x, label = torch.full(shape, CENTRE), torch.tensor([0])
    verdicts = {a: certify(model, x, label, WIDTH, method=method, arithmetic=a).verdicts[0] for a in ARITHMETICS}
    assert verdicts["real"] == "certified"
    assert {verdicts[a] for a in ("float32", "tf32", "bf16")} <= {"open", "misclassified"}
    assert verdicts["float32"] == "open"
    points = torch.linspace(CENTRE - WIDTH + 1e-6, CENTRE + WIDTH - 1e-6, 101).view(-1, *shape[1:])
    with torch.no_grad():
        assert bool((model(points).argmax(1) != 0).any())


def test_there_are_eleven_such_networks():
    assert len(ERRING) == 11


# --- any order of summation ------------------------------------------------------------------------------


def reordered(layer: nn.Module, x: Tensor, generator: Generator) -> Tensor:
    """A convolution or linear layer, its products summed in blocks of random channels in random order."""
    channels = torch.randperm(layer.weight.shape[1], generator=generator)
    parts = []
    for block in channels.split(int(torch.randint(1, 4, (), generator=generator))):
        weight = layer.weight[:, block]
        if isinstance(layer, nn.Linear):
            parts.append(x[:, block] @ weight.T)
        else:
            parts.append(nn.functional.conv2d(x[:, block], weight, None, layer.stride, layer.padding, layer.dilation))
    if layer.bias is not None:
        parts.append(layer.bias.view(1, -1, *[1] * (parts[0].dim() - 2)).expand_as(parts[0]))
    total = torch.zeros_like(parts[0])
    for number in torch.randperm(len(parts), generator=generator).tolist():
        total = total + parts[number]
    return total


def in_any_order(graph: LayerGraph, x: Tensor, generator: Generator) -> list[Tensor]:
    """Every layer's result."""
    values = [x]
    for call in graph.calls:
        given, layer = [values[i] for i in call.inputs], call.layer
        mixed = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        values.append(reordered(layer, given[0], generator) if mixed else layer(*given))
    return values


@torch.no_grad()
@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("eps", [0.0, 0.02])
def test_sums_in_any_order_stay_inside_the_float32_boxes(name: str, eps: float):
    model, x, _ = case(name)
    x = x.float()
    graph = checked_graph(copy.deepcopy(model).float())
    exactly = checked_graph(copy.deepcopy(model).float().double())  # of the weights that float32 has
    trace = trace_bounds(exactly, input_box(x.double(), eps), rounding=FLOAT32)
    real = ARITHMETICS["real"]
    plain = trace_bounds(exactly, input_box(x.double(), eps), rounding=real)
    outside, generator = 0, Generator().manual_seed(0)
    for point in pixels(x, eps, 12):
        values = in_any_order(graph, point, generator)
        checked = [(record.box, values[record.call.inputs[0]]) for record in trace.records if record.box is not None]
        for box, value in [*checked, (trace.logits.box, values[-1])]:
            assert bool(((value.double() - box.centre).abs() <= box.radius).all())
        outside += int(((values[-1].double() - plain.logits.box.centre).abs() > plain.logits.box.radius).sum())
    assert (outside > 0) == (eps == 0)


# --- TF32, by hand, and bfloat16 -------------------------------------------------------------------------


def cut(values: Tensor) -> Tensor:
    """The first ten bits of each float32 after its leading one, as tensor cores that do not round take them."""
    return (values.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def in_tf32(graph: LayerGraph, x: Tensor) -> Tensor:
    """The logits, with the operands of convolutions and linear layers cut."""
    values = [x]
    for call in graph.calls:
        given, layer = [values[i] for i in call.inputs], call.layer
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer = copy.deepcopy(layer)
            layer.weight.copy_(cut(layer.weight))
            given = [cut(given[0])]
        values.append(layer(*given))
    return values[-1]


@torch.no_grad()
@EACH_NET_AND_METHOD
@pytest.mark.parametrize("eps", [0.0, 0.02])
def test_inference_in_tf32_stays_inside_its_bounds(name: str, eps: float, method: str):
    model, x, _ = case(name)
    model, x = copy.deepcopy(model).float(), x.float()
    graph, found = checked_graph(model), bounds(model, x, eps, "tf32", method)
    (lower, upper), margins = found.ends(), found.margins(LABELS)
    for point in pixels(x, eps, 12 if eps else 1):
        logits = in_tf32(graph, point).double()
        assert bool(((lower <= logits) & (logits <= upper)).all())
        assert bool((logits.gather(1, LABELS.unsqueeze(1)) - logits >= margins).all())
    if eps == 0 and name.startswith("mlp"):  # a deep network's own bounds are too loose to leave
        lower, upper = bounds(model, x, eps, "float32", method).ends()
        assert bool(((lower > logits) | (logits > upper)).any())


@torch.no_grad()
@EACH_NET_AND_METHOD
@pytest.mark.parametrize("eps", [0.0, 0.02])
def test_inference_in_bfloat16_stays_inside_its_bounds(name: str, eps: float, method: str):
    model, x, _ = case(name)
    model, x = copy.deepcopy(model).float(), x.float()
    found = bounds(model, x, eps, "bf16", method)
    (lower, upper), margins = found.ends(), found.margins(LABELS)
    for point in pixels(x, eps, 12 if eps else 1):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(point)
        assert logits.dtype == torch.bfloat16
        logits = logits.double()
        assert bool(((lower <= logits) & (logits <= upper)).all())
        assert bool((logits.gather(1, LABELS.unsqueeze(1)) - logits >= margins).all())
    if eps == 0:
        lower, upper = bounds(model, x, eps, "float32", method).ends()
        assert bool(((lower > logits) | (logits > upper)).any())


# --- overflow --------------------------------------------------------------------------------------------


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).eval()


def huge(size: float, rows: int = 2) -> nn.Module:
    return set_to(nn.Linear(2, rows), weight=[size, -size] * rows, bias=[0.0] * rows)


LAST = set_to(nn.Linear(2, 2), weight=[1e-30, 0.0, 0.0, 0.0], bias=[1.0, 0.0])

# What overflows on the way is hidden again: by a ReLU, by a curve, by a small weight, or by cancelling.
OVERFLOWING = {
    "relu": chain(huge(-3e38), nn.Linear(2, 2), nn.ReLU(), LAST),
    "sigmoid": chain(huge(2e38), huge(2e38), nn.Sigmoid(), LAST),
    "tanh": chain(huge(2e38), huge(2e38), nn.Tanh(), LAST),
    "batch norm": chain(
        huge(1e20),
        set_to(nn.BatchNorm1d(2), weight=[1e38] * 2, bias=[0.0] * 2, running_mean=[0.0] * 2, running_var=[1.0] * 2),
        nn.Sigmoid(),
        LAST,
    ),
    "cancelling": chain(huge(3e38), nn.Sigmoid(), LAST),
    "head": chain(nn.Linear(2, 2), set_to(nn.Linear(2, 2), weight=[3e38] * 4, bias=[3e38, -3e38])),
}


@EVERY_METHOD
@pytest.mark.parametrize("arithmetic", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("name", OVERFLOWING)
def test_what_might_overflow_is_never_certified(name: str, arithmetic: str, method: str):
    x = torch.tensor([[1.0, 0.9]])
    for label in (0, 1):
        found = certify(OVERFLOWING[name], x, torch.tensor([label]), 0.0, method=method, arithmetic=arithmetic)
        assert found.verdicts != ("certified",)
        assert not found.margin.isfinite().any()


def test_real_arithmetic_knows_no_overflow():
    x = torch.tensor([[1.0, 0.9]])
    assert bounds(OVERFLOWING["cancelling"], x, 0.0, "real").margins(torch.tensor([0]))[0, 1] > 0.9


@torch.no_grad()
@pytest.mark.parametrize(("variance", "eps"), [(0.0, 1e-40), (-1e-5, 1.1e-5), (1e-38, 0.0)])
def test_a_variance_that_float32_cannot_hold_certifies_nothing(variance: float, eps: float):
    norm = nn.BatchNorm1d(1, eps=eps)
    set_to(norm, weight=[1.0], bias=[0.0], running_mean=[0.0], running_var=[variance])
    model = chain(norm, nn.Sigmoid(), set_to(nn.Linear(1, 2), weight=[0.0, 0.0], bias=[1.0, 0.0]))
    assert not bounds(model, torch.tensor([[0.5]]), 0.1, "float32").margins(torch.tensor([0])).isfinite().all()


# --- what it costs, and what it leaves alone -------------------------------------------------------------


@pytest.mark.parametrize(("name", "method"), [case for case in EACH if case[1] != "alpha-crown"])  # a search may turn
def test_the_coarser_the_arithmetic_the_smaller_the_margins(name: str, method: str):
    model, x, labels = case(name)
    model = copy.deepcopy(model).float()
    found = [bounds(model, x.float(), 0.02, arithmetic, method).margins(labels) for arithmetic in ARITHMETICS]
    others = torch.ones_like(found[0]).scatter(1, labels.unsqueeze(1), 0.0) > 0
    for finer, coarser in pairwise(found):
        assert bool((finer[others] > coarser[others]).all())
        assert bool((coarser[~others] == 0).all())
    size = found[0].abs().max() + 1
    exactly = method_named(method)(checked_graph(model.double()), input_box(x.float().double(), 0.02), QUICK)
    assert bool(((exactly.margins(labels) - found[0]).abs() <= 1e-9 * size).all())
    assert bool((found[0] - found[1] <= 2e-3 * size).all())


@torch.no_grad()
@pytest.mark.parametrize("name", BUILT)
def test_without_rounding_every_bit_is_the_plain_rules(name: str):
    model, x, _ = case(name)
    graph = checked_graph(model.float())
    box = input_box(x.float(), 0.02, with_clean=True)
    values = [box]
    for call in graph.calls:
        given = [values[i] for i in call.inputs]
        extra = [running_statistics(call.layer)] if isinstance(call.layer, BatchNorm) else []
        values.append(INTERVAL_RULES[type(call.layer)](call.layer, *given, *extra))
    passed = interval_pass(graph, box, boxes_at=NONLINEAR)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(passed.output, values[-1], strict=True))
    assert all(record.rounding_error is None for record in passed.records)


def test_a_certificate_names_its_arithmetic_and_what_it_assumes():
    model, x = chain(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2)), torch.tensor([[0.5, 0.5]])
    for arithmetic in ARITHMETICS:
        found = certify(model, x, torch.tensor([0]), 0.01, arithmetic=arithmetic)
        text = " ".join(found.assumptions)
        assert found.arithmetic == arithmetic
        assert f"arithmetic {arithmetic}" in found.assumptions[0]
        assert ("Winograd" in text) == ("folding" in text) == (arithmetic != "real")
        assert "sigmoid" in text
    plain = certify(chain(nn.Linear(2, 2)), x, torch.tensor([0]), 0.01)
    assert "sigmoid" not in " ".join(plain.assumptions)


def test_weights_of_another_precision_are_refused():
    with pytest.raises(UnsupportedLayer, match=r"'0\.weight' is torch\.bfloat16"):
        certify(chain(nn.Linear(2, 2)).bfloat16(), torch.tensor([[0.5, 0.5]]), torch.tensor([0]), 0.01)


def test_a_network_of_too_many_layers_is_refused():
    many = nn.Sequential(*[nn.Identity() for _ in range(LAYER_LIMIT)], nn.Linear(1, 2))
    with pytest.raises(UnsupportedLayer, match="fewer than 4096 layers, not 4097"):
        bounds(many, torch.tensor([[0.5]]), 0.1, "real")
