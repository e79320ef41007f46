"""The soundness campaign in its short form: it finds nothing where bounds are right, and finds what is wrong."""

import copy
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certtrain.bounds import guard
from certtrain.bounds.box import Box
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.methods import METHODS, BoundMethod, Bounds
from certtrain.bounds.settings import DEFAULT, Settings
from certtrain.data import ImageSet, load_images
from certtrain.network.assembly import describe
from certtrain.network.modelfile import write_model
from certtrain.spec.preset import load_preset

FILE = Path(__file__).parents[2] / "benchmarks" / "soundness.py"
QUICK = ["--points", "2000", "--quick", "--steps", "30"]
RESIDUAL = ("wide-resnet", "resnext")  # for which α-CROWN takes ten seconds a radius, however few the images


@pytest.fixture(scope="module")
def soundness() -> ModuleType:
    """The command's own functions."""
    spec = importlib.util.spec_from_file_location("soundness", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soundness"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.trained = once(module.trained)
    return module


def once(trained: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Training that is not repeated for a network of the same layers, which starts from the same weights."""
    networks: dict[object, nn.Module] = {}

    def call(network: nn.Module, images: ImageSet, *settings: float) -> nn.Module:
        key = (str(network), *settings)
        if key not in networks:
            networks[key] = trained(network, images, *settings)
        return copy.deepcopy(networks[key])

    return call


def rows(text: str) -> list[list[str]]:
    """The table's cells, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """α-CROWN takes ten steps: its bounds hold after any number."""
    whole = METHODS["alpha-crown"]

    def few_steps(graph: LayerGraph, box: Box, settings: Settings = DEFAULT) -> Bounds:
        return whole(graph, box, replace(settings, iterations=10))

    monkeypatch.setitem(METHODS, "alpha-crown", few_steps)


@pytest.mark.slow
@pytest.mark.usefixtures("short_search")
@pytest.mark.parametrize("residual", [False, True])
def test_no_point_of_any_kind_of_network_speaks_against_any_method(
    residual: bool, soundness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    kinds = [kind for kind in soundness.KINDS if (kind in RESIDUAL) == residual]
    monkeypatch.setattr(soundness, "RADII", (0.3,) if residual else (0.6,))
    assert soundness.main([*QUICK, "--images", "2" if residual else "4", "--kinds", *kinds]) == 0
    text = capsys.readouterr().out
    found = rows(text)
    assert [(row[0], row[1]) for row in found] == [(kind, method) for kind in kinds for method in METHODS]
    assert all(int(row[3]) > 0 and row[5:8] == ["0", "0", "0"] for row in found)
    assert ", 0 violations" in text
    assert int(text.splitlines()[-1].split()[0].replace(",", "")) >= 2000


def test_one_small_network_is_tried_in_seconds(soundness, capsys: pytest.CaptureFixture[str]):
    assert soundness.main([*QUICK, "--points", "300", "--kinds", "mlp, BatchNorm", "--methods", "ibp"]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row[:3] == ["mlp, BatchNorm", "ibp", "48"]
    assert int(row[4]) > 100
    assert row[5:8] == ["0", "0", "0"]


def shifted(method: BoundMethod, by: float) -> BoundMethod:
    """A method whose margins are too high."""

    class High:
        def __init__(self, bounds: Any) -> None:
            self.bounds = bounds

        def margins(self, labels: Tensor) -> Tensor:
            return self.bounds.margins(labels) + by

        @property
        def shape(self) -> torch.Size:
            return self.bounds.shape

    return lambda *arguments, **options: High(method(*arguments, **options))


def narrowed(method: BoundMethod) -> BoundMethod:
    """A method that bounds boxes of half the radius."""
    return lambda graph, box, *rest: method(graph, box._replace(radius=box.radius / 2), *rest)


@pytest.mark.parametrize(
    ("wrong", "columns"),
    [
        (lambda method: shifted(method, 100.0), {5, 6, 7}),
        (lambda method: shifted(method, 1e-3), {6, 7}),
        (narrowed, {5, 6, 7}),
    ],
    ids=["far too high", "a little too high", "half the radius"],
)
def test_a_wrong_bound_is_found(
    wrong: Callable[[BoundMethod], BoundMethod],
    columns: set[int],
    soundness,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(METHODS, "crown-ibp", wrong(METHODS["crown-ibp"]))
    monkeypatch.setattr(guard, "_compare", lambda *about: None)  # which would find it first
    assert soundness.main([*QUICK, "--points", "400", "--kinds", "mlp", "--methods", "ibp", "crown-ibp"]) == 1
    right, lying = rows(capsys.readouterr().out)
    assert right[5:8] == ["0", "0", "0"]
    assert {column for column in (5, 6, 7) if int(lying[column])} == columns


def test_a_network_without_a_certified_point_is_a_failure(soundness, capsys: pytest.CaptureFixture[str]):
    tried, empty = soundness.Tally("mlp", "ibp", points=5), soundness.Tally("cnn", "ibp")
    assert soundness.verdict([tried]) == 0
    assert soundness.verdict([tried, empty]) == 1
    assert "nothing was certified: cnn;" in capsys.readouterr().out


def test_reordered_sums_are_other_sums_of_the_same_terms(soundness):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = soundness.KINDS["cnn, BatchNorm"]().eval()
    x = torch.rand(200, *soundness.SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = network(x), soundness.reordered(network, 0)(x)
        exact = soundness.reordered(network, 0).double()(x.double())
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, atol=1e-5)
    assert torch.allclose(exact, network.double()(x.double()), atol=1e-13)


def test_the_points_lie_in_their_boxes_and_half_of_them_at_corners_or_attacked(soundness):
    x, labels = torch.rand(5, 3), torch.zeros(5, dtype=torch.long)
    boxes = soundness.Subject("linear", nn.Linear(3, 10), x, labels, 0.1)
    points, rows = soundness.sample_points(boxes, 7, 0)
    assert points.shape == (35, 3)
    assert rows.bincount().tolist() == [7] * 5
    lower, upper = soundness.box_ends(x, 0.1)
    assert bool(((points >= lower[rows]) & (points <= upper[rows])).all())
    assert ((points == lower[rows]) | (points == upper[rows])).all(1).sum() >= 10


def test_a_model_file_is_tried_on_its_own_data(soundness, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = {"eps.max": 0.03, "model.channels": [4, 8], "model.linear": [32]}
    train, preset = load_images("digits", "train"), load_preset("digits", small)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = soundness.trained(soundness.named(preset.model), train, 0.03, 60, 0)
    write_model(tmp_path / "model.safetensors", network, describe(preset, train))
    methods = ["ibp", "crown-ibp"]
    words = ["--points", "200", "--methods", *methods, "--models", str(tmp_path / "model.safetensors")]
    assert soundness.main([*QUICK, *words]) == 0
    found = rows(capsys.readouterr().out)
    assert [row[:3] for row in found] == [[tmp_path.name, method, "48"] for method in methods]


def test_the_campaign_is_in_float32_without_tolerance_by_default(soundness):
    assert soundness.parsed([]).arithmetic == "float32"
    below = soundness.Margins(torch.tensor([0.5 - 1e-12], dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    bounds = soundness.Margins(torch.tensor([0.5], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))
    for tolerance, found in ((0.0, 1), (1e-9, 0)):
        tally = soundness.Tally("mlp", "ibp")
        soundness.count_violations(tally, below, bounds, tolerance)
        assert tally.below_smallest == found


def test_real_arithmetic_can_be_named(soundness, capsys: pytest.CaptureFixture[str]):
    words = ["--points", "100", "--kinds", "mlp", "--methods", "ibp", "--arithmetic", "real"]
    assert soundness.main([*QUICK, *words]) == 0
    assert rows(capsys.readouterr().out)[0][5:8] == ["0", "0", "0"]
