"""Complete verification as a method: its verdicts beside those of others, its counterexamples, and its limits."""

import copy
import sys
import time
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

from certtrain import certify
from certtrain.attack import PGD
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.branching import examples
from certtrain.branching.examples import check_trees
from certtrain.data import ImageSet, load_images, to_unit
from certtrain.errors import MethodError
from certtrain.network.modelfile import Classifier
from certtrain.network.models import InputSpec, build_model
from certtrain.properties import complete
from certtrain.properties.cases import robustness
from certtrain.properties.decide import decide
from certtrain.runtime.deadline import Deadline
from certtrain.spec.architecture import MLP
from certtrain.verification.cascade import Limits
from certtrain.verification.complete import CompleteStep
from certtrain.verification.methods import rounds_of
from certtrain.verification.results import ExampleResult
from certtrain.verification.steps import ExampleBatch, misclassified_in_batch_of_one
from certtrain.verification.verify import Report, verify
from helpers.tiny_classifier import metadata, mostly_right

EPS = 0.1  # at which trees are needed
FEW_DOMAINS = replace(VERDICT_SETTINGS, domains=200)


def run(model: Classifier, data: ImageSet, eps: float, **options: Any) -> tuple[Report, dict[int, ExampleResult]]:
    points: dict[int, ExampleResult] = {}
    options = {"method": "complete", "attack": None} | options
    report = verify(model, data, eps, on_examples=lambda done: points.update({p.index: p for p in done}), **options)
    return report, points


def verdicts(points: dict[int, ExampleResult]) -> list[str]:
    return [points[index].verdict for index in sorted(points)]


def few() -> tuple[Classifier, ImageSet]:
    """Of `mostly_right`, those between 30 and 50: some of each verdict, and two with trees."""
    model, data = mostly_right()
    return model, replace(data, images=data.images[30:50], labels=data.labels[30:50])


@cache
def unlimited(method: str) -> tuple[Report, dict[int, ExampleResult]]:
    """What the method says of them without limits."""
    return run(*few(), EPS, method=method)


def alone() -> dict[int, ExampleResult]:
    """What complete verification says of them without limits."""
    return unlimited("complete")[1]


@cache
def limited(arithmetic: str) -> dict[int, ExampleResult]:
    """What complete verification says of them within 200 domains an example."""
    return run(*few(), EPS, arithmetic=arithmetic, bounds=FEW_DOMAINS)[1]


@cache
def digits() -> tuple[Classifier, ImageSet]:
    """A small network that has learnt digits, with BatchNorm, and eight of the test set."""
    train, test = load_images("digits", "train"), load_images("digits", "test")
    shape, classes = train.input_shape, train.class_names
    about = metadata(
        architecture=MLP(name="mlp", hidden=(8, 8)), input_shape=shape, class_names=classes, dataset="digits"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(about.architecture, InputSpec(shape, 10, (0.3,), (0.4,)))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x, y = to_unit(train.images), train.labels
        for _ in range(40):
            for rows in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return Classifier(model.eval(), about).eval(), test.take(8)


@cache
def on_digits(eps: float, number: int) -> dict[int, ExampleResult]:
    """What complete verification says of the first of them."""
    model, data = digits()
    return run(model, data.take(number), eps)[1]


# --- beside other methods --------------------------------------------------------------------------------


LONG = pytest.mark.slow


@pytest.mark.parametrize(
    ("eps", "number"),
    [(0.02, 2), pytest.param(0.06, 2, marks=LONG), pytest.param(0.1, 5, marks=LONG)],
)
def test_complete_milp_and_the_property_agree_on_digits(eps: float, number: int):
    pytest.importorskip("scipy")
    model, data = digits()
    data = data.take(number)
    _, real = run(model, data, eps, arithmetic="real")
    single = on_digits(eps, number)  # float32
    _, leaf_solution = run(model, data, eps, method="milp", arithmetic="real")
    _, folded = run(model, data, eps, network="folded")
    _, auto = run(model, data, eps, method="auto", attack=PGD(steps=5))
    assert verdicts(real) == verdicts(single) == verdicts(leaf_solution) == verdicts(folded) == verdicts(auto)
    assert "open" not in verdicts(real)
    by_property = {"unsat": "certified", "sat": "falsified"}
    for index, point in real.items():
        if point.verdict == "misclassified":
            continue
        asked = robustness(to_unit(data.images[index]), int(data.labels[index]), eps, 10)
        found = decide(model, data.input_shape, asked, method="complete", attack=PGD(steps=1, restarts=1))
        assert by_property[found.result] == point.verdict


@pytest.mark.slow
def test_the_radii_of_the_test_above_have_both_verdicts():
    found = verdicts(on_digits(0.06, 2)) + verdicts(on_digits(0.1, 5))
    assert {"certified", "falsified"} <= set(found)


@pytest.mark.parametrize("arithmetic", ["float32", pytest.param("real", marks=LONG), pytest.param("bf16", marks=LONG)])
def test_what_bounds_certify_complete_certifies(arithmetic: str):
    model, data = few()
    x = to_unit(data.images)
    for eps in (0.03, EPS) if arithmetic == "float32" else (EPS,):
        bounded = certify(model, x, data.labels, eps, method="alpha-crown", arithmetic=arithmetic)
        points = limited(arithmetic) if eps == EPS else run(model, data, eps, bounds=FEW_DOMAINS)[1]
        assert all(points[n].verdict == "certified" for n in bounded.certified.nonzero().flatten().tolist())
        assert 0 < int(bounded.certified.sum()) <= verdicts(points).count("certified")


@pytest.mark.slow
def test_less_is_certified_the_more_is_rounded():
    certified = [
        {number for number, point in limited(arithmetic).items() if point.verdict == "certified"}
        for arithmetic in ("bf16", "float32", "real")
    ]
    assert certified[0] <= certified[1] <= certified[2]


# --- counterexamples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", ["float32", pytest.param("real", marks=LONG), pytest.param("bf16", marks=LONG)])
def test_counterexamples_found_without_an_attack_are_in_the_box_and_misclassified_alone(arithmetic: str):
    number = 0
    learnt, test = digits()
    on_test = run(learnt, test.take(3), EPS, arithmetic=arithmetic, bounds=FEW_DOMAINS)[1]
    for model, data, points in ((*few(), limited(arithmetic)), (learnt, test, on_test)):
        for index, point in points.items():
            assert (point.counterexample is not None) == (point.verdict == "falsified")
            if point.counterexample is None:
                continue
            x, found = to_unit(data.images[index]).double(), point.counterexample
            assert found.dtype == torch.float32
            assert bool(((found.double() - x).abs() <= EPS).all())
            assert bool(((found >= 0) & (found <= 1)).all())
            assert misclassified_in_batch_of_one(model, found, data.labels[index], arithmetic)
            assert (point.method, point.trees) == ("complete", {})
            number += 1
    assert number > 4


def test_no_input_of_a_certified_box_is_misclassified():
    (model, data), points = few(), alone()
    for index, point in points.items():
        if point.verdict == "certified":
            x = to_unit(data.images[index])
            noise = (2 * torch.rand(4000, *x.shape, generator=torch.Generator().manual_seed(index)) - 1) * EPS
            noise[:2000] = noise[:2000].sign() * EPS
            with torch.no_grad():
                found = model((x + noise).clamp(0, 1)).argmax(1)
            assert bool((found == data.labels[index]).all())


# --- limits ----------------------------------------------------------------------------------------------


def test_each_certified_point_has_trees_whose_leaves_are_all_proved_again():
    (model, data), points = few(), alone()
    step, split = CompleteStep(model, "float32"), 0
    for index, point in points.items():
        assert bool(point.trees) == (point.verdict == "certified")
        if point.trees:
            batch = ExampleBatch([index], to_unit(data.images[[index]]), data.labels[[index]], EPS)
            assert point.margin is not None
            assert point.margin > 0
            boxed, least = step.example(batch, 0), point.margin * 0.999
            assert check_trees(boxed, 3, point.trees, least, step.prepared().settings) is None
            split += any(tree != "." for tree in point.trees.values())
    assert split > 0


@pytest.mark.parametrize(
    "options",
    [
        {"bounds": replace(VERDICT_SETTINGS, domains=1)},
        {"bounds": replace(VERDICT_SETTINGS, memory=1)},
        {"limits": Limits(timeout=1e-9)},
        {"limits": Limits(budget=0.0)},
    ],
    ids=["domains", "memory", "timeout", "budget"],
)
def test_a_limit_leaves_points_open_and_certifies_none_without_proof(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(examples, "FEW_INPUTS", 0)  # splits of inputs have more domains
    model, data = few()
    whole = alone()
    report, points = run(model, data, EPS, **options)
    assert report.open > 0
    for index, point in points.items():
        assert point.verdict in (whole[index].verdict, "open")
        if point.verdict == "certified":
            assert set(point.trees.values()) == {"."}
        if point.verdict == "open":
            assert (point.trees, point.method, point.counterexample) == ({}, None, None)
    if options.get("limits") == Limits(budget=0.0):
        assert report.certified == 0
        assert report.unfinished == report.open


def test_a_points_own_time_ends_its_search_and_not_the_others(monkeypatch: pytest.MonkeyPatch):
    """A clock that goes a second at each look."""
    model, data = few()
    whole = alone()
    ticks = count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    _, points = run(model, data, EPS, limits=Limits(timeout=20.0))
    assert {"certified", "open"} <= set(verdicts(points))
    assert all(p.verdict in (whole[index].verdict, "open") for index, p in points.items())
    assert all(not p.trees for p in points.values() if p.verdict == "open")


@pytest.mark.parametrize(
    ("method", "before"),
    [
        ("complete", 60),
        ("auto", 300),
        *(pytest.param(m, n, marks=LONG) for m in ("complete", "auto") for n in (0, 30, 200)),
    ],
)
def test_a_run_that_is_stopped_and_goes_on_ends_with_the_same_verdicts(method: str, before: int):
    model, data = few()
    whole, expected = unlimited(method)
    calls = count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Deadline, "over", lambda self: next(calls) >= before)
        _, points = run(model, data, EPS, method=method, limits=Limits(budget=1e6))
    assert "open" in verdicts(points)
    assert all(not point.trees for point in points.values() if point.verdict == "open")
    report, more = run(model, data, EPS, method=method, known=list(points.values()))
    points |= more
    assert verdicts(points) == verdicts(expected)
    assert (report.certified, report.falsified, report.unfinished) == (whole.certified, whole.falsified, 0)
    assert [points[n].trees for n in expected] == [expected[n].trees for n in expected]


# --- asked for what there is not -------------------------------------------------------------------------


def test_milp_knows_no_rounding():
    with pytest.raises(MethodError, match="its answers do not hold for float32; choose arithmetic real"):
        run(*few(), EPS, method="milp")


def test_without_scipy_complete_still_decides(monkeypatch: pytest.MonkeyPatch):
    model, data = few()
    whole = alone()
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    _, points = run(model, data, EPS)
    assert all(p.verdict in (whole[index].verdict, "open") for index, p in points.items())
    assert verdicts(points).count("certified") > 0


def test_the_step_leaves_the_network_as_it_was():
    model, data = few()
    before = copy.deepcopy(model.state_dict())
    run(model, data, EPS, bounds=replace(VERDICT_SETTINGS, domains=20))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training


def test_auto_ends_with_complete():
    model = mostly_right()[0]
    names = [each.names for each in rounds_of(model, "auto", PGD(), 20, "float32", VERDICT_SETTINGS)]
    assert names[-1] == ("complete",)


def test_a_network_without_rectifiers_is_decided_by_splits_of_its_inputs(monkeypatch: pytest.MonkeyPatch):
    """Two equal curves that cancel: there is no neuron to split, and no line to choose."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 2)).requires_grad_(False)
    with torch.no_grad():
        for tensor, values in zip(
            net.parameters(), ([[1.0], [1.0]], [0, 0], [[1, -1], [0, 0]], [0.01, 0]), strict=True
        ):
            tensor.copy_(torch.tensor(values))
    asked = robustness(torch.tensor([0.5]), 0, 0.5, 2)
    found = decide(net, (1,), asked, method="complete", attack=PGD(steps=2))
    assert (found.result, found.by) == ("unsat", "complete")
    monkeypatch.setattr(complete, "MORE_INPUTS", 0)
    found = decide(net, (1,), asked, method="complete", attack=PGD(steps=2), time_limit=5.0)
    assert (found.result, found.bound < 0) == ("unknown", True)
