"""Each bound rule alone: by hand, on a box without width, on samples, and against what a corner attains."""

import pytest
import torch
from torch import Generator, Tensor, nn

from certtrain.bounds.box import Box
from certtrain.bounds.graph import Add, Normalize
from certtrain.bounds.interval import INTERVAL_RULES
from certtrain.bounds.shape_layers import Concat, Pad, Permute, Reshape, Slice
from certtrain.bounds.statistics import BatchNorm, statistics_by_mode, update_running_statistics
from certtrain.errors import UnsupportedLayer
from helpers.activation_cases import CASES
from helpers.layer_cases import AFFINE, ALL, MONOTONE, ready
from helpers.sampling import assert_inside, points_inside

Ends = list[list[float]]  # [[lower, …], [upper, …]]


def box_of(lower: Tensor, upper: Tensor) -> Box:
    return Box((lower + upper) / 2, (upper - lower) / 2)


def rule(layer: nn.Module, *boxes: Box) -> Box:
    """The layer's rule, with the statistics that BatchNorm takes from the first box."""
    statistics = [statistics_by_mode(layer, boxes[0].values)] if isinstance(layer, BatchNorm) else []
    return INTERVAL_RULES[type(layer)](layer, *boxes, *statistics)


# --- by hand ---------------------------------------------------------------------------------------------


def linear() -> nn.Linear:
    layer = nn.Linear(2, 1).double()
    layer.load_state_dict({"weight": torch.tensor([[1.0, -2.0]]), "bias": torch.tensor([3.0])})
    return layer


def difference_of_neighbours() -> nn.Conv2d:
    layer = nn.Conv2d(1, 1, (1, 2), bias=False).double()
    layer.load_state_dict({"weight": torch.tensor([[[[1.0, -1.0]]]])})
    return layer


def minus_two_times_x_less_one(kind: type[nn.BatchNorm1d] | type[nn.BatchNorm2d]) -> nn.Module:
    layer = kind(1, eps=1.0).double().eval()
    state = {"weight": [-4.0], "bias": [0.0], "running_mean": [1.0], "running_var": [3.0]}
    layer.load_state_dict({k: torch.tensor(v) for k, v in state.items()} | {"num_batches_tracked": torch.tensor(1)})
    return layer


def row(*ends: tuple[float, float]) -> Ends:
    """Ends of neighbouring values, as (lower, upper) pairs."""
    return [[lower for lower, _ in ends], [upper for _, upper in ends]]


ONE_VALUE, IMAGE_ROW, SQUARE = (1, -1), (1, 1, 1, -1), (1, 1, 2, 2)

# Layer, the shape of its input, the ends of the boxes, the ends expected after it.
BY_HAND: list[tuple[nn.Module, tuple[int, ...], list[Ends], Ends]] = [
    (linear(), ONE_VALUE, [row((0.5, 1.5), (0.75, 1.25))], row((1.0, 3.0))),
    (difference_of_neighbours(), IMAGE_ROW, [row((0, 1), (2, 4), (5, 5))], row((-4, -1), (-3, -1))),
    (minus_two_times_x_less_one(nn.BatchNorm1d), ONE_VALUE, [row((0, 3))], row((-4, 2))),
    (minus_two_times_x_less_one(nn.BatchNorm2d), IMAGE_ROW, [row((0, 3), (1, 1))], row((-4, 2), (0, 0))),
    (Normalize((0.5,), (0.25,)).double(), IMAGE_ROW, [row((0.25, 1.0))], row((-1, 2))),
    (nn.AvgPool2d(2), SQUARE, [row((0, 1), (1, 2), (2, 3), (3, 6))], row((1.5, 3))),
    (nn.AdaptiveAvgPool2d(1), SQUARE, [row((0, 1), (1, 2), (2, 3), (3, 6))], row((1.5, 3))),
    (nn.Flatten(), SQUARE, [row((0, 1), (1, 2), (2, 3), (3, 6))], row((0, 1), (1, 2), (2, 3), (3, 6))),
    (nn.Identity(), ONE_VALUE, [row((0, 1), (-3, 2))], row((0, 1), (-3, 2))),
    (nn.Dropout(0.5).eval(), ONE_VALUE, [row((0, 1), (-3, 2))], row((0, 1), (-3, 2))),
    (Add(), ONE_VALUE, [row((0, 1), (-1, 1)), row((2, 5), (0, 0))], row((2, 6), (-1, 1))),
    (Concat(1), ONE_VALUE, [row((0, 1), (-1, 1)), row((2, 5), (0, 0))], row((0, 1), (-1, 1), (2, 5), (0, 0))),
    (Reshape((2, 2)), SQUARE, [row((0, 1), (1, 2), (2, 3), (3, 6))], row((0, 1), (1, 2), (2, 3), (3, 6))),
    (Permute((1, 3, 2)), SQUARE, [row((0, 1), (1, 2), (2, 3), (3, 6))], row((0, 1), (2, 3), (1, 2), (3, 6))),
    (Pad(3, 0, 1), SQUARE, [row((0, 1), (1, 2), (2, 3), (3, 6))], row((0, 1), (1, 2), (0, 0), (2, 3), (3, 6), (0, 0))),
    (Pad(1, 1, 1, -2.5), ONE_VALUE, [row((0, 1))], row((-2.5, -2.5), (0, 1), (-2.5, -2.5))),
    (Slice(3, 0, 4, 3), IMAGE_ROW, [row((0, 1), (1, 2), (2, 3), (3, 6))], row((0, 1), (3, 6))),
    (nn.MaxPool2d(2), SQUARE, [row((0, 5), (1, 2), (3, 4), (-1, 0))], row((3, 5))),
]


BY_HAND += [
    (case.layer, ONE_VALUE, [row(given)], row(found)) for case in CASES.values() for given, found in case.by_hand
]


def title(layer: object) -> str:
    return type(layer).__name__ if isinstance(layer, nn.Module) else ""


def test_no_rule_lacks_a_hand_worked_case():
    assert {type(layer) for layer, *_ in BY_HAND} == set(INTERVAL_RULES)


@pytest.mark.parametrize(("layer", "shape", "ends", "expected"), BY_HAND, ids=title)
def test_by_hand(layer: nn.Module, shape: tuple[int, ...], ends: list[Ends], expected: Ends):
    boxes = [box_of(*(torch.tensor(end, dtype=torch.float64).view(shape) for end in pair)) for pair in ends]
    found = rule(layer, *boxes)
    assert found.lower.flatten().tolist() == pytest.approx(expected[0], abs=1e-12)
    assert found.upper.flatten().tolist() == pytest.approx(expected[1], abs=1e-12)


# --- in general ------------------------------------------------------------------------------------------

BATCH = 3


def random_boxes(layer: nn.Module, shape: tuple[int, ...]) -> list[Box]:
    generator = Generator().manual_seed(1)
    count = 2 if isinstance(layer, (Add, Concat)) else 1
    tensors = torch.rand(count, 2, BATCH, *shape, generator=generator, dtype=torch.float64)
    return [Box(3 * centre - 1.5, radius) for centre, radius in tensors]


def test_no_rule_lacks_a_general_case():
    assert {type(layer) for layer, _ in ALL.values()} == set(INTERVAL_RULES)


@pytest.mark.parametrize("name", ALL)
def test_samples_stay_inside(name: str):
    layer, boxes = ready(ALL[name][0]), random_boxes(*ALL[name])
    found = rule(layer, *boxes)
    samples = zip(*(points_inside(box.lower, box.upper, seed=n) for n, box in enumerate(boxes)), strict=True)
    assert_inside(torch.stack([layer(*(s.clone() for s in point)) for point in samples]), found.lower, found.upper)


@pytest.mark.parametrize("name", ALL)
def test_a_box_without_width_is_the_forward_pass(name: str):
    layer, boxes = ready(ALL[name][0]), random_boxes(*ALL[name])
    points = [box.centre for box in boxes]
    found = rule(layer, *(Box(point, torch.zeros_like(point), point) for point in points))
    expected = layer(*(point.clone() for point in points))
    assert bool((found.radius == 0).all())
    torch.testing.assert_close(found.centre, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.clean, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_the_clean_batch_takes_its_own_way(name: str):
    layer, boxes = ready(ALL[name][0]), random_boxes(*ALL[name])
    clean = [box.upper.clone() for box in boxes]
    kept = [point.clone() for point in clean]
    found = rule(layer, *(box._replace(clean=point) for box, point in zip(boxes, clean, strict=True)))
    torch.testing.assert_close(clean, kept, rtol=0, atol=0)
    torch.testing.assert_close(found.clean, layer(*clean), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", AFFINE)
def test_affine_layers_attain_their_bounds_at_corners(name: str):
    layer, boxes = ready(AFFINE[name][0]), random_boxes(*AFFINE[name])
    centre, radius = (torch.stack([getattr(box, part)[0] for box in boxes]) for part in ("centre", "radius"))

    def apply(stacked: Tensor) -> Tensor:
        return layer(*stacked.unsqueeze(1)).flatten()

    found = rule(layer, *boxes)
    slopes = torch.autograd.functional.jacobian(apply, centre)
    highest = torch.stack([apply(centre + radius * slope.sign())[unit] for unit, slope in enumerate(slopes)])
    lowest = torch.stack([apply(centre - radius * slope.sign())[unit] for unit, slope in enumerate(slopes)])
    torch.testing.assert_close(found.upper[0].flatten(), highest, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.lower[0].flatten(), lowest, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MONOTONE)
def test_monotone_layers_attain_their_bounds_at_the_ends(name: str):
    layer, (box,) = ready(MONOTONE[name][0]), random_boxes(*MONOTONE[name])
    found = rule(layer, box)
    torch.testing.assert_close(found.lower, layer(box.lower.clone()), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.upper, layer(box.upper.clone()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_a_rule_that_saves_memory_without_gradients_finds_the_same_box_and_leaves_its_input(name: str):
    layer, boxes = ready(ALL[name][0]), random_boxes(*ALL[name])
    boxes = [box._replace(clean=box.upper) for box in boxes]
    expected, kept = rule(layer, *boxes), [Box(*(tensor.clone() for tensor in box)) for box in boxes]
    with torch.no_grad():
        found = rule(layer, *boxes)
    assert bool((found.radius >= 0).all())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(boxes, kept, rtol=0, atol=0)


# --- batch norm in training ------------------------------------------------------------------------------


def test_batch_norm_in_training_takes_mean_and_biased_variance_of_the_clean_batch():
    layer = nn.BatchNorm1d(1, eps=0.0, momentum=0.5).double().train()
    clean = torch.tensor([[1.0], [5.0]], dtype=torch.float64)  # mean 3, biased variance 4, unbiased 8
    box = Box(torch.tensor([[3.0], [7.0]]).double(), torch.tensor([[2.0], [0.0]]).double(), clean)
    found = rule(layer, box)
    assert found.clean.flatten().tolist() == [-1.0, 1.0]
    assert (found.lower.flatten().tolist(), found.upper.flatten().tolist()) == ([-1.0, 2.0], [1.0, 2.0])
    assert (layer.running_mean.item(), layer.running_var.item()) == (0, 1)  # a pass changes nothing
    update_running_statistics({"norm": statistics_by_mode(layer, box.values)})
    assert (layer.running_mean.item(), layer.running_var.item()) == (1.5, 4.5)
    assert layer.num_batches_tracked.item() == 1


def test_batch_norm_in_training_passes_gradients_through_its_statistics():
    layer = nn.BatchNorm1d(1, affine=False, eps=0.0).double().train()
    clean = torch.tensor([[1.0], [5.0]], dtype=torch.float64, requires_grad=True)
    found = rule(layer, Box(torch.zeros(2, 1).double(), torch.ones(2, 1).double(), clean))
    found.radius[0].sum().backward()  # 1/√variance = 2/|x₁ − x₀|
    assert clean.grad.flatten().tolist() == pytest.approx([0.125, -0.125], abs=1e-12)


def test_batch_norm_cannot_train_on_one_value():
    with pytest.raises(UnsupportedLayer, match="two or more"):
        rule(nn.BatchNorm1d(1).train(), Box(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1)))
